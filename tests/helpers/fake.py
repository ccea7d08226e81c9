"""A backend in NumPy alone, for tests of the core: activations are the input, class scores a weighted mean of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from xcam import InputSpec, Layer, Trace
from xcam.plugins import BackendSpec, hookimpl


class FakeModel:
    """outputs = mean over space of x · W; layer `features` is x itself, `scores` its end."""

    name = "fake"
    backend = "fake"
    activation = "softmax"
    capabilities = frozenset({"gradients"})
    notes: tuple[str, ...] = ()

    def __init__(self, weights: Any = None, labels: Any = ("cat", "dog")) -> None:
        self.weights = np.float32([[1, -1], [0, 1], [-1, 0]]) if weights is None else np.float32(weights)
        self.labels = labels
        self.input = InputSpec((4, 6), layout="channels_first")
        self.calls: list[int] = []
        self.spoil = lambda trace: trace

    @property
    def layers(self) -> list[Layer]:
        return [
            Layer("features", "Conv", (3, 4, 6)),
            Layer("loose", "Conv", (3, 4, 6), reaches_output=False),
            Layer("pool", "AveragePool", (3, 2, 3)),
            Layer("scores", "Dense", (2,), is_output=True),
        ]

    def predict(self, x: Any) -> Any:
        return x.mean(axis=(2, 3)) @ self.weights

    def activations(self, x: Any, layers: Any) -> Any:
        return dict.fromkeys(layers, x)

    def trace(self, x: Any, layer: str, seeds: Any = None) -> Trace:
        self.calls.append(len(x))
        outputs = self.predict(x)
        places = x.shape[2] * x.shape[3]
        gradients = [
            np.broadcast_to((v @ self.weights.T)[:, :, None, None] / places, x.shape).astype(np.float32)
            for v in (seeds(outputs) if seeds else [])
        ]
        return self.spoil(Trace(outputs, x, gradients))

    def resume(self, *_: Any, **__: Any) -> Trace:
        raise NotImplementedError


class FakeBackend:
    def load(self, source: Any, **_: Any) -> FakeModel:
        return FakeModel()


def spec(**changes: Any) -> BackendSpec:
    facts = {"name": "fake", "requires": (), "target": "fake:FakeBackend", "suffixes": (".fake",)}
    return BackendSpec(**(facts | changes))


@hookimpl
def xcam_backend() -> BackendSpec:
    return spec()
