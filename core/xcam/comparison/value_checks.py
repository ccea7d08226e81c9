"""Why two layers differ, as far as their values tell: pure functions of the values [N, C, places] of both.

Each returns the cause in words, or an empty string where the values do not fit it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xcam.comparison.alignment import LayerSample, error, permutation
from xcam.contract import Array
from xcam.targets import sigmoid

FLATTENED = "the order of flattening: [channels, height, width] against [height, width, channels]"
NORMED = "each channel scaled and shifted: the statistics or the epsilon of a batch normalisation, or a bias"
REDUCED = "reduced precision: its values or weights went through float16 or bfloat16"

FIT = 3e-3
"""How well a cause has to explain the values, as a share of their largest magnitude."""
LEFT = 0.2
"""What a cause may leave of the difference."""


def reordered(a: LayerSample, b: LayerSample, before: LayerSample | None) -> str:
    """The channels of one are those of the other in another order, scaled and shifted each, as it may be.

    before: what had space last; a vector of its values may have been flattened in another order.
    """
    found = permutation(a.values, b.values)
    if found is None:
        found = _correlated(a.values, b.values)
    if found is None:
        return ""
    if len(a.shape) > 1:
        return "its channels stand in another order"
    if before is not None and np.prod(before.shape) == a.shape[0]:
        last = np.arange(a.shape[0]).reshape(before.shape[0], -1).T.ravel()  # channels last, of channels first
        if any(error(a.values, b.values[:, order]) < FIT for order in (last, np.argsort(last))):
            return FLATTENED
    return "its values stand in another order"


def _correlated(a: Array, b: Array) -> Array | None:
    """The order in which b's channels follow a's exactly but for scale and shift; None where there is no other order."""
    if a.shape != b.shape or a.shape[1] < 2 or a.shape[0] * a.shape[2] < 16:
        return None
    rows = []
    for value in (a, b):
        row = _rows(value)
        row -= row.mean(axis=1, keepdims=True)
        size = np.linalg.norm(row, axis=1, keepdims=True)
        rows.append(np.divide(row, size, out=np.zeros_like(row), where=size > 1e-9))
    alike = np.abs(rows[0] @ rows[1].T)
    order = alike.argmax(axis=1)
    live = alike.max(axis=1) > 0
    own = np.arange(len(order))
    if not live.any() or len(set(order[live].tolist())) < live.sum() or (order == own)[live].all():
        return None
    return order if (alike[own, order][live] > 1 - 1e-5).all() else None


def _rows(values: Array) -> Array:
    """[C, N · places] float64."""
    return np.moveaxis(values, 1, 0).reshape(values.shape[1], -1).astype(np.float64)


def halved(a: Array, b: Array) -> str:
    """One side's values are numbers of half precision."""
    return REDUCED if _half(a) != _half(b) else ""


def _half(values: Array) -> bool:
    live = values[values != 0]
    with np.errstate(over="ignore"):
        return bool(len(live) > 8 and (live.astype(np.float16).astype(np.float32) == live).mean() > 0.99)


def rounded(a: Array, b: Array, from_the_start: bool) -> str:
    """The difference is as small as half precision makes it, and without a structure: not the same for all values of a
    channel, or, where the weights of channels were rounded, upwards for some and downwards for others."""
    size = max(float(np.abs(a).max()), 1e-12)
    apart = float(np.abs(b - a).max())
    scale, _, left = _affine(a, b)
    if apart < (1e-2 if from_the_start else 1.5e-3) * size and np.abs(left).max() > LEFT * apart:
        return REDUCED
    both_ways = len(scale) >= 8 and 0.2 < float((scale > 1).mean()) < 0.8
    return REDUCED if apart < 1e-3 * size and both_ways else ""


