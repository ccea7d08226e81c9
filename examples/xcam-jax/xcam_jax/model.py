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

    def forward(
        self, x: Array, layers: Sequence[str], differentiate: bool, constants: Mapping[str, Any] | None = None
    ) -> ForwardPass:
        return ForwardPass(self, x, *self.opened(tuple(layers), differentiate, self.params, x, dict(constants or {})))

    def named(self, outputs: Sequence[Any]) -> dict[str, Array]:
        return dict(zip(self.output_activations, map(_float32, outputs), strict=True))

    def _values_of(self, layers: tuple[str, ...], params: Any, x: Any) -> list[Any]:
        graph = self._graph(x.shape)
        return graph.run([graph.layers[name][0] for name in layers] or graph.ends, params, x, {}, {})

    def _opened(
        self, layers: tuple[str, ...], differentiate: bool, params: Any, x: Any, constants: Mapping[str, Any]
    ) -> tuple[Any, Any, Any]:
        """Return the layers' values by name; the outputs; and, to differentiate, the vjp from the layers on."""
        graph = self._graph(x.shape)
        variables = {name: graph.layers[name][0] for name in (*layers, *constants)}
        known = {variables[name]: value.astype(variables[name].aval.dtype) for name, value in constants.items()}

        def run(shifts: Mapping[str, Any]) -> tuple[Any, Any]:
            wanted, by_variable = [variables[name] for name in layers], {variables[n]: s for n, s in shifts.items()}
            results = graph.run([*graph.ends, *wanted], params, x, known, by_variable)
            return results[: len(graph.ends)], dict(zip(layers, results[len(graph.ends) :], strict=True))

        if not differentiate:
            outputs, values = run({})
            return values, outputs, None
        zeros = {name: jnp.zeros(variables[name].aval.shape, variables[name].aval.dtype) for name in layers}
        outputs, vjp, values = jax.vjp(run, zeros, has_aux=True)
        return values, outputs, vjp


@dataclass(eq=False)
class ForwardPass:
    """See xcam.contract.recorded.ForwardPass."""

    recording: Recording
    x: Array
    leaves: Mapping[str, Any]
    results: Any
    vjp: Any

    @property
    def outputs(self) -> Mapping[str, Array]:
        return self.recording.named(self.results)

    def value(self, layer: str) -> Array:
        return _float32(self.leaves[layer])

    def gradients(self, cotangents: Sequence[Mapping[str, Array]]) -> list[Mapping[str, Array]]:
        stacked = _each(self.vjp, self._stacked(cotangents))
        return [{name: _float32(g[m]) for name, g in stacked.items()} for m in range(len(cotangents))]

    def hvp(self, layer: str, cotangents: Sequence[Mapping[str, Array]], vectors: Sequence[Array]) -> Iterator[Array]:
        """See xcam.contract.recorded.SecondOrderPass."""

        def product(v: Any, vector: Any) -> Any:
            def gradient(value: Any) -> Any:
                opened = self.recording.opened((layer,), True, self.recording.params, self.x, {layer: value})
                return opened[2](v)[0][layer]

            return jax.jvp(gradient, (self.leaves[layer],), (vector,))[1]

        along = jnp.stack([jnp.asarray(vector) for vector in vectors]).astype(self.leaves[layer].dtype)
        return map(_float32, jax.vmap(product)(self._stacked(cotangents), along))

    def resumed(
        self, values: Mapping[str, Array], rows: list[int], at: Sequence[str], differentiate: bool
    ) -> ForwardPass:
        constants = {name: jnp.asarray(value) for name, value in values.items()}
        return self.recording.forward(self.x[rows], at, differentiate, constants)

    def _stacked(self, cotangents: Sequence[Mapping[str, Array]]) -> list[Any]:
        """Return for each output its M cotangents as one array."""
        names = zip(self.recording.output_activations, self.results, strict=True)
        return [jnp.stack([v[name] for v in cotangents]).astype(output.dtype) for name, output in names]


def _layer(graph: Graph, name: str, var: Any, kind: str, layout: Layout) -> Layer:
    shape = var.aval.shape
    layout = "tokens" if len(shape) == 3 else layout
    facts = graph.is_output(var), shape[0] != 1, graph.reaches_output(var)
    passed = var not in graph.cuts
    return Layer(name, kind, shape_to_channels_first(shape[1:], layout), layout, *facts, bypassed=passed)


def _float32(value: Any) -> Array:
    return np.array(value, np.float32)
