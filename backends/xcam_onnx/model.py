"""The contract for an ONNX model, run by ONNX Runtime."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from onnx import ModelProto, helper

from xcam.contract import (
    Activation,
    Array,
    Capability,
    InputSpec,
    Layer,
    Layout,
    Outputs,
    Seeds,
    Trace,
    rows_of,
)
from xcam.errors import InputError, ModelError, nearest
from xcam.preprocessing import Preprocessing
from xcam_onnx import cut, names
from xcam_onnx.graph import Graph, part
from xcam_onnx.reading import End, Facts
from xcam_onnx.sessions import Runtime, Session, array

CUTS = 2
"""Layers whose sessions are kept: each pair of head and tail holds the model's weights once."""

T = TypeVar("T")


@dataclass
class _Cut:
    """A model cut open at a layer, with its sessions."""

    tensor: str
    layer: Layer
    head: Session
    head_outputs: list[str]
    """Outputs that do not depend on the layer."""
    frontier: list[str]
    """What passes the layer by."""
    tail: Callable[[], Session]
    """Made when first needed; gives what the gradient needs, where there is one."""
    backward: Callable[[], tuple[cut.Gradient, Session]]


@dataclass
class _Part:
    """What one run of the head and the tail gave."""

    head: dict[str, Any]
    tail: dict[str, Any]


@dataclass
class _State:
    """What `resume` needs of a trace."""

    x: Array
    cut: _Cut
    parts: list[_Part] = field(default_factory=list)


