"""Where two models begin to differ, and why.

Along aligned layers the relative error grows as rounding adds up. Where it jumps, something else is the cause; what that
is likely to be is told from the values themselves, or by trying: the second model is run on a picture that is changed as
the suspected mistake would have it, and if the error goes away, that was it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from xcam.aligning import Match, Sketch, error, permutation
from xcam.contract import Array, Model
from xcam.targets import sigmoid

FLATTENED = "the order of flattening: [channels, height, width] against [height, width, channels]"
ROUNDING = 1e-4
"""Activations of the same weights agree to this share of their largest magnitude (the design's tolerance)."""
JUMP = 10.0
"""A difference that grows by this factor at one layer did not come from the layers before it."""
FIT = 3e-3
"""How well a cause has to explain the values, as a share of their largest magnitude."""


def first_jump(errors: Sequence[float]) -> int | None:
    """The place where the error jumps beyond what rounding explains; None where it never does.

    A difference that is gone again at the end (a vector in another order, which the next layer goes along with) is none.
    """
    before = 0.0
    for place, now in enumerate(errors):
        if now > ROUNDING and now > JUMP * before:
            return place if errors[-1] > JUMP * max(before, 1e-6) else None
        before = max(before, now)
    return None


def cause(
    first: Sequence[Sketch],
    second: Sequence[Sketch],
    matches: Sequence[Match],
    place: int,
    models: tuple[Model, Model],
    x: tuple[Array, Array],
) -> str:
    """The likely cause of the difference at one of the matches, in words; empty where the evidence fits none."""
    here = matches[place]
    a, b = first[here.first], second[here.second]
    before = matches[place - 1] if place else None
    if here.order is not None or permutation(a.values, b.values) is not None:
        return FLATTENED if len(a.shape) == 1 else "its channels stand in another order"
    if before is not None:
        swapped = _activations(first[before.first].values, a.values, b.values)
        if swapped:
            return swapped
    if _reduced(a.values, b.values, [m.error for m in matches]):
        return "reduced precision: its values or weights went through float16 or bfloat16"
    skipped = first[before.first + 1 if before else 0 : here.first + 1]
    if any(word in _kinds(*skipped, b) for word in ("resiz", "upsampl", "interpol")):
        return "another interpolation: nearest against linear, or another way of aligning corners"
    channels = models[0].input.channels
    start = all(first[m.first].shape[0] == channels for m in matches[:place])
    tried = _tried(a, b, models, x, start)
    if tried:
        return tried
    fitted = _per_channel(a.values, b.values)
    if fitted:
        return fitted
    if len(a.shape) == 1 and _flattened([first[m.first] for m in matches[:place]]):
        return FLATTENED
    return ""


def _flattened(before: Sequence[Sketch]) -> bool:
    """What was read last has space, or is a vector as long as something with space that came before it."""
    if not before:
        return False
    length = int(np.prod(before[-1].shape))
    return any(_spread(s.shape) and int(np.prod(s.shape)) == length for s in before)


def _kinds(*sketches: Sketch) -> str:
    return " ".join(f"{s.layer.kind} {s.layer.name}" for s in sketches).lower()


def _spread(shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and int(np.prod(shape[1:])) > 1


def _reduced(a: Array, b: Array, errors: Sequence[float]) -> bool:
    """One side's values are all of half precision; or the error is of its size, without a structure, from the start on."""
    for value in (a, b):
        other = b if value is a else a
        if _half(value) and not _half(other):
            return True
    apart = float(np.abs(b - a).max())
    small = apart < 1e-2 * max(float(np.abs(a).max()), 1e-12) and max(errors) < 0.1
    left = _affine(a, b)[2]  # rounding is not the same for all values of a channel
    return bool(small and np.abs(left).max() > 0.2 * apart)


def _half(values: Array) -> bool:
    live = values[values != 0]
    with np.errstate(over="ignore"):
        return bool(len(live) > 8 and (live.astype(np.float16).astype(np.float32) == live).mean() > 0.99)


def _affine(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """For each channel the scale and shift that make b of a, where both are not cut off at zero; and what is left."""
    count = a.shape[1]
    x, y = (np.moveaxis(v, 1, 0).reshape(count, -1).astype(np.float64) for v in (a, b))
    clipped = bool((a >= 0).all() and (b >= 0).all() and (a == 0).mean() > 0.05)
    live = ((x > 0) & (y > 0)) if clipped else np.ones_like(x, bool)
    weight = live.sum(axis=1).clip(1)
    mx, my = ((v * live).sum(axis=1) / weight for v in (x, y))
    dx, dy = (x - mx[:, None]) * live, (y - my[:, None]) * live
    power = (dx**2).sum(axis=1)
    scale = np.divide((dx * dy).sum(axis=1), power, out=np.ones(count), where=power > 1e-20)
    shift = my - scale * mx
    left = (y - scale[:, None] * x - shift[:, None]) * live
    return scale, shift, left


def _per_channel(a: Array, b: Array) -> str:
    """One factor for all, or a scale and a shift for each channel."""
    if a.shape[0] * a.shape[2] < 6:
        return ""
    scale, _, left = _affine(a, b)
    size = max(float(np.abs(b).max()), 1e-12)
    if np.abs(left).max() > FIT * size:
        return ""
    used = np.abs(a).max(axis=(0, 2)) > 1e-3 * np.abs(a).max()
    factors = scale[used]
    factor = float(np.median(factors)) if len(factors) else 1.0
    if np.abs(b - factor * a).max() < FIT * size:
        return f"everything multiplied by {factor:.4g}"
    return "each channel scaled and shifted: the statistics or the epsilon of a batch normalisation, or a bias"


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "none": lambda z: z,
    "ReLU": lambda z: np.maximum(z, 0),
    "ReLU6": lambda z: np.clip(z, 0, 6),
    "exact GELU": lambda z: z * _phi(z),
    "tanh GELU": lambda z: 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))),
    "SiLU": lambda z: z * sigmoid(z),
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "hard swish": lambda z: z * np.clip(z / 6 + 0.5, 0, 1),
    "ELU": lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
    "leaky ReLU 0.01": lambda z: np.where(z > 0, z, 0.01 * z),
    "leaky ReLU 0.1": lambda z: np.where(z > 0, z, 0.1 * z),
    "leaky ReLU 0.2": lambda z: np.where(z > 0, z, 0.2 * z),
    "leaky ReLU 0.3": lambda z: np.where(z > 0, z, 0.3 * z),
    "softplus": lambda z: np.logaddexp(0, z),
    "mish": lambda z: z * np.tanh(np.logaddexp(0, z)),
}


