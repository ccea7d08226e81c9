"""Diagnosis by the values of two layers: pure functions of the samples [N, C, positions] of both.

Each returns a diagnosis, or None where the values do not fit it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xcam.comparison.alignment import LayerSample, error, permutation
from xcam.comparison.diagnosis import FLATTENING, Diagnosis, half_precision
from xcam.contract import Array
from xcam.targets import sigmoid

SCALED = (
    "each channel has another scale and offset: the statistics or the epsilon of a batch normalisation, or a bias"
)
LAYERNORM = Diagnosis("layernorm-epsilon", "each position has another scale: the epsilon of a layer normalisation")

FIT = 3e-3
"""The error that a cause may leave, as a share of the values' largest magnitude."""
BFLOAT16 = 6e-4
"""Rounding the weights to float16 changes a layer's values by less than this share, rounding them to bfloat16 by more."""
LEFT = 0.2
"""The share of the difference that a cause may leave."""


def reordered(a: LayerSample, b: LayerSample, spatial: LayerSample | None) -> Diagnosis | None:
    """Check whether the channels are the same in another order, each with its own scale and offset.

    Args:
        a: The layer of the first model.
        b: The layer of the second.
        spatial: The last spatial layer before it, in the first model: its values may be flattened in another order.
    """
    order = permutation(a.values, b.values)
    if order is None:
        order = _correlated_order(a.values, b.values)
    if order is None:
        return None
    if len(a.shape) > 1:
        return Diagnosis("channel-order", "its channels are in another order")
    if spatial is not None and np.prod(spatial.shape) == a.shape[0]:
        last = np.arange(a.shape[0]).reshape(spatial.shape[0], -1).T.ravel()  # channels first → channels last
        if any(error(a.values, b.values[:, flat]) < FIT for flat in (last, np.argsort(last))):
            return FLATTENING
    return Diagnosis("value-order", "its values are in another order")


def _correlated_order(a: Array, b: Array) -> Array | None:
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


def _rows(values: Array) -> Array:
    """Return [C, N · positions] float64."""
    return np.moveaxis(values, 1, 0).reshape(values.shape[1], -1).astype(np.float64)


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


def rounded(a: Array, b: Array, is_start: bool) -> Diagnosis | None:
    """Check whether the difference is that of half precision: small, and without a structure.

    The difference varies within a channel. Where the weights were rounded, it is positive for some channels and
    negative for others.

    Args:
        a: The values of the first model.
        b: The values of the second.
        is_start: Whether the layer is the first: all its weights may be rounded, so that the difference is larger.
    """
    size = max(float(np.abs(a).max()), 1e-12)
    difference = float(np.abs(b - a).max())
    scale, _, left = _affine(a, b)
    if difference < (1e-2 if is_start else 1.5e-3) * size and np.abs(left).max() > LEFT * difference:
        return half_precision(_finer(a, b))
    both_ways = len(scale) >= 8 and 0.2 < float((scale > 1).mean()) < 0.8
    return half_precision(_finer(a, b)) if difference < 1e-3 * size and both_ways else None


def _finer(a: Array, b: Array) -> str:
    """Return the type to which weights were rounded: the errors of bfloat16 are 8 times as large as those of float16."""
    error = float(np.linalg.norm(b - a)) / max(float(np.linalg.norm(a)), 1e-30)
    return "float16" if error < BFLOAT16 else "bfloat16"


def _affine(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """Return for each channel the scale and offset that map a to b, where neither is clipped at zero; and the remainder."""
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


def per_channel(a: Array, b: Array, has_batchnorm: bool) -> Diagnosis | None:
    """Check for one factor of all values, or for a scale and an offset of each channel.

    Args:
        a: The values of the first model.
        b: The values of the second.
        has_batchnorm: Whether there is a batch normalisation at the layer.
    """
    if a.shape[0] * a.shape[2] < 6:
        return None
    scale, _, left = _affine(a, b)
    size = max(float(np.abs(b).max()), 1e-12)
    most = min(FIT * size, LEFT * float(np.abs(b - a).max()))
    if np.abs(left).max() > most:
        return None
    used = np.abs(a).max(axis=(0, 2)) > 1e-3 * np.abs(a).max()
    factor = float(np.median(scale[used])) if used.any() else 1.0
    if not has_batchnorm and abs(factor - 1) > 1e-2 and np.abs(b - factor * a).max() < most:
        return Diagnosis("constant-factor", f"all values are multiplied by {factor:.4g}")
    return Diagnosis("batchnorm-statistics" if has_batchnorm else "channel-scale", SCALED)


def per_position(a: Array, b: Array) -> Diagnosis | None:
    """Check for another epsilon in a layer normalisation, (x − mean) / sqrt(variance + ε) · γ + β.

    Then b − a = d · (a − β) with a d for each position and a β for each channel. Solved for d and β in turns.
    """
    x = np.moveaxis(a, 1, -1).reshape(-1, a.shape[1]).astype(np.float64)
    difference = np.moveaxis(b, 1, -1).reshape(x.shape) - x
    if min(x.shape) < 6:
        return None
    shift = x.mean(axis=0)
    for _ in range(20):
        rest = x - shift
        scale = (difference * rest).sum(axis=1) / np.maximum((rest**2).sum(axis=1), 1e-12)
        shift = (scale[:, None] * (scale[:, None] * x - difference)).sum(axis=0) / max(float((scale**2).sum()), 1e-12)
    left = difference - scale[:, None] * (x - shift)
    if np.abs(left).max() > LEFT * np.abs(difference).max():
        return None
    return LAYERNORM


def interpolation(before: LayerSample | None, here: LayerSample, kinds: str) -> Diagnosis | None:
    """Check whether maps are resized by interpolation.

    Args:
        before: The last layer that agrees.
        here: The first that differs.
        kinds: The kinds of the layers between them, in lower case.
    """
    is_named = any(part in kinds for part in ("resiz", "upsampl", "interpol"))
    grown = before is not None and _grown(before.shape, here.shape) and "transpose" not in kinds
    if not is_named and not grown:
        return None
    return Diagnosis(
        "interpolation", "another interpolation: nearest against linear, or another alignment of corners"
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


def activations(first: tuple[Array, Array], second: tuple[Array, Array]) -> Diagnosis | None:
    """Check whether both layers are known functions of the layer before, and different ones.

    Args:
        first: In the first model, the values of the layer before and of this layer.
        second: The same in the second model.
    """
    names = []
    for before, value in (first, second):
        if before.shape != value.shape:
            return None
        z = before.astype(np.float64)
        size = max(float(np.abs(value).max()), 1e-12)
        fits = {name: float(np.abs(f(z) - value).max()) / size for name, f in ACTIVATIONS.items()}
        name = min(fits, key=lambda key: fits[key])
        names.append(name if fits[name] < 1e-5 else "")
    if all(names) and names[0] != names[1]:
        return Diagnosis("activation", f"another activation: {names[0]} against {names[1]}")
    return None
