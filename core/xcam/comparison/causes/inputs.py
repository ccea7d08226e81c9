"""Suspected mistakes at the input: channels in another order, another scale, mirrored images."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from xcam.comparison.causes.case import FITS, Case, Suspicion, Undone
from xcam.comparison.causes.scene import Scene, spatial_axes
from xcam.contract import Array
from xcam.contract.preprocessing import PRESETS, Preprocessing

FACTORS = (1.0, 255.0, 1 / 255, 127.5, 1 / 127.5, 2.0, 0.5)
"""Factors with which the search for a scale begins."""
STEPS = 6
"""The number of steps of that search."""
VALUES = 40_000
"""The number of values at the end that it uses."""


def exchanged_channels(scene: Scene) -> Iterator[Suspicion]:
    """Suspect RGB against BGR."""
    if scene.at_input and scene.case.z.shape[1] == 3:
        yield Suspicion(
            "rgb-bgr", "the input's channels: RGB against BGR", lambda case: _with(case, case.z[:, ::-1]), 0
        )


def mirrored(scene: Scene) -> Iterator[Suspicion]:
    """Suspect images that are mirrored, upside down, turned by a half turn, or transposed."""
    axes = spatial_axes(scene.case.z)
    if not scene.at_input or len(axes) != 2:
        return
    for name, turned in (("mirrored", (-1,)), ("upside down", (-2,)), ("turned by a half turn", (-2, -1))):
        yield Suspicion(
            "mirrored-input",
            f"the input: it is {name} in one of the models",
            lambda case, turned=turned: _with(case, np.flip(case.z, turned)),  # type: ignore[misc]
            0,
        )
    if scene.case.z.shape[-1] == scene.case.z.shape[-2]:
        text = "the input: height and width are exchanged in one of the models"
        yield Suspicion("mirrored-input", text, lambda case: _with(case, np.swapaxes(case.z, -2, -1)), 0)


def scaled(scene: Scene) -> Iterator[Suspicion]:
    """Suspect another scale: a factor and an offset of each input channel, found by running the second model."""
    if not scene.at_input:
        return
    for reverse in (False, True) if scene.case.z.shape[1] == 3 else (False,):
        fitted = _search(scene.case, reverse)
        if fitted is None:
            continue
        for scale in _simplified(fitted):
            late = _exchanged_late(scale, scene)
            yield Suspicion(
                "rgb-bgr" if late else "input-scale",
                late or _text(scale, scene),
                lambda case, scale=scale: _with(case, scale(case.z)),  # type: ignore[misc]
                scale.size + 2 * reverse,
            )
        return


@dataclass(frozen=True)
class _Scale:
    """A factor and an offset of each input channel, and whether the channels are exchanged first."""

    factor: Array
    offset: Array
    reverse: bool

    def __call__(self, values: Array) -> Array:
        shape = (-1, *[1] * (values.ndim - 2))
        values = values[:, ::-1] if self.reverse else values
        return (values * self.factor.reshape(shape) + self.offset.reshape(shape)).astype(np.float32)

    @property
    def size(self) -> int:
        one_factor, one_offset = (len(np.unique(value)) == 1 for value in (self.factor, self.offset))
        return (1 if one_factor else len(self.factor)) + (
            0 if not self.offset.any() else 1 if one_offset else len(self.offset)
        )


def _with(case: Case, z: Array) -> Undone:
    return Undone(case.a, case.rerun(z), case.b)


def _search(case: Case, reverse: bool) -> _Scale | None:
    """Return the scale with which the second model computes the first one's value, by Gauss and Newton's method."""
    channels = case.z.shape[1]
    rng = np.random.default_rng(0)
    count = case.a.size
    picked = rng.choice(count, VALUES, replace=False) if count > VALUES else slice(None)

    def residual(scale: _Scale) -> Array:
        return (case.rerun(scale(case.z)) - case.a).ravel()[picked].astype(np.float64)

    starts = [_Scale(np.full(channels, f), np.zeros(channels), reverse) for f in FACTORS]
    errors = [residual(scale) for scale in starts]
    best = int(np.argmin([np.linalg.norm(np.nan_to_num(error, nan=np.inf)) for error in errors]))
    scale, error = starts[best], errors[best]
    first = float(np.linalg.norm((case.b - case.a).ravel()[picked]))
    levels = max(float(np.abs(case.z).max()), 1e-12)
    for step in range(STEPS):
        if np.linalg.norm(error) < 1e-4 * first:
            break
        columns = []
        for c, which in itertools.product(range(channels), ("factor", "offset")):
            size = 0.01 * float(np.abs(scale.factor).max()) * (1.0 if which == "factor" else levels)
            moved = _Scale(scale.factor.copy(), scale.offset.copy(), reverse)
            getattr(moved, which)[c] += size
            columns.append((residual(moved) - error) / size)
        change = np.linalg.lstsq(np.stack(columns, 1), -error, rcond=1e-6)[0].reshape(channels, 2)
        tried = _Scale(scale.factor + change[:, 0], scale.offset + change[:, 1], reverse)
        after = residual(tried)
        if not np.linalg.norm(after) < np.linalg.norm(error):
            break
        scale, error = tried, after
        if step == 2 and np.linalg.norm(error) > 0.9 * first:
            return None
    return scale if np.linalg.norm(error) <= 2 * FITS * first else None


def _simplified(scale: _Scale) -> Iterator[_Scale]:
    """Yield the scale in simpler forms: one factor; one factor and one offset; as it is."""
    channels = len(scale.factor)
    factor, offset = (np.full(channels, float(value.mean())) for value in (scale.factor, scale.offset))
    zeros = np.zeros(channels)
    yield _Scale(factor, zeros, scale.reverse)
    yield _Scale(factor, offset, scale.reverse)
    yield _Scale(np.ones(channels), scale.offset, scale.reverse)
    yield _Scale(scale.factor, zeros, scale.reverse)
    yield scale


def _text(scale: _Scale, scene: Scene) -> str:
    spec = scene.case.stretch.models[1].spec
    current = spec.preprocessing or PRESETS["unit"]
    start = "the scale of the input: the second model agrees "
    stated = scene.case.stretch.models[0].spec.preprocessing
    for other in (*([stated] if stated else []), *PRESETS.values()):
        if _converts(scale, current, other):
            return f"{start}on images scaled as {other.name!r}, and is given images scaled as {current.name!r}"
    constants = _imagenet(scale, current)
    if constants:
        return f"the mean and the standard deviation of the input: {constants}"
    order = "where its channels are exchanged (RGB, BGR) and " if scale.reverse else "where its input is "
    text = f"multiplied by {_numbers(scale.factor)}"
    if scale.offset.any():
        text += f" and then {_numbers(scale.offset)} is added"
        if scale.size > 2:
            text += " (for each channel): mean and standard deviation"
    elif np.allclose(scale.factor, 256 / 255, atol=2e-4):
        text += " (256 / 255)"
    elif np.allclose(scale.factor, 255 / 256, atol=2e-4):
        text += " (255 / 256)"
    return start + order + text


def _converts(scale: _Scale, current: Preprocessing, other: Preprocessing) -> bool:
    """Return whether a scale converts images from one preprocessing to another."""
    if scale.reverse != (current.order != other.order):
        return False
    n = len(scale.factor)

    def constants(values: tuple[float, ...]) -> Array:
        return np.broadcast_to(np.asarray(values, float), n) if len(values) in (1, n) else np.full(n, np.nan)

    def ordered(values: Array) -> Array:
        return values[::-1] if scale.reverse else values

    factor = ordered(constants(current.std)) * other.scale / (current.scale * constants(other.std))
    mean = ordered(constants(current.mean)) * other.scale / current.scale
    offset = (mean - constants(other.mean)) / constants(other.std)
    is_trivial = np.allclose(factor, 1, rtol=1e-4) and np.allclose(offset, 0, atol=1e-4)
    size = float(np.abs(offset).max()) + 1
    fits = np.allclose(scale.factor, factor, rtol=5e-3) and np.allclose(scale.offset, offset, atol=5e-3 * size)
    return bool(fits) and not is_trivial


def _exchanged_late(scale: _Scale, scene: Scene) -> str | None:
    """Return a text where the channels are exchanged behind the scaling with ImageNet's constants inside a model."""
    current = scene.case.stretch.models[1].spec.preprocessing or PRESETS["unit"]
    if not scale.reverse or len(scale.factor) != 3 or not current.same_as(PRESETS["unit"]):
        return None
    mean, std = (np.asarray(value) for value in (PRESETS["torch"].mean, PRESETS["torch"].std))
    factor = std / std[::-1]
    fits = np.allclose(scale.factor, factor, rtol=5e-3) and np.allclose(
        scale.offset, mean - mean[::-1] * factor, atol=5e-3
    )
    return "the input's channels: RGB against BGR, behind mean and standard deviation" if fits else None


