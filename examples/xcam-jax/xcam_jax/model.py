"""The contract for a Function. See xcam.contract.recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xcam import InputSpec, Layer, ModelError
from xcam.contract import Array, Capability, Cotangents, Layout
from xcam.contract.layouts import shape_to_channels_first
from xcam.contract.messages import out_of_memory
from xcam.contract.recorded import RecordedModel
from xcam_jax import Function
from xcam_jax.graph import Graph

_each = jax.jit(lambda vjp, cotangents: jax.vmap(vjp)(cotangents)[0])


class JaxModel(RecordedModel["Recording"]):
    """A Function behind xcam's contract. jax.jit compiles it for each layer and shape of a batch."""

    backend = "jax"
    capabilities: frozenset[Capability] = frozenset({"gradients", "resume", "hvp"})

    def __init__(self, function: Function, name: str, spec: InputSpec, device: Any, labels: Any = None) -> None:
        super().__init__(name, spec, labels)
        self.function, self.device = replace(function, params=jax.device_put(function.params, device)), device
        if not self.layers:
            raise ModelError(f"cannot explain {name}: it names no value; write h = xcam_jax.layer('conv5', h) in it")

    def hvp(self, x: Array, layer: str, cotangents: Cotangents, vectors: Sequence[Array]) -> list[Array]:
        return self._hvp(x, layer, cotangents, vectors)

    def _record(self, shape: tuple[int, ...], batch: int) -> Recording:
        return Recording(self.function, shape, self.input.layout)

    @contextmanager
    def _running(self) -> Iterator[None]:
        with out_of_memory(signs=["RESOURCE_EXHAUSTED"]), jax.default_device(self.device):
            yield


class Recording:
    """The layers for one shape of an input. See xcam.contract.recorded.Recording."""

    batch = None
    current = True

    def __init__(self, function: Function, shape: tuple[int, ...], layout: Layout) -> None:
        self.params, self._graph = function.params, cache(partial(Graph, function))
        self.values_of = jax.jit(self._values_of, static_argnums=0)
        self.opened = jax.jit(self._opened, static_argnums=(0, 1))
        graph = self._graph((1, *shape))
        self.output_activations: Mapping[str, str | None] = graph.activations
        self.layers = {name: _layer(graph, name, *entry, layout) for name, entry in graph.layers.items()}

    def predict(self, x: Array) -> Mapping[str, Array]:
        return self.named(self.values_of((), self.params, x))

    def values(self, x: Array, layers: Sequence[str]) -> list[Array]:
        return [_float32(value) for value in self.values_of(tuple(layers), self.params, x)]

    def forward(self, x: Array, layer: str, differentiate: bool, replacement: Any = None) -> ForwardPass:
        return ForwardPass(self, x, layer, *self.opened(layer, differentiate, self.params, x, replacement))

    def named(self, outputs: Sequence[Any]) -> dict[str, Array]:
        return dict(zip(self.output_activations, map(_float32, outputs), strict=True))

    def _values_of(self, layers: tuple[str, ...], params: Any, x: Any) -> list[Any]:
        graph = self._graph(x.shape)
        return graph.run([graph.layers[name][0] for name in layers] or graph.ends, params, x)

    def _opened(self, layer: str, differentiate: bool, params: Any, x: Any, value: Any) -> tuple[Any, Any, Any]:
        """Return the layer's value, unless it is given; the outputs; and, to differentiate, the vjp of the tail."""
        graph = self._graph(x.shape)
        var, _ = graph.layers[layer]
        value = graph.run([var], params, x)[0] if value is None else value.astype(var.aval.dtype)
        tail = partial(graph.run, graph.ends, params, x, var)  # XLA computes once what both parts share
        return value, *(jax.vjp(tail, value) if differentiate else (tail(value), None))


@dataclass(eq=False)
class ForwardPass:
    """See xcam.contract.recorded.ForwardPass."""

    recording: Recording
    x: Array
    layer: str
    leaf: Any
    results: Any
    vjp: Any

    @property
    def outputs(self) -> Mapping[str, Array]:
        return self.recording.named(self.results)

    @property
    def value(self) -> Array:
        return _float32(self.leaf)

    def gradients(self, cotangents: Sequence[Mapping[str, Array]]) -> list[Array]:
        return [_float32(gradient) for gradient in _each(self.vjp, self._stacked(cotangents))]

    def hvp(self, cotangents: Sequence[Mapping[str, Array]], vectors: Sequence[Array]) -> Iterator[Array]:
        """See xcam.contract.recorded.SecondOrderPass."""

        def product(v: Any, vector: Any) -> Any:
            def gradient(value: Any) -> Any:
                return self.recording.opened(self.layer, True, self.recording.params, self.x, value)[2](v)[0]

            return jax.jvp(gradient, (self.leaf,), (vector,))[1]

        along = jnp.stack([jnp.asarray(vector) for vector in vectors]).astype(self.leaf.dtype)
        return map(_float32, jax.vmap(product)(self._stacked(cotangents), along))

    def resumed(self, value: Array, rows: list[int], differentiate: bool) -> ForwardPass:
        return self.recording.forward(self.x[rows], self.layer, differentiate, jnp.asarray(value))

    def _stacked(self, cotangents: Sequence[Mapping[str, Array]]) -> list[Any]:
        """Return for each output its M cotangents as one array."""
        names = zip(self.recording.output_activations, self.results, strict=True)
        return [jnp.stack([v[name] for v in cotangents]).astype(output.dtype) for name, output in names]


def _layer(graph: Graph, name: str, var: Any, kind: str, layout: Layout) -> Layer:
    shape = var.aval.shape
    layout = "tokens" if len(shape) == 3 else layout
    facts = graph.is_output(var), shape[0] != 1, graph.reaches_output(var)
    return Layer(name, kind, shape_to_channels_first(shape[1:], layout), layout, *facts)


def _float32(value: Any) -> Array:
    return np.array(value, np.float32)