class OnnxModel:
    """An ONNX model behind xcam's contract. See xcam.contract.Model."""

    backend = "onnx"
    capabilities: frozenset[Capability] = frozenset({"gradients", "resume"})

    def __init__(
        self,
        model: ModelProto,
        runtime: Runtime,
        *,
        name: str,
        facts: Facts,
        labels: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        notes: Sequence[str] = (),
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.labels = labels
        self.notes = tuple(notes)
        self.input: InputSpec = facts.spec(preprocessing)
        self.graph = Graph(model)
        self._facts = facts
        self._runtime = runtime
        self._check = check
        """Raises where the file that holds the weights is no longer the one that was opened."""
        self._made: dict[Hashable, Any] = {}
        self._lock = threading.RLock()

    @property
    def threads(self) -> int | None:
        """Threads within an operator (ONNX Runtime's intra_op_num_threads); None: as many as there are cores."""
        return self._runtime.threads

    @property
    def activation(self) -> Activation:
        """What is cut off the outputs; by name where there are several."""
        found = {end.name: end.activation for end in self._facts.ends}
        return found if len(found) > 1 else next(iter(found.values()))

    @property
    def layers(self) -> Sequence[Layer]:
        """Every tensor with channels, by the names that the file gives: see xcam_onnx.names."""
        return [layer for layer, _ in self._layers.values()]

    @cached_property
    def _layers(self) -> dict[str, tuple[Layer, str]]:
        return self._facts.layers(self.input)

    @cached_property
    def _by_name(self) -> dict[str, str]:
        """Every name of a layer → its first."""
        found = {alias: name for name, (layer, _) in self._layers.items() for alias in layer.aliases}
        return found | {name: name for name in self._layers}

    def predict(self, x: Array) -> Outputs:
        """See xcam.contract.Model.predict."""
        with self._lock:
            cuts = [made for key, made in self._made.items() if isinstance(key, tuple) and key[0] == "cut"]
        if cuts:  # its weights are there already
            return self._outputs([self._run(cuts[-1], chunk) for chunk in self._chunks(x)], cuts[-1])
        ends = [end.tensor for end in self._facts.ends]
        whole = self._once("whole", lambda: self._session(ends)[0])
        found = [whole(self._feed(chunk)) for chunk in self._chunks(x)]
        return self._named({tensor: np.concatenate([array(part[tensor]) for part in found]) for tensor in ends})

    def activations(self, x: Array, layers: Sequence[str]) -> Mapping[str, Array]:
        """See xcam.contract.Model.activations."""
        found = {name: self._find(name) for name in layers}
        tensors = sorted({tensor for _, tensor in found.values()})
        run = self._once(("activations", *tensors), lambda: self._session(tensors)[0], alone=True)
        parts = [run(self._feed(chunk)) for chunk in self._chunks(x)]
        return {
            name: np.concatenate([_channels_first(array(part[tensor]), layer) for part in parts])
            for name, (layer, tensor) in found.items()
        }

    def trace(self, x: Array, layer: str, seeds: Seeds | None = None) -> Trace:
        """See xcam.contract.Model.trace."""
        place = self._cut(layer)
        chunks = self._chunks(x)
        if seeds is not None:
            place.backward()  # what it needs is added to the tail before that runs
        parts = [self._run(place, chunk) for chunk in chunks]
        return self._finish(place, parts, seeds, _State(x, place, parts))

    def resume(
        self, trace: Trace, activations: Array, rows: Sequence[int] | None = None, seeds: Seeds | None = None
    ) -> Trace:
        """See xcam.contract.Model.resume. Only the tail is run again."""
        state: _State = trace.state
        place = state.cut
        picked = rows_of(rows, len(state.x), len(activations))
        value = _as_layer(np.asarray(activations, np.float32), place.layer)
        if seeds is not None:
            place.backward()
        x = state.x[picked]
        beside = self._beside(state, picked)
        names = [*place.frontier, *place.head_outputs]
        parts, start = [], 0
        for chunk in self._chunks(x):
            stop = start + len(chunk)
            whole = len(chunk) == len(x)
            head = {name: beside[name] if whole else beside[name][start:stop] for name in names}
            head[place.tensor] = value[start:stop].astype(self._dtype(place.tensor))
            parts.append(_Part(head, place.tail()(head)))
            start = stop
        traced = self._finish(place, parts, seeds, _State(x, place, parts))
        traced.activations = np.array(activations, np.float32)
        return traced

    def _beside(self, state: _State, picked: list[int]) -> dict[str, Any]:
        """What passes the layer by, for the chosen rows."""
        place, count = state.cut, len(state.x)
        names = [*place.frontier, *place.head_outputs]
        if picked == list(range(count)) and len(state.parts) == 1:
            return {name: state.parts[0].head[name] for name in names}
        found, again = {}, []
        for name in names:
            arrays = [np.asarray(_numpy(part.head[name])) for part in state.parts]
            rows = np.concatenate(arrays) if arrays[0].ndim else arrays[0]
            per = len(rows) // count if rows.ndim and not len(rows) % count else 0
            first = (self.graph.shape(name) or (None,))[:1]
            by_row = per and not isinstance(first[0] if first else 1, int)
            if self._facts.batch is not None and rows.ndim and len(rows) == count:
                by_row, per = True, 1
            if by_row:
                found[name] = rows.reshape(count, per, *rows.shape[1:])[picked].reshape(-1, *rows.shape[1:])
            elif self._facts.batch is not None:
                found[name] = arrays[0]  # the same for every picture: the batch is fixed
            else:
                again.append(name)  # the sizes of the batch, say
        if again:
            run = self._once(("beside", place.tensor), lambda: self._session(again)[0])
            found |= run(self._feed(state.x[picked]), again)
        return found

    def _run(self, place: _Cut, x: Array) -> _Part:
        head = place.head(self._feed(x))
        return _Part(head, place.tail()(head))

    def _finish(self, place: _Cut, parts: list[_Part], seeds: Seeds | None, state: _State) -> Trace:
        """Ask for the cotangents, differentiate, hand everything over as NumPy."""
        outputs = self._outputs(parts, place)
        activations = np.concatenate([array(part.head[place.tensor]) for part in parts])
        gradients = []
        cotangents = list(seeds(outputs)) if seeds else []
        if cotangents:
            gradient, session = place.backward()
            for cotangent in cotangents:
                given = cotangent if isinstance(cotangent, Mapping) else {self._facts.ends[0].name: cotangent}
                found, start = [], 0
                for part in parts:
                    stop = start + len(_numpy(part.head[place.tensor])) if len(parts) > 1 else None
                    feeds = {name: part.head.get(name, part.tail.get(name)) for name in gradient.handed}
                    for end in self._facts.ends:
                        if end.tensor in gradient.cotangents:
                            v = np.asarray(given[end.name])[start:stop]
                            feeds[gradient.cotangents[end.tensor]] = v.astype(self._dtype(end.tensor))
                    found.append(array(session(feeds)[cut.GRADIENT]))
                    start = stop or 0
                gradients.append(_channels_first(np.concatenate(found), place.layer))
        return Trace(outputs, _channels_first(activations, place.layer), gradients, state)

    def _outputs(self, parts: list[_Part], place: _Cut) -> Outputs:
        return self._named(
            {
                end.tensor: np.concatenate([array((part.tail | part.head)[end.tensor]) for part in parts])
                for end in self._facts.ends
            }
        )

    def _named(self, values: Mapping[str, Array]) -> Outputs:
        ends = self._facts.ends
        return values[ends[0].tensor] if len(ends) == 1 else {end.name: values[end.tensor] for end in ends}

    # Sessions

    def _once(self, key: Hashable, make: Callable[[], T], alone: bool = False) -> T:
        """Made once for all threads. `alone`: of its kind, only the latest is kept."""
        with self._lock:
            if key not in self._made:
                if alone and isinstance(key, tuple):
                    for other in [k for k in self._made if isinstance(k, tuple) and k[0] == key[0]]:
                        del self._made[other]
                self._made[key] = make()
            return self._made[key]

    def _session(self, gives: Sequence[str]) -> tuple[Session, list[str]]:
        """From the model's input to the tensors `gives`."""
        self._check()
        model, frontier = part(self.graph, [self._facts.source], gives)
        return self._runtime.session(model), frontier

    def _cut(self, name: str) -> _Cut:
        layer, tensor = self._find(name)
        with self._lock:
            key = ("cut", tensor)
            if key not in self._made:
                for old in [k for k in self._made if isinstance(k, tuple) and k[0] == "cut"][: 1 - CUTS or None]:
                    del self._made[old]
                self._made[key] = self._opened(tensor, layer)
            self._made[key] = self._made.pop(key)  # the latest stands last
            return self._made[key]

    def _opened(self, tensor: str, layer: Layer) -> _Cut:
        self._check()
        ends = [end.tensor for end in self._facts.ends]
        after = self.graph.after([tensor])
        behind = [end for end in ends if end in after and end != tensor]
        aside = [end for end in ends if end not in after]
        tail, frontier = part(self.graph, [tensor], behind)
        head, _ = part(self.graph, [self._facts.source], list(dict.fromkeys([tensor, *frontier, *aside])))
        lock = threading.Lock()
        made: dict[str, Any] = {}

        def tail_session() -> Session:
            with lock:
                if "tail" not in made:
                    made["tail"] = self._runtime.session(tail, shared=True)
                return made["tail"]

        def backward() -> tuple[cut.Gradient, Session]:
            with lock:
                if "backward" not in made:
                    self._check()
                    giving, gradient = cut.gradient(tail, tensor, ends)
                    session = self._runtime.session(gradient.model, shared=True)
                    made["tail"] = self._runtime.session(giving, shared=True)
                    made["backward"] = gradient, session
                return made["backward"]

        return _Cut(tensor, layer, self._runtime.session(head), aside, frontier, tail_session, backward)

    def _find(self, name: str) -> tuple[Layer, str]:
        if name in self._by_name:
            return self._layers[self._by_name[name]]
        folded = names.folded(self.graph, name)
        if folded:
            raise InputError(
                f"{name!r} has no value in {self.name}: the exporter folded the batch norm behind it into it; "
                f"explain {folded!r}, the value behind both"
            )
        shown = [name for name, (layer, _) in self._layers.items() if not layer.inner]
        raise InputError(f"no layer {name!r} in {self.name}; {nearest(name, shown)}; `xcam layers` lists them")

    # Arrays

    def _chunks(self, x: Array) -> list[Array]:
        """`x` whole, or in the batches that the model is fixed to."""
        batch = self._facts.batch
        if batch is None:
            return [x]
        if len(x) % batch:
            raise InputError(f"{self.name} takes batches of {batch}, not {len(x)}; export it with a dynamic batch")
        return [x[i : i + batch] for i in range(0, len(x), batch)]

    def _feed(self, x: Array) -> dict[str, Any]:
        return {self._facts.source: np.asarray(x).astype(self._dtype(self._facts.source), copy=False)}

    def _dtype(self, tensor: str) -> Any:
        return helper.tensor_dtype_to_np_dtype(self.graph.dtype(tensor))


def _numpy(given: Any) -> Any:
    return given.numpy() if hasattr(given, "numpy") else given


def _channels_first(values: Array, layer: Layer) -> Array:
    if layer.layout != "channels_first" and values.ndim > 2:
        values = np.ascontiguousarray(np.moveaxis(values, -1, 1))
    return values


def _as_layer(values: Array, layer: Layer) -> Array:
    """An array [K, C, *spatial] as the layer itself keeps it."""
    return np.moveaxis(values, 1, -1) if layer.layout != "channels_first" and values.ndim > 2 else values