def _imagenet(scale: _Scale, current: Preprocessing) -> str | None:
    """Return how the constants of ImageNet differ in two models that are given values of 0…1; None where they do not."""
    n = len(scale.factor)
    if n != 3 or scale.reverse or not current.same_as(PRESETS["unit"]):
        return None
    mean, std = (np.asarray(value) for value in (PRESETS["torch"].mean, PRESETS["torch"].std))
    variants = {
        "the right ones": (mean, std),
        "both in the order BGR": (mean[::-1], std[::-1]),
        "the mean in the order BGR": (mean[::-1], std),
        "the standard deviation in the order BGR": (mean, std[::-1]),
        "both exchanged": (std, mean),
        "not the mean": (np.zeros(3), std),
        "not the standard deviation": (mean, np.ones(3)),
    }
    for (one, (m, s)), (other, (m2, s2)) in itertools.permutations(variants.items(), 2):
        factor = s2 / s
        if np.allclose(scale.factor, factor, rtol=5e-3) and np.allclose(scale.offset, m2 - m * factor, atol=5e-3):
            return f"of the constants of ImageNet, the first model has {one}, the second {other}"
    return None


def _numbers(values: Array) -> str:
    if len(np.unique(values)) == 1:
        return f"{values[0]:.4g}"
    return ", ".join(f"{value:.4g}" for value in values)
