"""xcam's contract for a Graph: it is walked forwards, and backwards from the outputs to the layer. See xcam.contract."""

import numpy as np

from xcam import InputError, InputSpec, Layer, Trace
from xcam.contract import rows_of
from xcam_numpy.graph import Graph


class NumpyBackend:
    def load(self, source, *, size=None, device=None, layout=None, weights=None):
        if not isinstance(source, Graph):
            raise InputError(f"{source} is no xcam_numpy.graph.Graph; give one, or module:function that makes one")
        return NumpyModel(source)


class NumpyModel:
    backend = "numpy"
    capabilities = frozenset({"gradients", "resume"})
    notes = ()

    def __init__(self, graph):
        self.graph, self.name, self.labels = graph, graph.name, graph.labels
        self.input = InputSpec(graph.shape[1:], channels=graph.shape[0], fixed=True)
        under = {node.name: node.inputs[0] for node in graph.nodes if node.kind == "Softmax"}
        self.ends = {name: under.get(name, name) for name in graph.outputs}  # each output's logits
        cut = {name: "softmax" if name in under else None for name in graph.outputs}
        self.output_activation = cut if len(cut) > 1 else cut[graph.outputs[0]]
        values = graph.run({"x": np.zeros((1, *graph.shape), np.float32)})
        self.layers = [self._layer(n, values[n.name].shape[1:]) for n in graph.nodes if n.kind != "Softmax"]

    def predict(self, x):
        return self._outputs(self.graph.run({"x": x}))

    def activations(self, x, layers):
        values = self.graph.run({"x": x})
        return {name: values[name].astype(np.float32, copy=False) for name in layers}

    def trace(self, x, layer, cotangents=None):
        return self._traced(layer, self.graph.run({"x": x}), cotangents)

    def resume(self, trace, activations, rows=None, cotangents=None):
        layer, values = trace.state
        picked, behind = rows_of(rows, len(values["x"]), len(activations)), self._from(layer)
        kept = {name: value[picked] for name, value in values.items() if name not in behind}
        return self._traced(layer, self.graph.run(kept | {layer: activations}), cotangents)

    def _traced(self, layer, values, cotangents):
        outputs = self._outputs(values)
        gradients = [self._gradient(layer, values, v) for v in (cotangents(outputs) if cotangents else [])]
        return Trace(outputs, values[layer].astype(np.float32, copy=False), gradients, (layer, values))

    def _gradient(self, layer, values, v):
        behind, found = self._from(layer), {layer: np.zeros_like(values[layer])}
        for name, end in self.ends.items():
            found[end] = found.get(end, 0) + (v[name] if isinstance(v, dict) else v)
        for node in reversed(self.graph.nodes):
            if node.name in found and node.name in behind - {layer}:
                gradients = node.backward(found[node.name], *(values[name] for name in node.inputs))
                for name, g in zip(node.inputs, gradients, strict=True):
                    if name in behind:  # the backward pass stops at the layer
                        found[name] = found.get(name, 0) + g
        return found[layer].astype(np.float32)

    def _from(self, layer):
        behind = {layer}
        for node in self.graph.nodes:
            behind |= {node.name} if behind & set(node.inputs) else set()
        return behind

    def _outputs(self, values):
        said = {name: values[end].astype(np.float32, copy=False) for name, end in self.ends.items()}
        return said if len(said) > 1 else next(iter(said.values()))

    def _layer(self, node, shape):
        ends, layout = set(self.ends.values()), "tokens" if len(shape) == 2 else "channels_first"
        reaches = bool(ends & self._from(node.name))
        return Layer(node.name, node.kind, shape, layout, node.name in ends, reaches_output=reaches)