def _phi(z: Array) -> Array:
    from math import erf

    return np.asarray(0.5 * (1 + np.vectorize(erf, otypes=[float])(z / np.sqrt(2))))


def _activations(z: Array, a: Array, b: Array) -> str:
    """Both are known functions of the layer before: different ones."""
    if z.shape != a.shape:
        return ""
    z64 = z.astype(np.float64)
    names = []
    for value in (a, b):
        size = max(float(np.abs(value).max()), 1e-12)
        fits = {name: float(np.abs(f(z64) - value).max()) / size for name, f in ACTIVATIONS.items()}
        name = min(fits, key=lambda key: fits[key])
        names.append(name if fits[name] < 1e-5 else "")
    if all(names) and names[0] != names[1]:
        return f"another activation: {names[0]} against {names[1]}"
    return ""


def _tried(a: Sketch, b: Sketch, models: tuple[Model, Model], x: tuple[Array, Array], start: bool) -> str:
    """Run the second model on a changed picture: does it then compute what the first does?"""
    model, batch = models[1], x[1]
    last = model.input.layout == "channels_last"
    axes = (-3, -2) if last else (-2, -1)
    channel = -1 if last else 1

    def apart(changed: Array, inner: bool = False) -> float:
        from xcam.aligning import sketch

        values = model.activations(np.ascontiguousarray(changed), [b.layer.name])[b.layer.name]
        if not inner:
            return error(a.values, sketch(b.layer, values).values)
        truth = models[0].activations(x[0], [a.layer.name])[a.layer.name]
        edge = max(2, min(truth.shape[2:]) // 6)
        cut = (slice(None), slice(None), *(slice(edge, n - edge) for n in truth.shape[2:]))
        return error(truth[cut], values[cut]) if truth[cut].size else 1.0

    now = error(a.values, b.values)
    if start and batch.shape[channel] == 3 and apart(np.flip(batch, channel)) < 0.02 * now:
        return "the input's channels: RGB against BGR"
    if start:
        for factor in (255.0, 127.5, 2.0):
            for scale in (factor, 1 / factor):
                if apart(batch * np.float32(scale)) < 0.02 * now:
                    return f"the scale of the input: it takes values {1 / scale:.4g} times as large"
    if len(a.shape) == 3 and min(a.shape[1:]) > 6:
        inside = apart(batch, inner=True)
        for step in _steps(batch, axes, a.shape[1:]):
            for dy, dx in ((-1, -1), (1, 1), (0, 1), (1, 0), (0, -1), (-1, 0)):
                moved = np.roll(batch, (dy * step, dx * step), axes)
                if apart(moved, inner=True) < 0.05 * inside and inside > ROUNDING:
                    return "shifted by a pixel: padding that is uneven (SAME) against even"
        if inside < 0.02 * now:
            return "its border: zeros against another kind of padding"
    return ""


def _steps(batch: Array, axes: tuple[int, int], space: tuple[int, ...]) -> list[int]:
    """By how many pixels of the picture a layer's input moves by one: powers of two up to the layer's own stride."""
    stride = max(1, batch.shape[axes[0]] // max(space[0], 1))
    return sorted({2**k for k in range(8) if 2**k <= stride}, reverse=True)
