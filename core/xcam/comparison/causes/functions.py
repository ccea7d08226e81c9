"""Suspected functions: an activation, a pooling, an interpolation or a normalisation that differs from its counterpart.

A function is known where it computes a layer's value from that of a layer ahead of it. The same model is then run with the
other functions of its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache

import numpy as np

from xcam.comparison import value_checks
from xcam.comparison.causes import resampling
from xcam.comparison.causes.case import Case, Suspicion, Undone
from xcam.comparison.causes.scene import Scene
from xcam.comparison.stretch import BOTH, Which
from xcam.contract import Array

Function = Callable[[Array], Array]
SAME = 2e-5
"""A function computes a value where the largest error is below this share of its largest magnitude."""
LAYERS = 8
"""The number of layers within a stretch that are examined."""
KINDS = ("activation", "pooling", "interpolation")


def exchanged(scene: Scene) -> Iterator[Suspicion]:
    """Suspect another activation, pooling or interpolation at a layer within the stretch, or at its end."""
    for which in reversed(BOTH):
        case = scene.case
        runs = case.stretch.runs[which]
        start = None if case.stretch.start is None else case.stretch.start[which]
        end = case.end[which]
        names: list[str | None] = [start, *scene.inner[which][-LAYERS:], end]
        values: dict[str | None, Array] = {}
        for position, name in enumerate(names[1:], 1):
            if name is None or (name != end and not runs.can_start_at(name)):
                continue
            for ahead in reversed(names[max(0, position - 4) : position]):
                for each in (ahead, name):
                    if each not in values:
                        values[each] = case.inner(which, each)
                known = _known(values[ahead], values[name])
                if known is None:
                    continue
                kind, current, others = known
                for other, function in others.items():
                    yield _other(kind, current, other, function, which, ahead, name)
                break


def _known(before: Array, value: Array) -> tuple[str, str, Mapping[str, Function]] | None:
    """Return the kind and the name of the function that computes a value, and the others of its kind."""
    for kind in KINDS:
        family = _family(kind, before, value)
        size = max(float(np.abs(value).max()), 1e-12)
        for name, function in family.items():
            with np.errstate(all="ignore"):
                result = function(before)
                if result.shape == value.shape and float(np.abs(result - value).max()) < SAME * size:
                    fits = [
                        key
                        for key, other in family.items()
                        if key != name and _equal(np.asarray(other(before)), value, size)
                    ]
                    if name == "none" and kind == "activation" and fits:
                        continue
                    others = {key: f for key, f in family.items() if key != name and key not in fits}
                    return kind, name, others
    return None


def _equal(result: Array, value: Array, size: float) -> bool:
    return result.shape == value.shape and float(np.abs(result - value).max()) < SAME * size


def _family(kind: str, before: Array, value: Array) -> Mapping[str, Function]:
    if before.shape[:2] != value.shape[:2]:
        return {}
    if kind == "activation":
        return value_checks.ACTIVATIONS if before.shape == value.shape else {}
    spaces = before.shape[2:], value.shape[2:]
    if spaces[0] == spaces[1] and kind != "pooling":
        return {}
    return resampling.poolings(*spaces) if kind == "pooling" else resampling.interpolations(*spaces)


def _other(
    kind: str, current: str, other: str, function: Function, which: Which, ahead: str | None, name: str
) -> Suspicion:
    """Suspect that one model computes a layer with one function of a kind, and the other model with another."""
    names = (other, current) if which == 1 else (current, other)

    def undo(case: Case) -> Undone:
        with np.errstate(all="ignore"):
            value = np.asarray(function(case.inner(which, ahead)), np.float32)
        result = case.stretch.runs[which].run(name, value, case.end[which])
        return Undone(case.a, result, case.b) if which == 1 else Undone(case.b, result, case.a)

    return Suspicion(kind, f"another {kind}: {names[0]} against {names[1]}", undo, 0)


ENDS: dict[str, Function] = {
    "softmax": lambda z: _exp(z) / _exp(z).sum(axis=1, keepdims=True),
    "sigmoid": value_checks.ACTIVATIONS["sigmoid"],
    "tanh": np.tanh,
    "log-softmax": lambda z: np.log(_exp(z) / _exp(z).sum(axis=1, keepdims=True)),
}
"""Activations at the end of a model."""


def _exp(z: Array) -> Array:
    return np.exp(z.astype(np.float64) - z.max(axis=1, keepdims=True))


def last_activation(scene: Scene) -> Iterator[Suspicion]:
    """Suspect that the output of one model is that of the other behind a softmax, a sigmoid or the like."""
    if not scene.case.stretch.runs[1].layer(scene.case.end.second).is_output:
        return
    for name, function in ENDS.items():
        for which, subject in ((1, "second"), (0, "first")):

            def undo(case: Case, which: int = which, function: Function = function) -> Undone:
                value, wanted = (case.a, case.b) if which else (case.b, case.a)
                return Undone(wanted, function(value), value)

            yield Suspicion("last-activation", f"the {subject} model has one more {name} at its output", undo, 0)


def hidden_activation(scene: Scene) -> Iterator[Suspicion]:
    """Suspect another activation at the end, where no layer holds the value ahead of it: its inverse is used."""
    a, b = scene.values
    if a.shape != b.shape or a.size < 32:
        return
    for one in value_checks.ACTIVATIONS:
        for two in value_checks.ACTIVATIONS:
            if one == two:
                continue
            for which in reversed(BOTH):
                source, target = (two, one) if which else (one, two)
                known, wanted = (b, a) if which else (a, b)
                few = slice(None, None, max(1, known.size // 2000))
                mapped, live = through(source, target, known.ravel()[few], wanted.ravel()[few])
                error = mapped - wanted.ravel()[few]
                difference = known.ravel()[few] - wanted.ravel()[few]
                if live.sum() < 8 or np.square(difference[live]).sum() < 0.5 * np.square(difference).sum():
                    continue
                if np.abs(error[live]).max() > 1e-3 * np.abs(wanted).max():
                    continue

                def undo(case: Case, which: Which = which, source: str = source, target: str = target) -> Undone:
                    known, wanted = (case.b, case.a) if which else (case.a, case.b)
                    value, live = through(source, target, known, wanted)
                    return Undone(wanted[live], value[live], known[live])

                yield Suspicion("activation", f"another activation: {one} against {two}", undo, 1)


GRID = np.concatenate([-np.geomspace(30, 1e-4, 3000), [0.0], np.geomspace(1e-4, 30, 3000)])


@cache
def _curve(name: str) -> Array:
    return np.asarray(value_checks.ACTIVATIONS[name](GRID))


def through(source: str, target: str, values: Array, wanted: Array) -> tuple[Array, Array]:
    """Return target(source⁻¹(values)) for activations by name, and where it is known.

    Where the source has two inverses, that with the nearer result to `wanted` is taken; where it is flat, the result is known
    if the target is constant there.
    """
    shape = values.shape
    values, wanted = values.ravel().astype(np.float64), wanted.ravel().astype(np.float64)
    s, t = _curve(source), _curve(target)
    lowest = int(s.argmin())
    result = np.full(values.shape, np.nan)
    for part in (slice(lowest, None), slice(lowest, None, -1)):
        x, y = s[part], t[part]
        flat = np.concatenate([np.diff(x) < 1e-12 * max(1.0, abs(x).max()), [False]])
        if flat.all() or len(x) < 2:
            continue
        rising = ~flat
        low, high = x[rising][0], x[rising][-1]
        inside = (values >= low) & (values <= high)
        mapped = np.interp(values, x[rising], y[rising])
        closer = inside & ~(np.abs(result - wanted) <= np.abs(mapped - wanted))
        result[closer] = mapped[closer]
        if flat.any():
            level, there = x[flat][0], y[flat]
            at = np.abs(values - level) < 1e-7
            result[at] = there[0] if np.ptp(there) < 1e-9 else np.nan
    live = np.isfinite(result)
    return np.where(live, result, 0).reshape(shape), live.reshape(shape)


def other_epsilon(scene: Scene) -> Iterator[Suspicion]:
    """Suspect another epsilon of a layer normalisation: recomputed from the value ahead of it, or from the end alone."""
    a, b = scene.values
    if "norm" not in scene.kinds or "batchnorm" in scene.kinds.replace(" ", "") or a.shape != b.shape:
        return
    z = np.concatenate([case.z for case in scene.fitted])
    if z.shape == a.shape and a.shape[1] > 1:
        fits = [_epsilon(z, value) for value in (a, b)]
        if fits[0] is not None and fits[1] is not None and fits[0] != fits[1]:

            def undo(case: Case) -> Undone:
                first, second = (_normalised(case.z, epsilon) for epsilon in fits)  # type: ignore[arg-type]
                gain, offset = _gain_and_offset(second, case.b)
                return Undone(case.a, first * gain + offset, case.b)

            text = f"the epsilon of a layer normalisation: {fits[0]:.0e} against {fits[1]:.0e}"
            yield Suspicion("layernorm-epsilon", text, undo, 1)
            return
    if value_checks.per_position(a, b) is None:
        return

    def fitted(case: Case) -> Undone:
        result = value_checks.per_position(case.a, case.b)
        return (
            Undone(case.a, case.a if result is None else result, case.b)
            if result is not None
            else Undone(case.a, case.b, case.b)
        )

    yield Suspicion(
        "layernorm-epsilon",
        "each position has another scale: the epsilon of a layer normalisation",
        fitted,
        2 * a.shape[1],
    )


EPSILONS = (1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def _normalised(z: Array, epsilon: float) -> Array:
    z = z.astype(np.float64)
    mean, variance = z.mean(axis=1, keepdims=True), z.var(axis=1, keepdims=True)
    return (z - mean) / np.sqrt(variance + epsilon)


def _gain_and_offset(x: Array, y: Array) -> tuple[Array, Array]:
    shape = (1, -1, *[1] * (x.ndim - 2))
    rows = (np.moveaxis(v, 1, 0).reshape(v.shape[1], -1).astype(np.float64) for v in (x, y))
    u, v = rows
    du, dv = u - u.mean(1, keepdims=True), v - v.mean(1, keepdims=True)
    gain = (du * dv).sum(1) / np.maximum((du * du).sum(1), 1e-30)
    return gain.reshape(shape), (v.mean(1) - gain * u.mean(1)).reshape(shape)


def _epsilon(z: Array, value: Array) -> float | None:
    """Return the epsilon with which a layer normalisation of z computes a value best; None where none does."""
    errors = {}
    for epsilon in EPSILONS:
        x = _normalised(z, epsilon)
        gain, offset = _gain_and_offset(x, value)
        errors[epsilon] = float(np.abs(x * gain + offset - value).max())
    best = min(errors, key=lambda e: errors[e])
    return best if errors[best] < 1e-4 * float(np.abs(value).max()) else None
