"""A Keras model on JAX, traced once for each batch size, and cut there: see xcam_keras.engines.jax_graph."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.extend.core import Var

from xcam.contract.caches import BoundedCache
from xcam.contract.messages import out_of_memory
from xcam.contract.outputs import main_first
from xcam.contract.recorded import NoGradient
from xcam.contract.types import Array, Layout
from xcam_keras import calls
from xcam_keras.engines import standard_device
from xcam_keras.engines.jax_graph import Cut, Graph, float32, shape_of

BATCH = 2
"""The batch size of the pass that lists the layers."""
BYPASSES = 4
"""Tails whose bypass values are kept for one pass."""
GRAPHS = 8
"""Number of batch sizes whose compiled functions are kept."""


def device_name(device: str | None) -> str | None:
    """Return JAX's platform and index of a device: `cpu` → `cpu:0`, `cuda:1` → `gpu:1`. Raises InputError."""
    return None if device is None else standard_device(device, {"cuda": "gpu"}, _devices(), "JAX")


def _devices() -> dict[str, Any]:
    return {f"{device.platform}:{device.id}": device for device in [*jax.devices(), *jax.devices("cpu")]}


@contextlib.contextmanager
def running(device: str | None) -> Iterator[None]:
    """Run on the device; exhausted memory is a MemoryError."""
    with out_of_memory(signs=["RESOURCE_EXHAUSTED"]), jax.default_device(_devices()[device] if device else None):
        yield


random_state = contextlib.nullcontext
"""See xcam_keras.engines: a layer draws from the generators of Keras, which are variables."""


class Recording:
    """See xcam.contract.recorded.Recording: a graph for each batch size."""

    current = True

    def __init__(
        self, model: keras.Model, shape: Sequence[int], dtype: str, layout: Layout, batch: int | None = None
    ) -> None:
        self.batch = batch
        self._model, self._shape, self._dtype = model, tuple(shape), dtype
        self._graphs: BoundedCache[int, Graph] = BoundedCache(GRAPHS)
        if not model.built:
            model(np.zeros((1, *shape), dtype), training=False)
        graph = self.graph(batch or BATCH)
        variables = dict(zip(graph.output_activations, graph.outputs, strict=True))
        self.output_activations = main_first(
            graph.output_activations,
            {name: shape_of(var) for name, var in variables.items()},
            {name: var if isinstance(var, Var) else None for name, var in variables.items()},
            lambda var: graph.ancestors([var]),
        )
        passed = graph.passed(next(iter(self.output_activations)))
        image = len(shape) == 3
        shapes = {name: shape_of(var) for name, var in graph.layers.items()}
        read = {
            output: graph.ancestors([v]) for output, v in zip(graph.output_activations, graph.outputs, strict=True)
        }
        reach = {
            output: {name for name, var in graph.layers.items() if var in variables}
            for output, variables in read.items()
        }
        tokens = [name for name, value in shapes.items() if calls.is_tokens(value[1:], image)]
        noise = np.random.default_rng(0).normal(size=(batch or BATCH, *shape))
        shares = calls.token_shares(reach, tokens, lambda names: graph.token_shares(names, noise))
        self.layers = {
            name: calls.described(
                name,
                call,
                shapes[name][1:],
                layout,
                image,
                is_output=graph.layers[name] in graph.ends,
                leads_to=calls.leads_to(name, reach, shares),
                differentiable=graph.layers[name] in graph.with_gradient,
                depends_on_input=graph.layers[name] in graph.from_x,
                bypassed=graph.layers[name] not in passed,
                folds_batch=len(shapes[name]) > 2 and shapes[name][0] != (batch or BATCH),
            )
            for name, call in graph.calls.items()
        }

    def graph(self, batch: int) -> Graph:
        """Return the graph for a batch size, traced at its first use."""
        return self._graphs.get(batch, lambda: Graph(self._model, (batch, *self._shape), self._dtype))

    def predict(self, x: Array) -> dict[str, Array]:
        """See xcam.contract.recorded.Recording."""
        graph = self.graph(len(x))
        return graph.named(graph.run("predict", [graph.x], graph.outputs)(graph.tensor(x)))

    def values(self, x: Array, layers: Sequence[str]) -> list[Array]:
        """See xcam.contract.recorded.Recording."""
        graph = self.graph(len(x))
        run = graph.run(tuple(layers), [graph.x], [graph.layers[name] for name in layers])
        return [float32(value) for value in run(graph.tensor(x))]

    def forward(self, x: Array, layers: Sequence[str], differentiate: bool) -> ForwardPass:
        """See xcam.contract.recorded.Recording."""
        graph = self.graph(len(x))
        return ForwardPass(self, graph.cut(layers), x, [graph.tensor(x)], differentiate)

    def row_by_row(self, at: Sequence[str], constants: Sequence[str], batch: int, other: int) -> bool:
        """Return whether bypass values have one row for each image, by comparing the graphs of two batch sizes."""
        if other == batch:
            other = BATCH if batch != BATCH else BATCH + 1
        shapes = [[shape_of(v) for v in self.graph(n).cut(at, constants).bypass] for n in (batch, other)]
        return len(shapes[0]) == len(shapes[1]) and all(
            a[:1] == (batch,) and b[:1] == (other,) and a[1:] == b[1:] for a, b in zip(*shapes, strict=True)
        )


