"""A model cut open at a layer: its graphs and sessions.

forward    picture → outputs, the layer's value, and what the gradient needs
backward   that, and cotangents → the gradient at the layer
head       picture → what passes the layer by            } made when a variant of the
tail       the layer's value, and that → outputs         } layer's value is to be run
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from xcam.errors import ModelError
from xcam_onnx.autodiff import OPSET, differentiate, ready
from xcam_onnx.graph import Graph, declared, part, reads
from xcam_onnx.sessions import Runtime, Session
from xcam_onnx.weights import bytes_of

GRADIENT = "xcam/gradients"
FEW = 0.1
"""Share of a model's weights that may be held twice, for the sake of speed."""


@dataclass(frozen=True)
class Gradient:
    """The gradient of a model's outputs as a model of its own."""

    model: ModelProto
    cotangents: dict[str, str]
    """For each output, the name of the input that takes its cotangent."""
    handed: list[str]
    """What else it takes: tensors of the model."""


def gradient(model: ModelProto, at: str, outputs: Sequence[str]) -> tuple[ModelProto, Gradient]:
    """The model, giving besides its outputs what the gradient at the tensor `at` needs; and that gradient.

    Raises ModelError, where an operator cannot be differentiated.
    """
    model = ready(model, at, outputs)
    graph = Graph(model)
    cotangents = {name: f"xcam/cotangent/{name}" for name in outputs}
    written = differentiate(graph, at, cotangents, GRADIENT, max(graph.opset.get("", 1), OPSET))
    free = [name for name in written.taken if name not in cotangents.values()]
    fixed = [name for name in free if name not in graph.live and name not in written.asked]
    if graph.opset.get("", 1) < OPSET:  # what makes a constant may mean something else among newer operators
        fixed = [name for name in fixed if name in graph.initializers]
    handed = [name for name in free if name not in fixed]
    copied = graph.between([], fixed)
    weights = {name for node in copied for name in reads(node)} | set(fixed)

    def info(name: str) -> ValueInfoProto:
        return declared(name, *written.asked[name]) if name in written.asked else graph.info(name)

    body = helper.make_graph(
        [*copied, *written.nodes],
        "gradient",
        [info(name) for name in handed]
        + [declared(source, graph.dtype(name), graph.shape(name)) for name, source in cotangents.items()],
        [declared(GRADIENT, graph.dtype(at), graph.shape(at))],
        [*written.constants, *(t for name, t in graph.initializers.items() if name in weights)],
    )
    opsets = [helper.make_opsetid(d, max(v, OPSET) if not d else v) for d, v in graph.opset.items()]
    back = helper.make_model(body, opset_imports=opsets)
    back.ir_version = max(model.ir_version, helper.find_min_ir_version_for(opsets, ignore_unknown=True))
    model.graph.node.extend(written.shapes)
    there = {v.name for v in (*model.graph.input, *model.graph.output)}
    model.graph.output.extend(info(name) for name in handed if name not in there)
    return model, Gradient(back, cotangents, handed)


@dataclass(frozen=True)
class Run:
    """A session that gives the outputs, and the one that differentiates them."""

    session: Session
    gradient: Gradient | None = None
    backward: Session | None = None
    refusal: ModelError | None = None
    """Why there is no gradient."""


class Cut:
    """The sessions of one layer. They are made when they are first needed, once for all threads."""

    def __init__(self, graph: Graph, runtime: Runtime, source: str, tensor: str, ends: Sequence[str]) -> None:
        self.tensor = tensor
        self._graph, self._runtime, self._source, self._ends = graph, runtime, source, list(ends)
        after = graph.after([tensor])
        self.behind = [end for end in ends if end in after and end != tensor]
        """Outputs that depend on the layer."""
        self._tail, frontier = part(graph, [tensor], self.behind)
        self.beside = list(dict.fromkeys([*frontier, *(end for end in ends if end not in after)]))
        """What passes the layer by: tensors that the tail takes, and outputs that do not depend on the layer."""
        self._lock = threading.Lock()
        self._runs: dict[tuple[str, bool], Run] = {}
        self._heads: dict[tuple[str, ...], Session] = {}

    def forward(self, differentiable: bool = True) -> Run:
        """From the picture to the outputs and the layer."""
        gives = list(dict.fromkeys([self.tensor, *self._ends]))
        return self._run("forward", differentiable, lambda: part(self._graph, [self._source], gives)[0])

    def tail(self, differentiable: bool = True) -> Run:
        """From the layer and what passes it by to the outputs that depend on it."""
        return self._run("tail", differentiable, lambda: self._tail)

    def _run(self, name: str, differentiable: bool, make: Callable[[], ModelProto]) -> Run:
        """One that can be differentiated does for all; another is made where no gradient is asked for, which is lighter."""
        with self._lock:
            if (name, True) in self._runs:
                return self._runs[name, True]
            if (name, differentiable) not in self._runs:
                self._runs.pop((name, False), None)
                self._runs[name, differentiable] = self._made(make(), differentiable, inner=name == "tail")
            return self._runs[name, differentiable]

    def head(self, gives: Sequence[str]) -> Session:
        """From the picture to some of what passes the layer by."""
        with self._lock:
            key = tuple(gives)
            if key not in self._heads:
                self._heads[key] = self._runtime.session(part(self._graph, [self._source], gives)[0])
            return self._heads[key]

    def _made(self, model: ModelProto, differentiable: bool, inner: bool) -> Run:
        """`inner`: the model takes tensors from within another."""
        loose = unshaped if inner else lambda model: model
        refusal = None
        if differentiable:
            outputs = [v.name for v in model.graph.output if v.name in self._ends]
            try:
                giving, found = gradient(model, self.tensor, outputs)
            except ModelError as error:
                refusal = error
            else:
                shared = _read_twice(found.model, model)
                backward = self._runtime.session(unshaped(found.model), shared)
                return Run(self._runtime.session(loose(giving), shared), found, backward)
        return Run(self._runtime.session(loose(model)), refusal=refusal)


def unshaped(model: ModelProto) -> ModelProto:
    """The model, of its inputs and outputs the ranks alone: what was inferred of their sizes may be wrong, and a runtime
    then refuses what it is fed (pools that round up, before opset 22)."""
    found = ModelProto()
    found.CopyFrom(model)
    del found.graph.value_info[:]
    for value in (*found.graph.input, *found.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    return found


def _read_twice(backward: ModelProto, forward: ModelProto) -> set[str]:
    """The weights that both graphs read as they are, where these are many: dense ones. (Kernels are flipped once.)"""
    read = {name for node in backward.graph.node if node.op_type in ("Gemm", "MatMul") for name in node.input}
    dense = [t for t in backward.graph.initializer if t.name in read and t.data_location == TensorProto.EXTERNAL]
    few = bytes_of(dense) <= FEW * bytes_of(forward.graph.initializer)
    return set() if few else {t.name for t in dense}
