"""Gradients by differences, for backends that run a model from given values (`resume`) and have no gradients.

Grad-CAM needs one number for each channel: the mean gradient, which is the derivative of the score as the whole channel
moves, ∂/∂ε y(A + ε·1_c) / (H·W). It is exact where the tail is linear. Where all positions of a channel are only
averaged behind the layer, each of them has that gradient, and the short tail behind the average is run alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from xcam import progress
from xcam.contract.outputs import one_output
from xcam.contract.types import Array, Layer, Outputs, Trace

Direction = Literal["means", "products"]
"""The sums of the gradients G over space that are right: S(G), or S(G·A)."""
Resume = Callable[[Trace, Array, Sequence[int], Sequence[Layer] | None], list[Trace]]
"""A trace, variants of its layer's value, their rows, and layers → the traces of these in that run; None: of its layer."""

STEP = 3e-3
"""The step, relative to the largest magnitude of the layer, of a tail that is not linear."""
COARSE = 0.02
"""The same for a model of reduced precision: a few steps of 8 bits; all channels move at once."""
LINEAR = 1e-3
"""A tail is linear where the second difference is smaller than this share of the first."""
EQUAL = {False: 1e-4, True: 1e-2}
"""A value is the mean of a layer where it differs by less than this share of the largest magnitude; True: a rounded value."""
BYTES, TOGETHER = 32_000_000, 2048
"""The largest size and the largest number of the variants of one batch."""
LOOKED_AT = 8
"""The number of vectors behind a layer of which one may be its mean."""


def gradients(
    layer: Layer,
    trace: Trace,
    cotangents: Sequence[Outputs],
    resume: Resume,
    layers: Sequence[Layer],
    direction: Direction = "means",
) -> Trace:
    """Return a trace with gradients that are computed by differences.

    Args:
        layer: The layer of the trace.
        trace: A trace without gradients.
        cotangents: One v for each gradient, shaped like the outputs.
        resume: Runs the tail.
        layers: All layers in execution order.
        direction: The sums over space that are right where positions of a channel differ in their gradients.

    Returns:
        The trace, with gradients that are equal at all positions of a channel. `by_channel` states whether the true ones differ.
    """
    if not cotangents:
        return trace
    value = trace.activations
    start = _average(layer, trace, resume, layers) or trace
    is_reduced = any("int" in each.dtype for each in layers)
    tail = _Tail(start, cotangents, resume, is_reduced)
    by_channel = start is trace and value.ndim > 2 and (is_reduced or not tail.is_even())
    moved = start.activations if by_channel and direction == "products" else np.ones_like(start.activations)
    slopes = tail.slopes(moved)
    sums = value if by_channel and direction == "products" else np.ones_like(value)
    divisor = sums.sum(axis=tuple(range(2, value.ndim)))
    results = []
    for slope in slopes:
        mean = np.divide(slope, divisor, out=np.zeros_like(slope), where=divisor != 0)
        whole = mean.reshape(*mean.shape, *[1] * (value.ndim - 2))
        results.append(np.ascontiguousarray(np.broadcast_to(whole, value.shape), np.float32))
    return replace(trace, gradients=results, by_channel=by_channel)


def _average(layer: Layer, trace: Trace, resume: Resume, layers: Sequence[Layer]) -> Trace | None:
    """Return the trace of the layer behind that has the mean over space, and through which everything passes."""
    value = trace.activations
    if value.ndim < 3:
        return None
    position = next((k for k, each in enumerate(layers) if each.name == layer.name), len(layers))
    vectors = [
        each
        for each in layers[position + 1 :]
        if not each.bypassed and not each.is_output and not each.has_space and each.shape[:1] == value.shape[1:2]
    ][:LOOKED_AT]
    if not vectors:
        return None
    mean = value.mean(axis=tuple(range(2, value.ndim)))
    rows = range(len(value))
    for each, behind in zip(vectors, resume(trace, value, rows, vectors), strict=True):
        error = (
            np.abs(behind.activations.reshape(len(mean), -1) - mean) if behind.activations.size == mean.size else None
        )
        if (
            error is not None
            and error.max() <= EQUAL["int" in each.dtype or "float16" in each.dtype] * np.abs(mean).max()
        ):
            return behind
    return None


