"""A model opened at some layers: its parts as graphs and sessions.

forward    input → outputs, the layers' values, and the tensors that the gradients need
head       input → bypass values
tail       given values, bypass values → outputs, the layers' values, and the tensors that the gradients need
backward   these tensors, cotangents → the gradient at each layer
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from xcam.contract.caches import BoundedCache
from xcam.errors import ModelError
from xcam_onnx.autodiff import OPSET, differentiate, inline_undifferentiable
from xcam_onnx.graph import Graph, copied, declared, part, reads
from xcam_onnx.sessions import Runtime, Session
from xcam_onnx.standard.form import Quantised
from xcam_onnx.weights import external_size

GRADIENT = "xcam/gradients"
UNCHANGED = "xcam/unchanged"
SMALL_SHARE = 0.1
"""The share of a model's weights that may be in memory twice, as packed weights are faster."""


@dataclass(frozen=True)
class Gradient:
    """The gradient of a model's outputs as a model."""

    model: ModelProto
    cotangents: dict[str, str]
    """The name of the input that takes the cotangent, by output."""
    forward_values: list[str]
    """Its other inputs: tensors of the forward model."""
    gradients: dict[str, str]
    """The name of the gradient, by tensor."""


def gradient(
    model: ModelProto, at: Sequence[str], outputs: Sequence[str], ahead: Callable[[str], str] = str
) -> tuple[ModelProto, Gradient]:
    """Differentiate a model with respect to some tensors.

    Args:
        model: The model. It may be changed.
        at: The tensors.
        outputs: The outputs that have cotangents.
        ahead: For each output, the tensor that is differentiated instead: see StandardForm.ahead.

    Returns:
        The model, with the tensors that the gradients need as further outputs; and the gradients.

    Raises:
        ModelError: An operator cannot be differentiated.
    """
    sources = [name if name in at else ahead(name) for name in outputs]
    if len(set(sources)) < len(sources) or not set(at).isdisjoint(sources):
        sources = list(outputs)
    model = inline_undifferentiable(model, at, sources)
    graph = Graph(model)
    cotangents = {name: f"xcam/cotangent/{name}" for name in outputs}
    named = dict(zip(sources, cotangents.values(), strict=True))
    gradients = {tensor: f"{GRADIENT}/{k}" if k else GRADIENT for k, tensor in enumerate(at)}
    written = differentiate(graph, gradients, named, max(graph.opset.get("", 1), OPSET))
    free = [name for name in written.reads if name not in cotangents.values()]
    fixed = [name for name in free if name not in graph.live and name not in written.requested]
    if (
        graph.opset.get("", 1) < OPSET
    ):  # nodes that compute a constant may have another meaning in the newer operators
        fixed = [name for name in fixed if name in graph.initializers]
    forward_values = [name for name in free if name not in fixed]
    constants = graph.between([], fixed)
    weights = {name for node in constants for name in reads(node)} | set(fixed)

    def info(name: str) -> ValueInfoProto:
        return declared(name, *written.requested[name]) if name in written.requested else graph.info(name)

    body = helper.make_graph(
        [*constants, *written.nodes],
        "gradient",
        [info(name) for name in forward_values]
        + [declared(source, graph.dtype(name), graph.shape(name)) for name, source in cotangents.items()],
        [declared(name, graph.dtype(tensor), graph.shape(tensor)) for tensor, name in gradients.items()],
        [*written.constants, *(t for name, t in graph.initializers.items() if name in weights)],
    )
    opsets = [helper.make_opsetid(d, max(v, OPSET) if not d else v) for d, v in graph.opset.items()]
    backward = helper.make_model(body, opset_imports=opsets)
    backward.ir_version = max(model.ir_version, helper.find_min_ir_version_for(opsets, ignore_unknown=True))
    model.graph.node.extend(written.shapes)
    existing = {v.name for v in (*model.graph.input, *model.graph.output)}
    model.graph.output.extend(info(name) for name in forward_values if name not in existing)
    return model, Gradient(backward, cotangents, forward_values, gradients)


