"""A Keras model on JAX, traced once for each batch size, and cut there: see xcam_keras.engines.jax_graph."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from xcam.contract import Array
from xcam.errors import InputError
from xcam_keras.engines import Call
from xcam_keras.engines.jax_graph import Cut, Graph

BATCH = 2
"""The batch size that shows the layers."""
GRAPHS = 8
"""Batch sizes whose compiled functions are kept."""


def device_name(device: str | None) -> str | None:
    """`cpu`, `cuda`, `gpu:1` → JAX's platform and number, `cpu:0`. Raises InputError when it is not there."""
    if device is None:
        return None
    kind, _, number = device.lower().partition(":")
    name = f"{'gpu' if kind == 'cuda' else kind}:{number or 0}"
    if name not in _devices():
        raise InputError(f"no device {device!r} here; JAX sees: {', '.join(_devices())}")
    return name


def _devices() -> dict[str, Any]:
    every = [*jax.devices(), *jax.devices("cpu")]
    return {f"{device.platform}:{device.id}": device for device in every}


@contextlib.contextmanager
def running(device: str | None) -> Iterator[None]:
    """On the device; memory that runs out is a MemoryError."""
    try:
        with jax.default_device(_devices()[device] if device else None):
            yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise MemoryError(str(error).splitlines()[0]) from error
        raise


class Recording:
    """The forward pass of one model for one input shape, as a graph for each batch size."""

    def __init__(self, model: keras.Model, shape: Sequence[int | None], dtype: str) -> None:
        self._model, self._shape, self._dtype = model, tuple(shape), dtype
        self._graphs: dict[int, Graph] = {}
        self._lock = threading.RLock()
        if not model.built:
            model(np.zeros((1, *shape), dtype), training=False)
        graph = self.graph(BATCH)
        self.activations = graph.activations
        self.calls = {
            name: Call(
                layer,
                tuple(graph.layers[name].aval.shape[1:]),
                is_output=graph.layers[name] in graph.ends,
                reaches_output=graph.layers[name] in graph.reach,
                folds_batch=len(graph.layers[name].aval.shape) > 2 and graph.layers[name].aval.shape[0] != BATCH,
            )
            for name, layer in graph.kinds.items()
        }

    def graph(self, batch: int) -> Graph:
        """The graph for a batch size, traced when it is first asked for."""
        with self._lock:
            if batch not in self._graphs:
                while len(self._graphs) >= GRAPHS:
                    del self._graphs[next(iter(self._graphs))]
                self._graphs[batch] = Graph(self._model, (batch, *self._shape), self._dtype)
            return self._graphs[batch]

    def predict(self, x: Array) -> list[Array]:
        """See xcam_keras.engines.Recording."""
        graph = self.graph(len(x))
        run = graph.once("predict", lambda: graph.run([graph.x], graph.outputs))
        return [_float32(t) for t in run(graph.tensor(x))]

    def values(self, x: Array, names: Sequence[str]) -> list[Array]:
        """See xcam_keras.engines.Recording."""
        graph = self.graph(len(x))
        run = graph.once(("values", *names), lambda: graph.run([graph.x], [graph.layers[name] for name in names]))
        return [_float32(t) for t in run(graph.tensor(x))]

    def open(self, x: Array, name: str, differentiate: bool) -> Opened:
        """See xcam_keras.engines.Recording."""
        graph = self.graph(len(x))
        cut = graph.cut(name)
        outputs, value, frontier, back = cut.forward(differentiate, graph.tensor(x))
        return Opened(self, name, cut, x, outputs, value, frontier, back)

    def row_by_row(self, name: str, batch: int, other: int) -> bool:
        """Whether what passes the layer by has one row for each picture: seen by comparing two batch sizes."""
        if other == batch:
            other = BATCH if batch != BATCH else BATCH + 1
        shapes = [[v.aval.shape for v in self.graph(n).cut(name).frontier] for n in (batch, other)]
        return len(shapes[0]) == len(shapes[1]) and all(
            a[:1] == (batch,) and b[:1] == (other,) and a[1:] == b[1:] for a, b in zip(*shapes, strict=True)
        )


class Opened:
    """See xcam_keras.engines.Opened."""

    def __init__(
        self, recording: Recording, name: str, cut: Cut, x: Array, said: Any, value: Any, frontier: Any, back: Any
    ) -> None:
        self._recording, self._name, self._cut, self._x = recording, name, cut, x
        self._said, self._value, self._frontier, self._back = said, value, frontier, back

    @property
    def outputs(self) -> list[Array]:
        return [_float32(t) for t in self._said]

    @property
    def value(self) -> Array:
        return _float32(self._value)

    def gradient(self, cotangents: Sequence[Array]) -> Array:
        """See xcam_keras.engines.Opened."""
        v = [jnp.asarray(c, output.dtype) for c, output in zip(cotangents, self._said, strict=True)]
        return _float32(self._cut.backward(self._back, v))

    def resumed(self, value: Array, rows: Sequence[int], differentiate: bool) -> Opened:
        """See xcam_keras.engines.Opened."""
        graph = self._recording.graph(len(rows))
        cut, x = graph.cut(self._name), self._x[rows]
        if list(rows) == list(range(len(self._x))):
            frontier = self._frontier
        elif self._recording.row_by_row(self._name, len(self._x), len(rows)):
            frontier = [t[jnp.asarray(rows)] for t in self._frontier]
        else:  # windows folded into the batch, or a value of the whole batch: made anew for these rows
            frontier = cut.side(graph.tensor(x))
        layer = jnp.asarray(value, cut.layer.aval.dtype)
        outputs, back = cut.resume(differentiate, layer, frontier)
        return Opened(self._recording, self._name, cut, x, outputs, layer, frontier, back)


def _float32(tensor: jax.Array) -> Array:
    return np.array(tensor, np.float32)
