"""A model with known derivatives. Its only layer is its input, with any number of spatial axes.

With m the mean of the input over space, the logits are m·W + (m·V)². With V = 0 the model is linear.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xcam import InputSpec, Layer, Trace
from xcam.contract import rows_of


class Quadratic:
    name = "quadratic"
    backend = "quadratic"
    output_activation = None
    labels = None
    notes: tuple[str, ...] = ()

    def __init__(
        self, space: tuple[int, ...] = (4, 6), channels: int = 3, bend: float = 1.0, capabilities: Any = None
    ) -> None:
        rng = np.random.default_rng(4)
        self.w = rng.normal(size=(channels, 2))
        self.v = bend * rng.normal(size=(channels, 2))
        self.input = InputSpec(space, channels=channels)
        self.layers = [Layer("features", "Conv", (channels, *space))]
        self.capabilities = frozenset({"gradients", "resume"} if capabilities is None else capabilities)
        self.passes = self.tails = 0

    def predict(self, x: Any) -> Any:
        self.passes += len(x)
        return self.outputs(x)

    def outputs(self, a: Any) -> Any:
        m = a.mean(axis=tuple(range(2, a.ndim))).astype(np.float64)
        return m @ self.w + (m @ self.v) ** 2

    def gradient(self, a: Any, cotangent: Any) -> Any:
        space = tuple(range(2, a.ndim))
        m = a.mean(axis=space).astype(np.float64)
        slope = cotangent @ self.w.T + (2 * cotangent * (m @ self.v)) @ self.v.T
        positions = np.prod(a.shape[2:])
        return np.broadcast_to((slope / positions).reshape(*slope.shape, *[1] * len(space)), a.shape).astype(
            np.float32
        )

    def trace(self, x: Any, layer: str, cotangents: Any = None) -> Trace:
        self.passes += len(x)
        outputs = self.outputs(x)
        return Trace(outputs, x, [self.gradient(x, v) for v in (cotangents(outputs) if cotangents else [])], x)

    def resume(
        self, trace: Trace, activations: Any, rows: Any = None, cotangents: Any = None, at: Any = None
    ) -> Trace:
        rows_of(rows, len(trace.state), len(activations))
        self.tails += len(activations)
        outputs = self.outputs(activations)
        gradients = [self.gradient(activations, v) for v in (cotangents(outputs) if cotangents else [])]
        return Trace(outputs, activations, gradients, activations)

    def activations(self, x: Any, layers: Any) -> Any:
        return dict.fromkeys(layers, x)
