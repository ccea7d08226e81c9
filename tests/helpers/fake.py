"""A backend for tests of the core: the NumPy example on a network whose maps can be computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from example import numpy_example
from xcam import Trace
from xcam.contract.plugins import BackendSpec, hookimpl

with numpy_example():
    from xcam_numpy.backend import NumpyModel
    from xcam_numpy.graph import Graph, Node


_pixels = np.random.default_rng(3).integers(0, 256, (3, 4, 6, 3), dtype=np.uint8)
_pixels.flags.writeable = False
IMAGES = list(_pixels)
"""Three images of the fake model's size; read-only, as tests share them."""


class FakeModel(NumpyModel):
    """scores = mean over space of x · W; layer `features` is x itself. It counts its traces and can falsify them."""

    name = backend = "fake"
    capabilities = frozenset({"gradients"})

    def __init__(self, weights: Any = None, labels: Any = ("cat", "dog")) -> None:
        self.weights = np.float32([[1, -1], [0, 1], [-1, 0]]) if weights is None else np.float32(weights)
        nodes = [
            Node("features", "Conv", ("x",), lambda x: x, lambda g, x: [g]),
            Node("loose", "Conv", ("x",), lambda x: x, lambda g, x: [g]),
            Node("pool", "AveragePool", ("features",), pool, lambda g, x: [spread(g, x.shape)]),
            Node("scores", "Dense", ("pool",), self.dense, lambda g, x: [spread(g @ self.weights.T, x.shape)]),
            Node("probabilities", "Softmax", ("scores",), lambda z: z, lambda g, z: [g]),
        ]
        super().__init__(Graph("fake", (3, 4, 6), nodes, ("probabilities",), labels))
        self.calls: list[int] = []
        self.spoil = lambda trace: trace
        self.spoil_outputs = lambda outputs: outputs

    def dense(self, x: Any) -> Any:
        return x.mean(axis=(2, 3)) @ self.weights

    def trace(self, x: Any, layer: str, cotangents: Any = None) -> Trace:
        self.calls.append(len(x))
        return self.spoil(super().trace(x, layer, cotangents))

    def _outputs(self, values: Any) -> Any:
        return self.spoil_outputs(super()._outputs(values))


def pool(x: Any) -> Any:
    """Return the means of 2×2 positions."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).mean(axis=(3, 5))


def spread(g: Any, shape: Any) -> Any:
    """Return the derivative of a mean: [N, C] or [N, C, h, w], in equal parts over the averaged positions."""
    g = g.reshape(*g.shape, *[1] * (4 - g.ndim))
    times = [a // b for a, b in zip(shape[2:], g.shape[2:], strict=True)]
    return np.kron(g, np.full(times, 1 / np.prod(times), np.float32)[None, None])


class FakeBackend:
    def load(
        self, source: Any, *, size: Any = None, device: Any = None, layout: Any = None, weights: Any = None
    ) -> Any:
        return FakeModel()


def spec(**changes: Any) -> BackendSpec:
    facts = {"name": "fake", "requires": (), "target": "fake:FakeBackend", "suffixes": (".fake",)}
    return BackendSpec(**(facts | changes))


@hookimpl
def xcam_backend() -> BackendSpec:
    return spec()