@dataclass(frozen=True)
class Run:
    """A session that computes the outputs, and the one that differentiates them."""

    session: Session
    backward: Session | None = None
    cotangents: Mapping[str, str] = field(default_factory=dict)
    """The input of `backward` that takes the cotangent, by output tensor."""
    gradients: Mapping[str, str] = field(default_factory=dict)
    """The output of `backward`, by tensor."""
    refusal: ModelError | None = None
    """The reason for a missing gradient."""
    is_exact: bool = False
    """Whether it runs the file's own operators, and not the standard form, which can be differentiated."""


@dataclass(frozen=True)
class Parts:
    """A graph from which parts are cut."""

    graph: Graph
    """The whole graph in standard form."""
    runnable: Graph
    """The graph that forward passes run: `graph` itself, or the one with the file's own operators."""
    runtime: Runtime
    """Creates sessions."""
    source: str
    """The input."""
    outputs: Sequence[str]
    """The output tensors."""
    ahead: Callable[[str], str] = str
    """See `gradient`."""


class Cut:
    """The sessions of a forward pass that is opened at some layers, each created when it is first needed, once for all threads.

    Without given values it begins at the input. With them it is the tail behind these values, in standard form.

    Args:
        parts: The graph.
        at: The tensors of the layers.
        constants: The tensors with given values, and how each is quantised, where it is: the tail quantises the values.
    """

    def __init__(
        self, parts: Parts, at: Sequence[str], constants: Mapping[str, Quantised | None] | None = None
    ) -> None:
        self.at, self.constants = list(dict.fromkeys(at)), list(constants or {})
        self._parts = parts
        self._lock = threading.Lock()
        self._runs: dict[bool, Run] = {}
        self._heads = BoundedCache[tuple[str, ...], Session]()
        self.taken: list[str] = []
        """The tensors that a tail takes in addition to those given: bypass values, layers that it is not behind, and
        outputs that do not depend on it."""
        if constants:
            self._tail = self._cut_off(constants)

    def _cut_off(self, constants: Mapping[str, Quantised | None]) -> ModelProto:
        graph, outputs = self._parts.graph, self._parts.outputs
        free = earliest(graph, self.at, self.constants)
        sources = [*self.constants, *free]
        after = graph.after(sources)
        wanted = [name for name in dict.fromkeys((*outputs, *self.at)) if name in after and name not in sources]
        model, bypass = part(graph, sources, wanted)
        self.taken = list(dict.fromkeys([*free, *bypass, *(name for name in outputs if name not in after)]))
        for node in model.graph.node:
            for k, name in enumerate(node.output):
                if name in sources:  # a node that also computes a tensor that is needed
                    node.output[k] = f"xcam/unread/{name}"
        if not model.graph.node:  # the layer is the output: the runtime opens no empty graph
            tensor = self.constants[0]
            model.graph.node.append(helper.make_node("Identity", [tensor], [UNCHANGED], name=UNCHANGED))
            model.graph.output.append(declared(UNCHANGED, graph.dtype(tensor), graph.shape(tensor)))
        for k, (tensor, entry) in enumerate(constants.items()):
            if entry is not None:
                _requantise(model, graph, tensor, entry, k)
        return model

    def run(self, differentiable: bool, further: Sequence[str] = ()) -> Run:
        """Return the sessions; those without a gradient only where none is needed and none exist yet.

        Args:
            differentiable: Whether a gradient is needed.
            further: Tensors that a pass from the input returns too, where it runs the file's own operators.
        """
        parts = self._parts
        is_exact = not self.constants and parts.runnable is not parts.graph
        with self._lock:
            if True in self._runs:
                return self._runs[True]
            if differentiable not in self._runs:
                self._runs.pop(False, None)
                outputs = list(dict.fromkeys([*self.at, *parts.outputs, *(further if is_exact else ())]))
                model = self._tail if self.constants else part(parts.runnable, [parts.source], outputs)[0]
                self._runs[differentiable] = (
                    Run(parts.runtime.session(model), is_exact=True)
                    if is_exact
                    else self._create(model, differentiable)
                )
            return self._runs[differentiable]

    def head(self, tensors: Sequence[str]) -> Session:
        """Return the session from the input to some tensors that the tail takes."""
        key, parts = tuple(tensors), self._parts
        return self._heads.get(key, lambda: parts.runtime.session(part(parts.runnable, [parts.source], key)[0]))

    def _create(self, model: ModelProto, differentiable: bool) -> Run:
        """Create sessions for a part of the graph."""
        parts = self._parts
        finish = unsized if self.constants else lambda model: model
        session = parts.runtime.session if parts.runnable is parts.graph else parts.runtime.unfused_session
        refusal = None
        if differentiable:
            names = {*self.constants, *self.at, *(value.name for value in model.graph.output)}
            outputs = [name for name in dict.fromkeys(parts.outputs) if name in names]
            try:
                forward, backward = gradient(
                    copied(model) if self.constants else model, self.at, outputs, parts.ahead
                )
            except ModelError as error:
                refusal = error
            else:
                shared = _shared_weights(backward.model, model)
                return Run(
                    session(finish(forward), shared),
                    session(unsized(backward.model), shared),
                    backward.cotangents,
                    backward.gradients,
                )
        return Run(session(finish(model)), refusal=refusal)


