"""The contract for a Graph: run forwards, and backwards from the outputs to the layer. See xcam.contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xcam import InputError, InputSpec, Layer, Trace
from xcam.contract import Array, Capability, Cotangents, Layout, Names, Outputs, rows_of
from xcam.contract.graphs import cuts
from xcam.contract.outputs import ask, one_or_mapping
from xcam_numpy.graph import Graph, Node

Values = Mapping[str, Array]
LAYOUTS: dict[int, Layout] = {2: "tokens"}  # by the number of axes without the batch


class NumpyBackend:
    """The NumPy backend."""

    def load(
        self, source: Any, *, size: Any = None, device: Any = None, layout: Any = None, weights: Any = None
    ) -> NumpyModel:
        """Return the model of a Graph."""
        if not isinstance(source, Graph):
            raise InputError(f"cannot load {source}: not a Graph; give one, or module:function that returns one")
        return NumpyModel(source)


class NumpyModel:
    """A Graph behind xcam's contract. See xcam.contract.Model."""

    backend = "numpy"
    capabilities: frozenset[Capability] = frozenset({"gradients", "resume"})
    notes: Sequence[str] = ()

    def __init__(self, graph: Graph) -> None:
        self.graph, self.name, self.labels = graph, graph.name, graph.labels
        self.input = InputSpec(graph.shape[1:], channels=graph.shape[0], fixed=True)
        under = {node.name: node.inputs[0] for node in graph.nodes if node.kind == "Softmax"}
        self.logits = {name: under.get(name, name) for name in graph.outputs}  # the node to read for each output
        self.output_activation = one_or_mapping(
            {name: "softmax" if name in under else None for name in graph.outputs}
        )
        reads = {node.name: node.inputs for node in graph.nodes}
        self.cuts = cuts(["x", *reads], lambda name: reads.get(name, ()), "x", next(iter(self.logits.values())))
        values = graph.run({"x": np.zeros((1, *graph.shape), np.float32)})
        self.layers = [self._layer(n, values[n.name].shape[1:]) for n in graph.nodes if n.kind != "Softmax"]

    def predict(self, x: Array) -> Outputs:
        return self._outputs(self.graph.run({"x": x}))

    def activations(self, x: Array, layers: Sequence[str]) -> Values:
        values = self.graph.run({"x": x})
        return {name: values[name].astype(np.float32, copy=False) for name in layers}

    def trace(self, x: Array, layer: str | Names, cotangents: Cotangents | None = None) -> Any:
        return self._finish(layer, self.graph.run({"x": x}), frozenset(), cotangents)

    def resume(
        self,
        trace: Trace,
        activations: Array,
        rows: Sequence[int] | None = None,
        cotangents: Cotangents | None = None,
        at: str | Names | None = None,
    ) -> Any:
        layer, values, constants = trace.state
        rows, behind = rows_of(rows, len(values["x"]), len(activations)), self._behind([layer], constants)
        bypass = {name: value[rows] for name, value in values.items() if name not in behind}
        values = self.graph.run(bypass | {layer: activations})
        return self._finish(layer if at is None else at, values, constants | {layer}, cotangents)

    def _finish(
        self, layers: str | Names, values: Values, constants: frozenset[str], cotangents: Cotangents | None
    ) -> Any:
        names, outputs = [layers] if isinstance(layers, str) else list(layers), self._outputs(values)
        gradients = [self._gradients(names, values, constants, v) for v in ask(cotangents, outputs, self.logits)]
        traces = []
        for name in names:
            value, slopes = values[name].astype(np.float32, copy=False), [each[name] for each in gradients]
            traces.append(Trace(outputs, value, slopes, (name, values, constants)))
        return traces[0] if isinstance(layers, str) else traces

    def _gradients(self, layers: Sequence[str], values: Values, constants: frozenset[str], v: Values) -> Values:
        behind = self._behind(layers, constants)
        gradients = {name: np.zeros_like(values[name]) for name in behind}
        for name, node_name in self.logits.items():
            gradients[node_name] = gradients.get(node_name, 0) + v[name]
        for node in reversed(self.graph.nodes):
            if node.name in behind - constants and behind & set(node.inputs):
                parts = node.backward(gradients[node.name], *(values[name] for name in node.inputs))
                for name, part in zip(node.inputs, parts, strict=True):
                    if name in behind:  # the backward pass stops at the layers
                        gradients[name] = gradients[name] + part
        return {name: gradients[name].astype(np.float32) for name in layers}

    def _behind(self, layers: Sequence[str], constants: frozenset[str] = frozenset()) -> set[str]:
        behind = set(layers)
        for node in self.graph.nodes:
            behind |= {node.name} if node.name not in constants and behind & set(node.inputs) else set()
        return behind

    def _outputs(self, values: Values) -> Outputs:
        arrays = {name: values[node_name].astype(np.float32, copy=False) for name, node_name in self.logits.items()}
        return one_or_mapping(arrays)

    def _layer(self, node: Node, shape: tuple[int, ...]) -> Layer:
        logits, layout = set(self.logits.values()), LAYOUTS.get(len(shape), "channels_first")
        reaches, passed = bool(logits & self._behind([node.name])), node.name not in self.cuts
        return Layer(
            node.name, node.kind, shape, layout, node.name in logits, reaches_output=reaches, bypassed=passed
        )
