"""Known functions from maps to maps of another size: kinds of interpolation and of pooling, by name.

Arrays are [N, C, *spatial]. Each function is given by its name, for an input and an output shape.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from xcam.contract import Array

Resampling = Callable[[Array], Array]


def interpolations(before: tuple[int, ...], after: tuple[int, ...]) -> dict[str, Resampling]:
    """Return the kinds of interpolation between two shapes of space."""
    if len(before) != len(after) or before == after or not after:
        return {}
    return {name: _separable(weights, before, after) for name, weights in INTERPOLATIONS.items()}


def _separable(
    weights: Callable[[int, int], Array], before: tuple[int, ...], after: tuple[int, ...]
) -> Callable[[Array], Array]:
    def apply(values: Array) -> Array:
        result = values.astype(np.float64)
        for k, (n, m) in enumerate(zip(before, after, strict=True)):
            if n != m:
                result = np.moveaxis(np.tensordot(weights(n, m), np.moveaxis(result, 2 + k, 0), 1), 0, 2 + k)
        return result

    return apply


def _half_pixel(n: int, m: int) -> Array:
    return (np.arange(m) + 0.5) * n / m - 0.5


def _corners(n: int, m: int) -> Array:
    return np.arange(m) * ((n - 1) / (m - 1) if m > 1 else 0.0)


def _asymmetric(n: int, m: int) -> Array:
    return np.arange(m) * n / m


def _nearest(indices: Callable[[int, int], Array]) -> Callable[[int, int], Array]:
    def weights(n: int, m: int) -> Array:
        return np.eye(n)[np.clip(indices(n, m), 0, n - 1).astype(int)]

    return weights


def _linear(positions: Callable[[int, int], Array]) -> Callable[[int, int], Array]:
    def weights(n: int, m: int) -> Array:
        at = np.clip(positions(n, m), 0, n - 1)
        return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n)[None]))

    return weights


def _cubic(positions: Callable[[int, int], Array], a: float) -> Callable[[int, int], Array]:
    def kernel(d: Array) -> Array:
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0.0))

    def weights(n: int, m: int) -> Array:
        at = positions(n, m)
        first = np.floor(at).astype(int)
        result = np.zeros((m, n))
        for k in range(-1, 3):
            index = first + k
            np.add.at(result, (np.arange(m), np.clip(index, 0, n - 1)), kernel(np.abs(at - index)))
        return result

    return weights


def _mean(n: int, m: int) -> Array:
    result = np.zeros((m, n))
    for k in range(m):
        low, high = k * n // m, -(-(k + 1) * n // m)
        result[k, low:high] = 1 / (high - low)
    return result


INTERPOLATIONS: dict[str, Callable[[int, int], Array]] = {
    "nearest": _nearest(lambda n, m: np.floor(np.round(_asymmetric(n, m), 9))),
    "nearest (half-pixel centres)": _nearest(lambda n, m: np.ceil(np.round(_half_pixel(n, m), 9) - 0.5)),
    "nearest (half-pixel centres, rounded up)": _nearest(lambda n, m: np.floor(np.round(_half_pixel(n, m), 9) + 0.5)),
    "linear": _linear(_half_pixel),
    "linear (aligned corners)": _linear(_corners),
    "linear (asymmetric)": _linear(_asymmetric),
    "cubic": _cubic(_half_pixel, -0.75),
    "cubic (-0.5)": _cubic(_half_pixel, -0.5),
    "cubic (aligned corners)": _cubic(_corners, -0.75),
    "area": _mean,
}
"""Name → the weights [after, before] along an axis."""


def poolings(before: tuple[int, ...], after: tuple[int, ...]) -> dict[str, Resampling]:
    """Return the kinds of pooling between two shapes of space; a vector behind a global pooling has the shape ()."""
    if not before or max(before) < 2 or (after and len(before) != len(after)):
        return {}
    if not after or max(after) == 1:
        axes = tuple(range(2, 2 + len(before)))
        keep = bool(after)
        return {
            "global maximum": lambda values: values.max(axis=axes, keepdims=keep),
            "global mean": lambda values: values.mean(axis=axes, keepdims=keep, dtype=np.float64),
        }
    result: dict[str, Resampling] = {}
    for kernel, strides, pads in _windows(before, after):
        size = "×".join(map(str, kernel))
        end = "" if not any(low or high for low, high in pads) else f", padded {pads[0][0]} and {pads[0][1]}"
        result[f"maximum of {size}{end}"] = _pooling(kernel, strides, pads, after, "maximum")
        result[f"mean of {size}{end}"] = _pooling(kernel, strides, pads, after, "mean")
        if end:
            result[f"mean of {size}{end}, padding not counted"] = _pooling(
                kernel, strides, pads, after, "mean of values"
            )
    return result


Window = tuple[tuple[int, ...], tuple[int, ...], tuple[tuple[int, int], ...]]


def _windows(before: tuple[int, ...], after: tuple[int, ...]) -> Iterator[Window]:
    """Yield kernels, strides and paddings that lead from one shape to the other."""
    for stride in dict.fromkeys((max(1, round(before[0] / after[0])), max(1, before[0] // after[0]))):
        for k in dict.fromkeys(k for k in (stride, 2, 3, stride + 1, 5) if k > 1):
            for low, extra in itertools.product(range(k // 2 + 1), (0, 1, -1)):
                pads = []
                for n, m in zip(before, after, strict=True):
                    need = (m - 1) * stride + k - n - low
                    high = low + extra
                    if high < 0 or not need <= high < need + stride:
                        break
                    pads.append((low, high))
                if len(pads) == len(before):
                    yield (k,) * len(before), (stride,) * len(before), tuple(pads)


def _pooling(
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[tuple[int, int], ...],
    after: tuple[int, ...],
    kind: str,
) -> Resampling:
    def windows(values: Array, fill: float) -> Array:
        padded = np.pad(values, ((0, 0), (0, 0), *pads), constant_values=fill)
        axes = tuple(range(2, values.ndim))
        view = np.lib.stride_tricks.sliding_window_view(padded, kernel, axes)
        return view[(slice(None), slice(None), *(slice(0, m * s, s) for m, s in zip(after, strides, strict=True)))]

    def apply(values: Array) -> Array:
        last = tuple(range(-len(kernel), 0))
        if kind == "maximum":
            return np.asarray(windows(values, -np.inf).max(axis=last))
        total = windows(values.astype(np.float64), 0).sum(axis=last)
        if kind == "mean":
            return np.asarray(total / np.prod(kernel))
        return np.asarray(total / windows(np.ones((1, 1, *values.shape[2:])), 0).sum(axis=last))

    return apply
