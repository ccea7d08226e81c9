"""The contract for a Function. See xcam.contract.Model."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xcam import InputError, InputSpec, Layer, ModelError, Trace
from xcam.contract import DEFAULT_SIZE, Array, Capability, Cotangents, Outputs, rows_of
from xcam.errors import first_line, nearest
from xcam_jax import Function
from xcam_jax.graph import Graph

_each = jax.jit(lambda vjp, cotangents: jax.vmap(vjp)(cotangents)[0])


class JaxModel:
    """What runs is compiled by jax.jit, for each layer and each shape of a batch."""

    backend = "jax"
    capabilities: frozenset[Capability] = frozenset({"gradients", "resume", "hvp"})

    def __init__(self, function: Function, name: str, spec: InputSpec, device: Any, labels: Any = None) -> None:
        self.params = jax.device_put(function.params, device)
        self.name, self.input, self.device, self.labels, self.notes = name, spec, device, labels, ()
        self._graph = cache(partial(Graph, function))
        self._values = jax.jit(self._values_of, static_argnums=0)
        self._opened = jax.jit(self._open, static_argnums=(0, 1))
        shape = [1, *(spec.size or DEFAULT_SIZE)]
        shape.insert(1 if spec.layout == "channels_first" else 3, spec.channels)
        try:
            graph = self._graph(tuple(shape))
        except Exception as error:
            told = f"{name} cannot run on a batch of shape {shape}: {first_line(error)}"
            raise ModelError(f"{told}; give the size=(H, W) that it takes, and a call of the batch alone") from error
        if not graph.layers:
            raise ModelError(
                f"{name} names no value; write h = xcam_jax.layer('conv5', h) in it, or load an nnx.Module"
            )
        kinds = graph.activations
        self.output_activation = kinds if len(kinds) > 1 else next(iter(kinds.values()))
        self.layers = [self._layer(graph, name, *found) for name, found in graph.layers.items()]

    def predict(self, x: Array) -> Outputs:
        with self._running(x) as graph:
            return _named(graph, self._values((), self.params, x))

    def activations(self, x: Array, layers: Sequence[str]) -> Mapping[str, Array]:
        with self._running(x, *layers):
            return dict(zip(layers, map(self._ours, self._values(tuple(layers), self.params, x)), strict=True))

    def trace(self, x: Array, layer: str, cotangents: Cotangents | None = None, put: Array | None = None) -> Trace:
        """As in the contract; with `put` in place of the layer's own value where it is given."""
        with self._running(x, layer) as graph:
            value = None if put is None else self._theirs(put)
            value, outputs, vjp = self._opened(layer, cotangents is not None, self.params, x, value)
            said = _named(graph, outputs)
            stacked = _stacked(graph, outputs, cotangents(said)) if cotangents else []
            gradients = [self._ours(gradient) for gradient in _each(vjp, stacked)] if stacked else []
            return Trace(said, self._ours(value), gradients, (x, layer))

    def resume(
        self, trace: Trace, activations: Array, rows: Any = None, cotangents: Cotangents | None = None
    ) -> Trace:
        x, layer = trace.state
        return self.trace(x[rows_of(rows, len(x), len(activations))], layer, cotangents, activations)

    def hvp(self, x: Array, layer: str, cotangents: Cotangents, vectors: Sequence[Array]) -> list[Array]:
        with self._running(x, layer) as graph:
            value, outputs, _ = self._opened(layer, False, self.params, x, None)

            def product(v: Any, vector: Any) -> Any:
                def gradient(value: Any) -> Any:
                    return self._opened(layer, True, self.params, x, value)[2](v)[0]

                return jax.jvp(gradient, (value,), (vector,))[1]

            stacked = _stacked(graph, outputs, cotangents(_named(graph, outputs)))
            along = jnp.stack([self._theirs(vector) for vector in vectors]).astype(value.dtype)
            return [self._ours(found) for found in jax.vmap(product)(stacked, along)]

    def _values_of(self, layers: tuple[str, ...], params: Any, x: Any) -> list[Any]:
        graph = self._graph(x.shape)
        return graph.run([graph.layers[name][0] for name in layers] or graph.ends, params, x)

    def _open(self, layer: str, grad: bool, params: Any, x: Any, value: Any) -> tuple[Any, Any, Any]:
        """The layer's value, unless it is given; the outputs; and, where `grad`, the vjp of what follows the layer."""
        graph = self._graph(x.shape)
        var, _ = graph.layers[layer]
        value = graph.run([var], params, x)[0] if value is None else value.astype(var.aval.dtype)
        tail = partial(graph.run, graph.ends, params, x, var)  # XLA makes once what both parts share
        return value, *(jax.vjp(tail, value) if grad else (tail(value), None))

    @contextlib.contextmanager
    def _running(self, x: Array, *layers: str) -> Iterator[Graph]:
        """The graph for a batch, and the model's device. Memory that runs out is a MemoryError."""
        graph = self._graph(x.shape)
        for name in layers:
            if name not in graph.layers:
                raise InputError(f"no layer {name!r} in {self.name}; {nearest(name, graph.layers)}")
        try:
            with jax.default_device(self.device):
                yield graph
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise MemoryError(first_line(error)) from error

    def _layer(self, graph: Graph, name: str, var: Any, kind: str) -> Layer:
        value = np.broadcast_to(0, var.aval.shape)
        layout = "tokens" if value.ndim == 3 else self.input.layout
        place = graph.is_output(var), len(value) != 1, graph.reaches_output(var)
        return Layer(name, kind, self._ours(value).shape[1:], layout, *place)

    def _channels(self, value: Any) -> int:
        """The axis on which the model keeps them."""
        return 1 if self.input.layout == "channels_first" and value.ndim != 3 else -1

    def _ours(self, value: Any) -> Array:
        return np.moveaxis(np.array(value, np.float32), self._channels(value), 1)

    def _theirs(self, value: Array) -> Any:
        return jnp.asarray(np.moveaxis(value, 1, self._channels(value)))


def _named(graph: Graph, outputs: Sequence[Any]) -> Outputs:
    arrays = [np.array(output, np.float32) for output in outputs]
    return dict(zip(graph.activations, arrays, strict=True)) if len(arrays) > 1 else arrays[0]


def _stacked(graph: Graph, outputs: Sequence[Any], given: Sequence[Outputs]) -> list[Any]:
    """For each output its M cotangents as one array; nothing where there are none."""
    rows = [[v[name] for name in graph.activations] if isinstance(v, Mapping) else [v] for v in given]
    return [jnp.stack(vs).astype(o.dtype) for o, *vs in zip(outputs, *rows, strict=True)] if rows else []
