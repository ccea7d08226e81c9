"""Suspected mistakes of a kernel and its padding: shifted, another border, flipped, transposed, flattened in another order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from xcam.comparison.causes.case import Case, Suspicion, Undone
from xcam.comparison.causes.scene import Scene, spatial_axes
from xcam.comparison.causes.values import FLATTENING
from xcam.contract import Array

SHIFTED = "shifted by a pixel: uneven padding (SAME) against even padding"
MODES = {
    "constant": "zeros",
    "reflect": "mirrored values",
    "edge": "repeated edges",
    "wrap": "values of the opposite edge",
}


def _scale(scene: Scene) -> int:
    """Return how many positions at the start lie between two at the end; 0 where they are not on one grid."""
    z, a = scene.case.z, scene.case.a
    if z.ndim != a.ndim or not spatial_axes(a) or not spatial_axes(z):
        return 0
    return max(1, round(z.shape[-1] / a.shape[-1]))


def _inside(values: Array, margin: int) -> Array:
    axes = len(values.shape) - 2
    cut = tuple(slice(margin, n - margin) if n > 2 * margin else slice(None) for n in values.shape[2:])
    return values[(slice(None), slice(None), *cut)] if axes else values


def _margin(a: Array) -> int:
    smallest = min(n for n in a.shape[2:] if n > 1)
    return max(1 if smallest < 9 else 2, smallest // 6) if smallest > 4 else 1


def shifted(scene: Scene) -> Iterator[Suspicion]:
    """Suspect uneven padding: the values agree where those at the start are moved by a position."""
    scale = _scale(scene)
    if not scale:
        return
    axes = spatial_axes(scene.case.z)
    steps = [2**k for k in range(8) if 2**k <= max(1, scale // 2) or k == 0]
    for n in steps:
        for direction in itertools.product((0, -n, n), repeat=len(axes)):
            if any(direction):
                yield Suspicion(
                    "uneven-padding",
                    SHIFTED,
                    lambda case, direction=direction: _moved(case, direction, axes),  # type: ignore[misc]
                    sum(map(bool, direction)),
                )


def _moved(case: Case, direction: tuple[int, ...], axes: tuple[int, ...]) -> Undone:
    return _without_border(case, case.a, case.rerun(np.roll(case.z, direction, axes)), case.b)


def _without_border(case: Case, wanted: Array, value: Array, before: Array) -> Undone:
    """Return the values without those at the border, which the padding changes."""
    margin = _margin(case.a)
    return Undone(*(_inside(each, margin) for each in (wanted, value, before)))


def border(scene: Scene) -> Iterator[Suspicion]:
    """Suspect another padding: the values inside agree; those at the border do with values padded ahead of the layer."""
    scale, case = _scale(scene), scene.case
    if not scale or min(case.a.shape[2:]) < 4:
        return
    difference = np.abs(case.a - case.b)
    margin = _margin(case.a)
    if float(_inside(difference, margin).max(initial=0)) > 0.02 * float(difference.max()):
        return
    axes = spatial_axes(case.z)
    for mode, name in MODES.items():
        for steps in (1, 2, 3):
            if min(case.z.shape[2:]) > 2 * scale * steps:
                text = f"its border: padding with {name} in the first model, and with other values in the second"
                yield Suspicion(
                    "border-padding",
                    text,
                    lambda case, mode=mode, steps=steps: _padded(case, mode, steps, scale, axes),  # type: ignore[misc]
                    steps,
                )


def _padded(case: Case, mode: str, steps: int, scale: int, axes: tuple[int, ...]) -> Undone:
    """Compare the first corner: the values at the start are moved inwards, and padded as the first model may do."""
    n = steps * scale
    width = [(0, 0)] * (case.z.ndim - len(axes)) + [(n, 0)] * len(axes)
    padded = np.pad(case.z, width, mode=mode)  # type: ignore[call-overload]
    values = padded[(slice(None), slice(None), *(slice(0, m) for m in case.z.shape[2:]))]
    result = case.rerun(values)
    half = [max(steps + 1, m // 2) for m in case.a.shape[2:]]
    here = tuple(slice(0, h - steps) for h in half)
    there = tuple(slice(steps, h) for h in half)
    ahead = (slice(None), slice(None))
    return Undone(case.a[(*ahead, *here)], result[(*ahead, *there)], case.b[(*ahead, *here)])


def flipped(scene: Scene) -> Iterator[Suspicion]:
    """Suspect a kernel that is mirrored or transposed: the same holds for the values at the start and at the end."""
    scale = _scale(scene)
    if not scale:
        return
    axes = spatial_axes(scene.case.z)
    for count in range(1, len(axes) + 1):
        for turned in itertools.combinations(axes, count):
            name = "mirrored along " + " and ".join(
                {-1: "width", -2: "height", -3: "depth"}[k] for k in reversed(turned)
            )
            for moves in itertools.product(range(-(scale > 1), 1 + (scale > 1)), repeat=count):
                yield Suspicion(
                    "flipped-kernel",
                    f"the kernel is {name}",
                    lambda case, turned=turned, moves=moves: _turned(case, turned, moves),  # type: ignore[misc]
                    1 + sum(map(bool, moves)),
                )
    if len(axes) == 2:
        yield Suspicion(
            "flipped-kernel", "height and width of the kernel are exchanged", lambda case: _transposed(case, scale), 1
        )


def _turned(case: Case, axes: tuple[int, ...], moves: tuple[int, ...]) -> Undone:
    values = np.roll(np.flip(case.z, axes), moves, axes)
    return _without_border(case, case.a, np.flip(case.rerun(values), axes), case.b)


def _transposed(case: Case, scale: int) -> Undone:
    """Transpose the largest square at the start, and back at the end."""
    side = min(case.z.shape[2:])
    end = min(side // scale, *case.a.shape[2:])
    values = np.zeros_like(case.z)
    values[..., :side, :side] = np.swapaxes(case.z[..., :side, :side], -2, -1)
    result = case.rerun(values)
    turned = np.swapaxes(result[..., :end, :end], -2, -1)
    return _without_border(case, case.a[..., :end, :end], turned, case.b[..., :end, :end])


def flattened(scene: Scene) -> Iterator[Suspicion]:
    """Suspect another order of flattening: a vector computed from values that are flattened in another order."""
    if spatial_axes(scene.case.a):
        return
    runs = scene.case.stretch.runs
    spatial = next((pair for pair in scene.earlier if spatial_axes(runs[1].value(pair.second))), None)
    if spatial is None or not runs[1].can_start_at(spatial.second):
        return

    def channels_last(values: Array) -> Array:
        return np.ascontiguousarray(np.moveaxis(values, 1, -1)).reshape(values.shape)

    def channels_first(values: Array) -> Array:
        last = np.moveaxis(values, 1, -1).shape
        return np.moveaxis(values.reshape(last), -1, 1)

    def undo(case: Case, change: Callable[[Array], Array]) -> Undone:
        second = case.stretch.runs[1]
        return Undone(
            case.a, second.run(spatial.second, change(second.value(spatial.second)), case.end.second), case.b
        )

    for change in (channels_last, channels_first):
        yield Suspicion("flattening-order", FLATTENING, partial(undo, change=change), 0)


def reordered_vector(scene: Scene) -> Iterator[Suspicion]:
    """Suspect a vector at the start that the second model holds in another order than the first."""
    stretch = scene.case.stretch
    values = stretch.start_value(0)
    if spatial_axes(values) or stretch.start is None or values.shape != scene.case.z.shape:
        return
    if np.array_equal(values, scene.case.z):
        return
    yield Suspicion(
        "flattening-order",
        FLATTENING,
        lambda case: Undone(case.a, case.rerun(case.stretch.start_value(0)), case.b),
        0,
    )