class ForwardPass:
    """See xcam.contract.recorded.ForwardPass."""

    def __init__(
        self, recording: Recording, cut: Cut, x: Array, values: Sequence[jax.Array], differentiate: bool
    ) -> None:
        """Run a cut on the input, or on given and bypass values."""
        if differentiate and cut.without_gradient is not None:
            raise NoGradient(cut.without_gradient)
        self._recording, self._cut, self._x = recording, cut, x
        outputs, layers, self._transpose = cut.run(differentiate, values)
        self._values = dict(zip(cut.at, layers, strict=True))
        self._dtypes = [output.dtype for output in outputs]
        self.outputs = cut.graph.named(outputs)
        self._kept: BoundedCache[tuple[str, ...], list[jax.Array]] = BoundedCache(BYPASSES)
        """The bypass values of tails, for all rows."""

    def value(self, layer: str) -> Array:
        """See xcam.contract.recorded.ForwardPass."""
        return float32(self._values[layer])

    def gradients(self, cotangents: Sequence[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
        """See xcam.contract.recorded.ForwardPass."""
        for cotangent in cotangents:
            v = [jnp.asarray(cotangent[name], dtype) for name, dtype in zip(self.outputs, self._dtypes, strict=True)]
            yield {name: float32(g) for name, g in self._cut.backward(self._transpose, v).items()}

    def resumed(
        self, values: Mapping[str, Array], rows: list[int], at: Sequence[str], differentiate: bool
    ) -> ForwardPass:
        """See xcam.contract.recorded.ForwardPass."""
        recording, constants, count = self._recording, list(values), len(self._x)
        graph, x = recording.graph(len(rows)), self._x[rows]
        cut = graph.cut(at, constants)
        bypass: list[jax.Array] = []
        if cut.bypass:
            whole = recording.graph(count)
            if rows == list(range(count)) or recording.row_by_row(at, constants, count, len(rows)):
                kept = self._kept.get(
                    (*constants, "", *at), lambda: whole.cut(at, constants).head(whole.tensor(self._x))
                )
                bypass = kept if rows == list(range(count)) else [t[jnp.asarray(rows)] for t in kept]
            else:  # windows folded into the batch, or a value of the whole batch: computed again for these rows
                bypass = cut.head(graph.tensor(x))
        fed = {graph.layers[name]: graph.value(name, value) for name, value in values.items()}
        return ForwardPass(recording, cut, x, [*fed.values(), *bypass], differentiate)