def _affine(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """For each channel the scale and shift that make b of a, where both are not cut off at zero; and what is left."""
    x, y = _rows(a), _rows(b)
    clipped = bool((a >= 0).all() and (b >= 0).all() and (a == 0).mean() > 0.05)
    live = ((x > 0) & (y > 0)) if clipped else np.ones_like(x, bool)
    weight = live.sum(axis=1).clip(1)
    mx, my = ((v * live).sum(axis=1) / weight for v in (x, y))
    dx, dy = (x - mx[:, None]) * live, (y - my[:, None]) * live
    power = (dx**2).sum(axis=1)
    scale = np.divide((dx * dy).sum(axis=1), power, out=np.ones(len(x)), where=power > 1e-20)
    shift = my - scale * mx
    left = (y - scale[:, None] * x - shift[:, None]) * live
    return scale, shift, left


def per_channel(a: Array, b: Array, normed: bool) -> str:
    """One factor for all, or a scale and a shift for each channel; `normed`: a batch normalisation stands here."""
    if a.shape[0] * a.shape[2] < 6:
        return ""
    scale, _, left = _affine(a, b)
    size = max(float(np.abs(b).max()), 1e-12)
    most = min(FIT * size, LEFT * float(np.abs(b - a).max()))
    if np.abs(left).max() > most:
        return ""
    used = np.abs(a).max(axis=(0, 2)) > 1e-3 * np.abs(a).max()
    factor = float(np.median(scale[used])) if used.any() else 1.0
    if not normed and abs(factor - 1) > 1e-2 and np.abs(b - factor * a).max() < most:
        return f"everything multiplied by {factor:.4g}"
    return NORMED


def per_position(a: Array, b: Array) -> str:
    """b − a = d · (a − β) with a d for each position and a β for each channel: what another epsilon does in a layer
    normalisation, (x − mean) / sqrt(variance + ε) · γ + β. Solved for d and β in turns."""
    x = np.moveaxis(a, 1, -1).reshape(-1, a.shape[1]).astype(np.float64)
    apart = np.moveaxis(b, 1, -1).reshape(x.shape) - x
    if min(x.shape) < 6:
        return ""
    shift = x.mean(axis=0)
    for _ in range(20):
        rest = x - shift
        scale = (apart * rest).sum(axis=1) / np.maximum((rest**2).sum(axis=1), 1e-12)
        shift = (scale[:, None] * (scale[:, None] * x - apart)).sum(axis=0) / max(float((scale**2).sum()), 1e-12)
    left = apart - scale[:, None] * (x - shift)
    if np.abs(left).max() > LEFT * np.abs(apart).max():
        return ""
    return "each position scaled by itself: the epsilon of a layer normalisation"


def interpolation(before: LayerSample | None, here: LayerSample, kinds: str) -> str:
    """Something here enlarges or shrinks maps by interpolating; kinds: of the layers since the last that agrees."""
    named = any(word in kinds for word in ("resiz", "upsampl", "interpol"))
    grown = before is not None and _grown(before.shape, here.shape) and "transpose" not in kinds
    return (
        "another interpolation: nearest against linear, or another way of aligning corners" if named or grown else ""
    )


def _grown(before: tuple[int, ...], here: tuple[int, ...]) -> bool:
    return len(before) == len(here) > 1 and all(n >= 1.5 * m for m, n in zip(before[1:], here[1:], strict=True))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "none": lambda z: z,
    "ReLU": lambda z: np.maximum(z, 0),
    "ReLU6": lambda z: np.clip(z, 0, 6),
    "exact GELU": lambda z: z * _phi(z),
    "tanh GELU": lambda z: 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))),
    "quick GELU": lambda z: z * sigmoid(1.702 * z),
    "SiLU": lambda z: z * sigmoid(z),
    "sigmoid": sigmoid,
    "hard sigmoid": lambda z: np.clip(z / 6 + 0.5, 0, 1),
    "hard sigmoid 0.2": lambda z: np.clip(0.2 * z + 0.5, 0, 1),
    "tanh": np.tanh,
    "hard swish": lambda z: z * np.clip(z / 6 + 0.5, 0, 1),
    "ELU": lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
    "SELU": lambda z: 1.0507009873554805 * np.where(z > 0, z, 1.6732632423543772 * np.expm1(np.minimum(z, 0))),
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


def activations(first: tuple[Array, Array], second: tuple[Array, Array]) -> str:
    """Both are known functions of the layer before: different ones. Each pair: the values before, and here."""
    names = []
    for before, value in (first, second):
        if before.shape != value.shape:
            return ""
        z = before.astype(np.float64)
        size = max(float(np.abs(value).max()), 1e-12)
        fits = {name: float(np.abs(f(z) - value).max()) / size for name, f in ACTIVATIONS.items()}
        name = min(fits, key=lambda key: fits[key])
        names.append(name if fits[name] < 1e-5 else "")
    if all(names) and names[0] != names[1]:
        return f"another activation: {names[0]} against {names[1]}"
    return ""
