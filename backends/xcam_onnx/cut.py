"""A model opened at a layer: its parts as graphs and sessions.

forward    input → outputs, the layer's value, and the tensors that the gradient needs
head       input → bypass values
tail       the layer's value, bypass values → outputs, and the tensors that the gradient needs
backward   these tensors, cotangents → the gradient at the layer
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


def gradient(
    model: ModelProto, at: str, outputs: Sequence[str], ahead: Callable[[str], str] = str
) -> tuple[ModelProto, Gradient]:
    """Differentiate a model with respect to a tensor.

    Args:
        model: The model. It may be changed.
        at: The tensor.
        outputs: The outputs that have cotangents.
        ahead: For each output, the tensor that is differentiated instead: see StandardForm.ahead.

    Returns:
        The model, with the tensors that the gradient needs as further outputs; and the gradient.

    Raises:
        ModelError: An operator cannot be differentiated.
    """
    sources = [name if name == at else ahead(name) for name in outputs]
    if len({at, *sources}) <= len(sources):
        sources = list(outputs)
    model = inline_undifferentiable(model, at, sources)
    graph = Graph(model)
    cotangents = {name: f"xcam/cotangent/{name}" for name in outputs}
    named = dict(zip(sources, cotangents.values(), strict=True))
    written = differentiate(graph, at, named, GRADIENT, max(graph.opset.get("", 1), OPSET))
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
        [declared(GRADIENT, graph.dtype(at), graph.shape(at))],
        [*written.constants, *(t for name, t in graph.initializers.items() if name in weights)],
    )
    opsets = [helper.make_opsetid(d, max(v, OPSET) if not d else v) for d, v in graph.opset.items()]
    backward = helper.make_model(body, opset_imports=opsets)
    backward.ir_version = max(model.ir_version, helper.find_min_ir_version_for(opsets, ignore_unknown=True))
    model.graph.node.extend(written.shapes)
    existing = {v.name for v in (*model.graph.input, *model.graph.output)}
    model.graph.output.extend(info(name) for name in forward_values if name not in existing)
    return model, Gradient(backward, cotangents, forward_values)


@dataclass(frozen=True)
class Run:
    """A session that computes the outputs, and the one that differentiates them."""

    session: Session
    backward: Session | None = None
    cotangents: Mapping[str, str] = field(default_factory=dict)
    """The input of `backward` that takes the cotangent, by output tensor."""
    refusal: ModelError | None = None
    """The reason for a missing gradient."""
    is_exact: bool = False
    """Whether it runs the file's own operators, and not the standard form, which can be differentiated."""


class Cut:
    """The sessions of one layer, each created when it is first needed, once for all threads.

    Args:
        graph: The whole graph in standard form.
        runnable: The graph that forward passes run: `graph` itself, or the one with the file's own operators.
        runtime: Creates sessions.
        source: The input.
        tensor: The layer's value.
        outputs: The output tensors.
        quantised: How the layer is quantised, where it is: the tail quantises the values that it is given.
        ahead: See `gradient`.
    """

    def __init__(
        self,
        graph: Graph,
        runnable: Graph,
        runtime: Runtime,
        source: str,
        tensor: str,
        outputs: Sequence[str],
        quantised: Quantised | None = None,
        ahead: Callable[[str], str] = str,
    ) -> None:
        self.tensor, self._ahead = tensor, ahead
        self._graph, self._runnable, self._runtime = graph, runnable, runtime
        self._source, self._outputs = source, outputs
        after = graph.after([tensor])
        self._tail, bypass = part(graph, [tensor], [name for name in outputs if name in after and name != tensor])
        self.bypass = list(dict.fromkeys([*bypass, *(name for name in outputs if name not in after)]))
        """Tensors that the tail reads in addition to the layer's value, and outputs that do not depend on the layer."""
        if not self._tail.graph.node:  # the layer is the output: the runtime opens no empty graph
            self._tail.graph.node.append(helper.make_node("Identity", [tensor], [UNCHANGED], name=UNCHANGED))
            self._tail.graph.output.append(declared(UNCHANGED, graph.dtype(tensor), graph.shape(tensor)))
        if quantised is not None:
            _requantise(self._tail, graph, tensor, quantised)
        self._lock = threading.Lock()
        self._runs: dict[tuple[str, bool], Run] = {}
        self._heads = BoundedCache[tuple[str, ...], Session]()

    def forward(self, differentiable: bool = True) -> Run:
        """Return the sessions from the input to the outputs and the layer's value."""
        is_exact = self._runnable is not self._graph
        bypass = self.bypass if is_exact and differentiable else ()
        outputs = list(dict.fromkeys([self.tensor, *self._outputs, *bypass]))
        return self._run(
            "forward", differentiable, lambda: part(self._runnable, [self._source], outputs)[0], is_exact
        )

    def tail(self, differentiable: bool = True) -> Run:
        """Return the sessions from the layer's value and the bypass values to the outputs that depend on the layer."""
        return self._run("tail", differentiable, lambda: self._tail)

    def head(self, tensors: Sequence[str]) -> Session:
        """Return the session from the input to some bypass values."""
        key = tuple(tensors)
        return self._heads.get(key, lambda: self._runtime.session(part(self._runnable, [self._source], key)[0]))

    def _run(self, name: str, differentiable: bool, make: Callable[[], ModelProto], is_exact: bool = False) -> Run:
        """Return an existing differentiable run. Otherwise create a run, without gradient where none is needed."""
        with self._lock:
            if (name, True) in self._runs:
                return self._runs[name, True]
            if (name, differentiable) not in self._runs:
                self._runs.pop((name, False), None)
                self._runs[name, differentiable] = (
                    Run(self._runtime.session(make()), is_exact=True)
                    if is_exact
                    else self._create(make(), differentiable, inner=name == "tail")
                )
            return self._runs[name, differentiable]

    def _create(self, model: ModelProto, differentiable: bool, inner: bool) -> Run:
        """Create sessions for a part of the graph. `inner`: it takes tensors from within the graph."""
        finish = unsized if inner else lambda model: model
        session = self._runtime.session if self._runnable is self._graph else self._runtime.unfused_session
        refusal = None
        if differentiable:
            names = {self.tensor, *(value.name for value in model.graph.output)}
            outputs = [name for name in dict.fromkeys(self._outputs) if name in names]
            try:
                forward, backward = gradient(model, self.tensor, outputs, self._ahead)
            except ModelError as error:
                refusal = error
            else:
                shared = _shared_weights(backward.model, model)
                return Run(
                    session(finish(forward), shared),
                    session(unsized(backward.model), shared),
                    backward.cotangents,
                )
        return Run(session(finish(model)), refusal=refusal)


def _requantise(tail: ModelProto, graph: Graph, tensor: str, entry: Quantised) -> None:
    """Let a tail quantise and dequantise the values that it is given for a layer, as the file does."""
    integers, value = "xcam/given/quantized", "xcam/given"
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