@dataclass
class _Tail:
    """The part of a model behind a layer, as functions ⟨v, outputs⟩ of the layer's value."""

    trace: Trace
    cotangents: Sequence[Outputs]
    resume: Resume
    is_reduced: bool

    def slopes(self, direction: Array) -> list[Array]:
        """Return for each cotangent the derivative along each channel of `direction`, [N, C] each."""
        value = self.trace.activations
        images, channels = value.shape[:2]
        linear = not self.is_reduced and self._is_linear(direction)
        results = [np.zeros((images, channels)) for _ in self.cotangents]
        for n in range(images):
            size = float(np.abs(value[n]).max()) or 1.0
            unit = size / (float(np.abs(direction[n]).max()) or 1.0)
            signs = _hadamard(channels) if self.is_reduced else np.eye(channels, dtype=np.float32)
            step = unit * (COARSE if self.is_reduced else 1.0 if linear else STEP)
            above = self._values(n, direction[n], step * signs)
            below = self._values(n, direction[n], (0.0 if linear else -step) * signs)
            for m, result in enumerate(results):
                change = (above[m] - below[m]) / (step if linear else 2 * step)
                result[n] = change @ signs / len(signs) if self.is_reduced else change
        return results

    def is_even(self) -> bool:
        """Return whether all positions of each channel have the same gradient."""
        value = self.trace.activations
        signs = np.random.default_rng(0).choice([-1.0, 1.0], size=value.shape)
        axes = tuple(range(2, value.ndim))
        pattern = signs - signs.mean(axis=axes, keepdims=True)
        odd, even = (self._changes(step, STEP) for step in (pattern, signs))
        # Where all gradients are zero, they are equal.
        return bool(np.all(np.abs(odd[0] - odd[1]) <= LINEAR * np.abs(even[0] - even[1]) + self._noise))

    def _is_linear(self, direction: Array) -> bool:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], size=direction.shape[:2])
        up, down = self._changes(direction * signs.reshape(*signs.shape, *[1] * (direction.ndim - 2)), 1.0)
        size = np.abs(up) + np.abs(down)
        return bool(np.all(np.abs(up + down) <= LINEAR * size + self._noise))

    @property
    def _noise(self) -> float:
        """The rounding of ⟨v, outputs⟩."""
        sizes = [np.abs(_products(v, self.trace.outputs)).max() for v in self.cotangents]
        return 1e-6 * float(max(sizes))

    def _changes(self, pattern: Array, size: float) -> tuple[Array, Array]:
        """Return the changes of the values [M, N] by a pattern and by its opposite.

        Args:
            pattern: Of the shape of the layer's value.
            size: The largest magnitude of the change, relative to that of the value.
        """
        value = self.trace.activations
        axes = tuple(range(1, value.ndim))
        unit = np.abs(value).max(axis=axes, keepdims=True) / np.abs(pattern).max(axis=axes, keepdims=True)
        step = size * unit * pattern
        rows = list(range(len(value)))
        clean = np.stack([_products(v, self.trace.outputs) for v in self.cotangents])
        results = []
        for sign in (1, -1):
            (trace,) = self.resume(self.trace, (value + sign * step).astype(np.float32), rows, None)
            results.append(np.stack([_products(v, trace.outputs) for v in self.cotangents]) - clean)
        return results[0], results[1]

    def _values(self, n: int, direction: Array, steps: Array) -> list[Array]:
        """Return for each cotangent the values [R] for one image whose channels are moved by each row of `steps` [R, C]."""
        value, count = self.trace.activations[n], len(steps)
        results = [np.full(count, _products(v, self.trace.outputs)[n]) for v in self.cotangents]
        if not steps.any():
            return results
        together = max(1, min(TOGETHER, BYTES // value.nbytes))
        parts = [slice(k, min(k + together, count)) for k in range(0, count, together)]
        for part in progress.steps(parts, "channels"):
            moves = steps[part].reshape(*steps[part].shape, *[1] * (value.ndim - 1)) * direction
            variants = (value + moves).astype(np.float32, copy=False)
            (trace,) = self.resume(self.trace, variants, [n] * len(variants), None)
            for m, v in enumerate(self.cotangents):
                results[m][part] = _products(_row(v, n), trace.outputs)
        return results


def _hadamard(count: int) -> Array:
    """Return signs [R, count] with orthogonal columns, R ≥ count a power of two (Sylvester 1867).

    Each row moves all channels: rounding behind the layer has less weight than where one channel moves alone, by the
    square root of their number (Hotelling 1944).
    """
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < count:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(1, count))
    return np.asarray(matrix[:, :count] * signs, np.float32)


def _row(outputs: Outputs, n: int) -> Outputs:
    if isinstance(outputs, Mapping):
        return {name: array[n : n + 1] for name, array in outputs.items()}
    return outputs[n : n + 1]


def _products(v: Outputs, outputs: Outputs) -> Array:
    """Return ⟨v, outputs⟩ for each row of the outputs, float64; v may have one row for all."""
    names = outputs if isinstance(outputs, Mapping) else [None]
    total = np.zeros(())
    for name in names:
        a, b = (np.asarray(one_output(each, name), np.float64) for each in (v, outputs))
        total = total + (a.reshape(len(a), -1) * b.reshape(len(b), -1)).sum(axis=1)
    return np.asarray(total)