def earliest(graph: Graph, tensors: Sequence[str], constants: Sequence[str] = ()) -> list[str]:
    """Return those of some tensors that are computed from none of the others, and from none of `given`."""
    order = {name: graph.producer.get(name, -1) for name in dict.fromkeys(tensors)}
    result: list[str] = []
    after = graph.after(constants)
    for name in sorted(order, key=order.__getitem__):
        if name not in after:
            result.append(name)
            after = graph.after([*constants, *result])
    return result


def _requantise(tail: ModelProto, graph: Graph, tensor: str, entry: Quantised, k: int) -> None:
    """Let a tail quantise and dequantise the values that it is given for its layer number `k`, as the file does."""
    integers, value = f"xcam/given/{k}/quantized", f"xcam/given/{k}"
    for node in tail.graph.node:
        for index, name in enumerate(node.input):
            if name == tensor:
                node.input[index] = value
    nodes = [entry.quantize(tensor, integers), entry.dequantize(value, integers)]
    known = {t.name for t in tail.graph.initializer} | {name for node in tail.graph.node for name in node.output}
    needed = [name for name in (entry.scale, entry.zero_point) if name and name not in known]
    constants = graph.between([], needed)
    weights = [*needed, *(name for node in constants for name in reads(node))]
    tail.graph.initializer.extend(graph.initializers[n] for n in dict.fromkeys(weights) if n in graph.initializers)
    tail.graph.value_info.append(declared(integers, entry.dtype, graph.shape(tensor)))
    tail.graph.value_info.append(declared(value, graph.dtype(tensor), graph.shape(tensor)))
    written = [*constants, *nodes, *tail.graph.node]
    del tail.graph.node[:]
    tail.graph.node.extend(written)


def unsized(model: ModelProto) -> ModelProto:
    """Return a copy whose inputs and outputs declare only their ranks.

    Inferred sizes may be wrong (pools that round up, before opset 22), and a runtime then rejects the actual tensors.
    """
    result = copied(model)
    del result.graph.value_info[:]
    for value in (*result.graph.input, *result.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    return result


def _shared_weights(backward: ModelProto, forward: ModelProto) -> set[str]:
    """Return the dense weights that both graphs read unchanged, where they are a large share of the weights.

    The kernels of convolutions are not among them: the backward graph flips them when it is opened.
    """
    names = {name for node in backward.graph.node if node.op_type in ("Gemm", "MatMul") for name in node.input}
    dense = [t for t in backward.graph.initializer if t.name in names and t.data_location == TensorProto.EXTERNAL]
    is_small = external_size(dense) <= SMALL_SHARE * external_size(forward.graph.initializer)
    return set() if is_small else {tensor.name for tensor in dense}
