"""The contract for an ONNX model, run by ONNX Runtime."""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from xcam.contract import Activation, Array, Capability, Cotangents, InputSpec, Layer, Layout, Outputs, Trace, rows_of
from xcam.contract.preprocessing import Preprocessing
from xcam.errors import InputError, ModelError, nearest
from xcam_onnx import names
from xcam_onnx.cut import GRADIENT, Cut, Run
from xcam_onnx.graph import FLOATS, Graph, part
from xcam_onnx.reading import End, Facts, facts
from xcam_onnx.sessions import Runtime, Session, array
from xcam_onnx.weights import Pages

CUTS = 2
"""Layers whose sessions are kept: each holds weights of its own."""


@dataclass
class _State:
    """What `resume` needs of a trace."""

    x: Array
    cut: Cut
    layer: Layer
    beside: dict[str, Array] | None = None
    """What passed the layer by."""


class OnnxModel:
    """An ONNX model behind xcam's contract. See xcam.contract.Model."""

    backend = "onnx"
    capabilities: frozenset[Capability] = frozenset({"gradients", "resume"})

    def __init__(
        self,
        runtime: Runtime,
        *,
        name: str,
        facts: Facts,
        labels: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        notes: Sequence[str] = (),
        layer: str | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.labels = labels
        self.notes = tuple(notes)
        self.input: InputSpec = facts.spec(preprocessing)
        self.default_layer = layer
        """The layer that the file itself names."""
        self._facts = facts
        self._runtime = runtime
        self._check = check
        """Raises where the file that holds the weights is no longer the one that was opened."""
        self._ends = [end.tensor for end in facts.ends]
        self._cuts: dict[str, Cut] = {}
        self._latest: tuple[Hashable, Session] | None = None
        self._lock = threading.RLock()

    @property
    def threads(self) -> int | None:
        """Threads within an operator (ONNX Runtime's intra_op_num_threads); None: as many as there are cores."""
        return self._runtime.threads

    @property
    def output_activation(self) -> Activation:
        """What is cut off the outputs; by name where there are several."""
        found = {end.name: end.activation for end in self._facts.ends}
        return found if len(found) > 1 else next(iter(found.values()))

    @property
    def layers(self) -> Sequence[Layer]:
        """Every tensor with channels, by the names that the file gives: see xcam_onnx.names."""
        return [layer for layer, _ in self._layers.values()]

    @cached_property
    def _layers(self) -> dict[str, tuple[Layer, str]]:
        graph, dims = self._facts.sized(self.input)
        self._learn(
            graph, dims, lambda shape: shape is None or not all(isinstance(n, int) for n in shape), exact=True
        )
        return self._facts.layers(graph)

    @cached_property
    def graph(self) -> Graph:
        """The model's graph; every rank in it is known."""
        return self.learnt(Graph(self._facts.model))

    # For xcam_onnx.export

    @property
    def proto(self) -> ModelProto:
        """The model, its larger weights told by where they are."""
        return self._facts.model

    @property
    def folder(self) -> Path:
        """Where the weights are."""
        self._check()
        return self._runtime.pages.folder

    @property
    def source(self) -> str:
        """The tensor that takes the picture."""
        return self._facts.source

    @property
    def ends(self) -> Sequence[End]:
        """The outputs."""
        return self._facts.ends

    def tensor(self, layer: str) -> str:
        """The tensor that holds a layer's value."""
        return self._find(layer)[1]

    def export(self, path: Path, layer: str | None, heatmap: str | None, facts: Mapping[str, str]) -> None:
        """Write the model so that it explains itself: see xcam_onnx.export."""
        from xcam_onnx.export import export

        export(self, path, layer, heatmap, facts)

    @property
    def parameter_layers(self) -> Sequence[str]:
        """See xcam_onnx.randomizing."""
        from xcam_onnx.randomizing import parameter_layers

        return parameter_layers(Graph(self.proto))

    def with_shuffled_weights(self, parts: Sequence[str], seed: int = 0) -> OnnxModel:
        """See xcam_onnx.randomizing."""
        from xcam_onnx.files import kept
        from xcam_onnx.randomizing import shuffled

        proto, path, temporary = kept(shuffled(self.proto, self.folder, parts, seed))
        layout: Layout = "channels_first" if self._facts.axis == 1 else "channels_last"
        made = OnnxModel(
            Runtime(Pages(path.parent.resolve()), self._runtime.providers, self._runtime.threads),
            name=f"{self.name}, shuffled",
            facts=facts(proto, self.name, layout, self._facts.wanted),
            labels=self.labels,
            preprocessing=self.input.preprocessing,
            notes=self.notes,
            layer=self.default_layer,
        )
        weakref.finalize(made, temporary.cleanup)
        return made

    def disable_spinning(self) -> None:
        """See xcam.contract.Model. Sessions that are there stay as they are."""
        self._runtime = dataclasses.replace(self._runtime, spinning=False)

    def learnt(self, graph: Graph) -> Graph:
        """`graph`, with the ranks of all its tensors known."""
        self._learn(graph, self._facts.sized(self.input)[1], lambda shape: shape is None, exact=False)
        return graph

    def _learn(self, graph: Graph, dims: Sequence[int], lacking: Callable[[Any], bool], exact: bool) -> None:
        """Find types and shapes that could not be inferred by one run on zeros; where not `exact`, ranks alone."""
        names = [n for node in graph.nodes for n in node.output if n in graph.live and not n.startswith("xcam/")]
        unknown = [name for name in names if lacking(graph.shape(name)) or not graph.dtype(name)]
        if not unknown:
            return
        whole = Graph(self._facts.model)
        run = self._runtime.session(part(whole, [self._facts.source], unknown)[0])
        zeros = np.zeros(dims, helper.tensor_dtype_to_np_dtype(whole.dtype(self._facts.source)))
        for name, value in run({self._facts.source: zeros}).items():
            if value.is_tensor():  # and no sequence
                shape = tuple(value.shape()) if exact else (None,) * len(value.shape())
                graph.learn(name, value.element_type(), shape)

    @cached_property
    def _by_name(self) -> dict[str, str]:
        """Every name of a layer → its first."""
        found = {alias: name for name, (layer, _) in self._layers.items() for alias in layer.aliases}
        return found | {name: name for name in self._layers}

    def predict(self, x: Array) -> Outputs:
        """See xcam.contract.Model.predict."""
        with self._lock:
            cut = next(reversed(self._cuts.values()), None)
        ends = self._ends
        run = cut.forward(False).session if cut else self._once("whole", lambda: self._session(ends))
        return self._named([run(self._feed(chunk), ends) for chunk in self._chunks(x)])

    def activations(self, x: Array, layers: Sequence[str]) -> Mapping[str, Array]:
        """See xcam.contract.Model.activations."""
        found = {name: self._find(name) for name in layers}
        tensors = sorted({tensor for _, tensor in found.values()})
        run = self._once(("activations", *tensors), lambda: self._session(tensors, once=True))
        parts = [run(self._feed(chunk)) for chunk in self._chunks(x)]
        return {name: _joined(parts, tensor, layer) for name, (layer, tensor) in found.items()}

    def trace(self, x: Array, layer: str, cotangents: Cotangents | None = None) -> Trace:
        """See xcam.contract.Model.trace."""
        place, tensor = self._find(layer)
        cut = self._cut(tensor)
        run = cut.forward(cotangents is not None)
        parts = [run.session(self._feed(chunk)) for chunk in self._chunks(x)]
        activations = _joined(parts, tensor, place)
        return self._finish(run, parts, cotangents, activations, _State(x, cut, place))

    def resume(
        self,
        trace: Trace,
        activations: Array,
        rows: Sequence[int] | None = None,
        cotangents: Cotangents | None = None,
    ) -> Trace:
        """See xcam.contract.Model.resume. Only the tail is run again."""
        state: _State = trace.state
        cut = state.cut
        picked = rows_of(rows, len(state.x), len(activations))
        given = np.array(activations, np.float32)
        value = _as_layer(given, state.layer).astype(self._dtype(cut.tensor))
        x = state.x[picked]
        beside = self._beside(state, picked)
        run = cut.tail(cotangents is not None)
        parts = []
        for rows_ in self._rows(len(x)):
            whole = rows_ == slice(0, len(x))
            known = {name: v if whole else v[rows_] for name, v in beside.items()} | {cut.tensor: value[rows_]}
            parts.append(known | run.session(known))
        return self._finish(run, parts, cotangents, given, _State(x, cut, state.layer))

    def _beside(self, state: _State, picked: list[int]) -> dict[str, Array]:
        """What passes the layer by, for the chosen rows; of what is not kept by rows (sizes, say), anew."""
        names, count = state.cut.beside, len(state.x)
        if not names:
            return {}
        if state.beside is None:
            parts = [state.cut.head(names)(self._feed(chunk)) for chunk in self._chunks(state.x)]
            state.beside = {
                name: np.concatenate([_numpy(p[name]) for p in parts])
                if parts[0][name].shape()
                else _numpy(parts[0][name])
                for name in names
            }
        if picked == list(range(count)):
            return state.beside
        found, others = {}, []
        for name in names:
            value = state.beside[name]
            first = (self.graph.shape(name) or (1,))[0]
            if (
                value.ndim
                and len(value) % count == 0
                and (self._facts.batch is not None or not isinstance(first, int))
            ):
                rows = value.reshape(count, -1, *value.shape[1:])[picked]
                found[name] = rows.reshape(-1, *value.shape[1:])
            else:
                others.append(name)
        if others:
            again = state.cut.head(others)(self._feed(state.x[picked]))
            found |= {name: _numpy(again[name]) for name in others}
        return found

    def _finish(
        self, run: Run, parts: list[dict[str, Any]], cotangents: Cotangents | None, activations: Array, state: _State
    ) -> Trace:
        """Ask for the cotangents, differentiate, hand everything over as NumPy."""
        outputs = self._named(parts)
        vectors = list(cotangents(outputs)) if cotangents else []
        if vectors and (run.gradient is None or run.backward is None):
            raise run.refusal or ModelError(f"{self.name} gives no gradients")
        gradients = [self._backward(run, parts, v, state) for v in vectors]
        return Trace(outputs, activations, gradients, state)

    def _backward(self, run: Run, parts: list[dict[str, Any]], cotangent: Outputs, state: _State) -> Array:
        gradient, backward = run.gradient, run.backward
        assert gradient is not None
        assert backward is not None
        given = cotangent if isinstance(cotangent, Mapping) else {self._facts.ends[0].name: cotangent}
        found = []
        for known, rows in zip(parts, self._rows(len(state.x)), strict=True):
            feeds: dict[str, Array] = {}
            for end in self._facts.ends:  # two may end at one tensor
                if end.tensor in gradient.cotangents:
                    name, value = gradient.cotangents[end.tensor], np.asarray(given[end.name])[rows]
                    feeds[name] = feeds.get(name, 0) + value.astype(self._dtype(end.tensor))
            found.append(backward(known | feeds))
        return _joined(found, GRADIENT, state.layer)

    def _named(self, parts: list[dict[str, Any]]) -> Outputs:
        values = {end.name: np.concatenate([array(p[end.tensor]) for p in parts]) for end in self._facts.ends}
        return values if len(values) > 1 else next(iter(values.values()))

    # Sessions

    def _once(self, key: Hashable, make: Callable[[], Session]) -> Session:
        """The latest of the sessions that are not of a cut."""
        with self._lock:
            if self._latest is None or self._latest[0] != key:
                self._latest = None  # its memory goes before the next one takes its own
                self._latest = key, make()
            return self._latest[1]

    def _session(self, gives: Sequence[str], once: bool = False) -> Session:
        """From the picture to the tensors `gives`."""
        self._check()
        return self._runtime.session(part(self.graph, [self._facts.source], gives)[0], once=once)

    def _cut(self, tensor: str) -> Cut:
        with self._lock:
            self._check()
            cut = self._cuts.pop(tensor, None)
            if cut is None:
                while len(self._cuts) >= CUTS:
                    del self._cuts[next(iter(self._cuts))]
                cut = Cut(self.graph, self._runtime, self._facts.source, tensor, self._ends)
            self._cuts[tensor] = cut  # the latest stands last
            return cut

    def _find(self, name: str) -> tuple[Layer, str]:
        if name in self._by_name:
            return self._layers[self._by_name[name]]
        told = self.explain_missing_layer(name)
        if told:
            raise InputError(told)
        shown = [name for name, (layer, _) in self._layers.items() if not layer.inner]
        raise InputError(f"no layer {name!r} in {self.name}; {nearest(name, shown)}; `xcam layers` lists them")

    def explain_missing_layer(self, name: str) -> str | None:
        """Why there is no layer of this name, where that is known."""
        graph = self.graph
        tensor = next((n.output[0] for n in graph.nodes if n.output and name in (n.name, *n.output)), "")
        if graph.dtype(tensor) not in (0, *FLOATS):
            return (
                f"{name!r} of {self.name} holds whole numbers, which have no map and no gradient; "
                "choose the DequantizeLinear or Cast behind it"
            )
        folded = names.folded(graph, name)
        return folded and (
            f"{name!r} has no value of its own in {self.name}: the exporter folded the batch norm behind it into it; "
            f"explain {folded!r}, the value behind both"
        )

    # Arrays

    def _rows(self, count: int) -> list[slice]:
        """All rows, or the batches that the model is fixed to."""
        batch = self._facts.batch or count
        if count % batch:
            raise InputError(f"{self.name} takes batches of {batch}, not {count}; export it with a dynamic batch")
        return [slice(i, i + batch) for i in range(0, count, batch)]

    def _chunks(self, x: Array) -> list[Array]:
        return [x[rows] for rows in self._rows(len(x))]

    def _feed(self, x: Array) -> dict[str, Any]:
        return {self._facts.source: np.asarray(x).astype(self._dtype(self._facts.source), copy=False)}

    def _dtype(self, tensor: str) -> Any:
        return helper.tensor_dtype_to_np_dtype(self.graph.dtype(tensor))


def _numpy(given: Any) -> Array:
    return given.numpy()


def _joined(parts: Sequence[Mapping[str, Any]], tensor: str, layer: Layer) -> Array:
    """A tensor's values from all batches, float32, channels first."""
    arrays = [array(part[tensor]) for part in parts]
    return _channels_first(arrays[0] if len(arrays) == 1 else np.concatenate(arrays), layer)


def _channels_first(values: Array, layer: Layer) -> Array:
    if layer.layout != "channels_first" and values.ndim > 2:
        return np.ascontiguousarray(np.moveaxis(values, -1, 1))
    return values


def _as_layer(values: Array, layer: Layer) -> Array:
    """An array [K, C, *spatial] as the layer itself keeps it."""
    return np.moveaxis(values, 1, -1) if layer.layout != "channels_first" and values.ndim > 2 else values
