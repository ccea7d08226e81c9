"""Measures of the values of two layers: pure functions of arrays [N, C, *spatial], or [N, C, positions], of both."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xcam.comparison.diagnosis import Diagnosis, half_precision
from xcam.contract import Array
from xcam.targets import sigmoid

SCALED = (
    "each channel has another scale and offset: the statistics or the epsilon of a batch normalisation, the scale of the "
    "weights, or a bias"
)
LEFT = 0.2
"""The share of the difference that has no structure, at least, where it is rounding."""
ROUNDED = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""The largest relative error of rounding to a type."""


def correlated_order(a: Array, b: Array) -> Array | None:
    """Return the order in which b's channels equal a's up to scale and offset; None where it does not exist or is trivial."""
    if a.shape != b.shape or a.shape[1] < 2 or a.shape[0] * a.shape[2] < 16:
        return None
    rows = []
    for value in (a, b):
        row = _rows(value)
        row -= row.mean(axis=1, keepdims=True)
        size = np.linalg.norm(row, axis=1, keepdims=True)
        rows.append(np.divide(row, size, out=np.zeros_like(row), where=size > 1e-9))
    correlations = np.abs(rows[0] @ rows[1].T)
    order = correlations.argmax(axis=1)
    live = correlations.max(axis=1) > 0
    trivial = np.arange(len(order))
    if not live.any() or len(set(order[live].tolist())) < live.sum() or (order == trivial)[live].all():
        return None
    return order if (correlations[trivial, order][live] > 1 - 1e-5).all() else None


def half_on_one_side(a: Array, b: Array) -> Diagnosis | None:
    """Check whether the values of one model, and not of the other, are numbers of half precision."""
    first, second = _half_type(a), _half_type(b)
    return half_precision(str(first or second)) if (first is None) != (second is None) else None


def _half_type(values: Array) -> str | None:
    """Return `float16` or `bfloat16` where nearly all values are numbers of that type."""
    live = np.ascontiguousarray(values[values != 0], np.float32)
    if len(live) <= 8:
        return None
    if ((live.view(np.uint32) & 0xFFFF) == 0).mean() > 0.99:
        return "bfloat16"
    with np.errstate(over="ignore"):
        return "float16" if (live.astype(np.float16).astype(np.float32) == live).mean() > 0.99 else None


def rounded(a: Array, b: Array) -> Diagnosis | None:
    """Check whether the difference is that of weights rounded to half precision: of its size, and without a structure.

    Rounding n weights of both signs gives a relative error of about 2⁻¹¹ / √3 · 0.7 (float16), whatever n is. The
    difference varies within a channel, or is positive for some channels and negative for others.
    """
    error = _norm(b - a) / max(_norm(a), 1e-30)
    positions = a.reshape(*a.shape[:2], -1), b.reshape(*b.shape[:2], -1)
    scale, _, left = affine(*positions)
    is_noise = _norm(left) > LEFT * _norm(b - a)
    both_ways = len(scale) >= 8 and 0.2 < float((scale > 1).mean()) < 0.8
    if not is_noise and not both_ways:
        return None
    for dtype, largest in ROUNDED.items():
        ratio = error / (0.7 * largest / 3**0.5)
        if 0.35 < ratio < 2.8:  # the types are 8 times apart
            text = f"weights were rounded to {dtype}: the difference is {ratio:.2g} times the one that this explains"
            return Diagnosis("half-precision", text)
    return None


def _norm(values: Array) -> float:
    return float(np.linalg.norm(values.ravel().astype(np.float64)))


def live(a: Array, b: Array, both: bool = True) -> Array:
    """Return where values [N, C, positions] were not clipped at zero, as by a ReLU.

    Args:
        a: The values of the first model.
        b: The values of the second.
        both: Whether neither may be clipped; else only the second.
    """
    clipped = bool((a >= 0).all() and (b >= 0).all() and (a == 0).mean() > 0.05)
    if not clipped:
        return np.ones_like(a, bool)
    return (a > 0) & (b > 0) if both else b > 0


def affine(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """Return for each channel the scale and offset that map a to b, where neither is clipped; and the remainder."""
    x, y = _rows(a), _rows(b)
    used = _rows(live(a, b)).astype(bool)
    weight = used.sum(axis=1).clip(1)
    mx, my = ((v * used).sum(axis=1) / weight for v in (x, y))
    dx, dy = (x - mx[:, None]) * used, (y - my[:, None]) * used
    power = (dx**2).sum(axis=1)
    scale = np.divide((dx * dy).sum(axis=1), power, out=np.ones(len(x)), where=power > 1e-20)
    shift = my - scale * mx
    left = (y - scale[:, None] * x - shift[:, None]) * used
    return scale, shift, left


def _rows(values: Array) -> Array:
    """Return [C, N · positions] float64."""
    return np.moveaxis(values, 1, 0).reshape(values.shape[1], -1).astype(np.float64)


def per_position(a: Array, b: Array) -> Array | None:
    """Return b with the scale of each position that fits a: another epsilon in a layer normalisation.

    In (x − mean) / sqrt(variance + ε) · γ + β, another ε gives b − a = d · (a − β) with a d for each position and a β for
    each channel. Solved for d and β in turns. None where there are too few values.
    """
    x = np.moveaxis(a, 1, -1).reshape(-1, a.shape[1]).astype(np.float64)
    y = np.moveaxis(b, 1, -1).reshape(x.shape).astype(np.float64)
    difference = y - x
    if min(x.shape) < 6:
        return None
    shift = x.mean(axis=0)
    for _ in range(20):
        rest = x - shift
        scale = (difference * rest).sum(axis=1) / np.maximum((rest**2).sum(axis=1), 1e-12)
        shift = (scale[:, None] * (scale[:, None] * x - difference)).sum(axis=0) / max(float((scale**2).sum()), 1e-12)
    undone = y - scale[:, None] * (x - shift)
    return np.moveaxis(undone.reshape(np.moveaxis(a, 1, -1).shape), -1, 1)


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
