"""Reverse-mode differentiation of an ONNX graph: from its outputs back to one tensor, in plain ONNX operators.

Source: Griewank and Walther, Evaluating Derivatives (2008), section 3.2: adjoints are accumulated along the nodes in
reverse. A rule gives, for one operator, the vector-Jacobian products: see `vjp`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import ModelProto, NodeProto, TensorProto

from xcam.errors import ModelError
from xcam.explanation.context import without_gradients
from xcam_onnx.autodiff.values import Ops, Unsupported, Value
from xcam_onnx.graph import FLOATS, Graph, Shape, attribute, inferred, reads

OPSET = 18
"""The oldest version of the operators in which what is emitted is right; newer ones are too."""

INTEGER_NOTE = "quantised values count as the numbers that they stand for: their gradient passes straight through"
QUANTISED = {
    TensorProto.INT8,
    TensorProto.UINT8,
    TensorProto.INT16,
    TensorProto.UINT16,
    TensorProto.INT4,
    TensorProto.UINT4,
}
SUMMING = {"ConvInteger", "MatMulInteger"}

Rule = Callable[..., Any]


@dataclass(frozen=True)
class _Entry:
    rule: Rule
    broadcasts: bool
    takes: int
    """How many outputs may have a gradient."""


RULES: dict[tuple[str, str], _Entry] = {}


def vjp(*ops: str, broadcasts: bool = False, domain: str = "") -> Callable[[Rule], Rule]:
    """Register a rule: (node, gradient of its first output, …) → the gradients of its inputs.

    What it returns is one Value for the first input, or a tuple for the first inputs. None stands for a derivative that
    is zero by its definition (a shape, an index); an input that is left out and needed is an error. `broadcasts`: what
    it returns has the output's shape, and is summed down to the input's.
    """

    def register(rule: Rule) -> Rule:
        parameters = list(inspect.signature(rule).parameters.values())
        many = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
        for op in ops:
            RULES[domain, op] = _Entry(rule, broadcasts, 1000 if many else len(parameters) - 1)
        return rule

    return register


class Node:
    """A node of the graph, as a rule sees it."""

    def __init__(self, proto: NodeProto, ops: Ops) -> None:
        self.proto, self.ops = proto, ops

    @cached_property
    def inputs(self) -> list[Value | None]:
        return [self.ops.forward(name) if name else None for name in self.proto.input]

    @cached_property
    def outputs(self) -> list[Value]:
        return [self.ops.forward(name) for name in self.proto.output]

    @property
    def x(self) -> Value:
        value = self.inputs[0]
        assert value is not None
        return value

    @property
    def y(self) -> Value:
        return self.outputs[0]

    def input(self, place: int) -> Value | None:
        """An optional input."""
        return self.inputs[place] if place < len(self.inputs) else None

    def const(self, place: int, what: str) -> np.ndarray | None:
        """The value of an optional input that must be fixed; None where it is not given."""
        given = self.input(place)
        if given is None:
            return None
        value = given.const
        if value is None:
            raise Unsupported(f"its {what} is worked out while the model runs")
        return value

    def attr(self, name: str, default: Any = None) -> Any:
        return attribute(self.proto, name, default)

    def axis(self, default: int = 0, name: str = "axis") -> int:
        """An axis attribute, counted from the front."""
        return int(self.attr(name, default)) % max(self.x.rank, 1)

    @property
    def version(self) -> int:
        """Since which version of the operator set this operator means what it does."""
        domain = self.proto.domain
        return onnx.defs.get_schema(self.proto.op_type, self.ops.graph.opset.get(domain, 1), domain).since_version

    def extra(self, place: int, dtype: int) -> Value:
        """An optional output, shaped like the first, asked for where the node does not give it yet."""
        while len(self.proto.output) <= place:
            self.proto.output.append("")
        if not self.proto.output[place]:
            self.proto.output[place] = self.ops.fresh(f"{self.proto.op_type}_output")
            self.ops.asked[self.proto.output[place]] = dtype, self.y.shape
        return Value(self.ops, self.proto.output[place], dtype)


@dataclass(frozen=True)
class Backward:
    """What differentiation wrote."""

    nodes: list[NodeProto]
    constants: list[TensorProto]
    shapes: list[NodeProto]
    """Nodes to be put behind the forward graph."""
    taken: list[str]
    """Tensors of the forward graph that the nodes read."""
    asked: dict[str, tuple[int, Shape | None]]
    """Those that the forward graph had not (shapes, and optional outputs of its nodes): their types and shapes."""
    gradient: str
    straight_through: bool
    """Quantised values were passed."""


def ready(model: ModelProto, at: str, outputs: Sequence[str]) -> ModelProto:
    """The model; operators between `at` and the outputs that have no rule, but a definition by others, replaced by it."""
    from xcam_onnx.autodiff import rules  # noqa: F401

    _, path = _path(Graph(model), at, set(outputs))
    names = {(node.domain, node.op_type) for node in path}
    lacking = [key for key in sorted(names) if key not in RULES and _defined(key, model)]
    if not lacking:
        return model
    return inferred(
        onnx.inliner.inline_selected_functions(_spelt(model, lacking), lacking, inline_schema_functions=True)
    )


def _spelt(model: ModelProto, lacking: Sequence[tuple[str, str]]) -> ModelProto:
    """With what the inliner leaves out: the types of initialisers, and the defaults of attributes."""
    graph = Graph(model)
    listed = {value.name for value in (*model.graph.value_info, *model.graph.input)}
    model.graph.value_info.extend(graph.info(name) for name in graph.initializers if name not in listed)
    for node in model.graph.node:
        if (node.domain, node.op_type) in lacking:
            schema = onnx.defs.get_schema(node.op_type, graph.opset.get(node.domain, 1), node.domain)
            given = {a.name for a in node.attribute}
            node.attribute.extend(
                a.default_value for name, a in schema.attributes.items() if name not in given and a.default_value.name
            )
    return model


def _defined(key: tuple[str, str], model: ModelProto) -> bool:
    domain, op = key
    version = next((o.version for o in model.opset_import if o.domain in (domain, domain or "ai.onnx")), 0)
    try:
        schema = onnx.defs.get_schema(op, version, domain)
    except Exception:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def differentiate(graph: Graph, at: str, cotangents: dict[str, str], name: str, opset: int) -> Backward:
    """The gradient of Σ ⟨cotangent, output⟩ with respect to the tensor `at`, as the tensor `name`.

    cotangents: for each output that counts, the name of the tensor that holds its cotangent. opset: the version of the
    operators that are written. The graph is changed only in that some nodes give optional outputs. Raises ModelError,
    with the operators that have no rule; TooOld, where what is to be written does not exist in `opset`.
    """
    from xcam_onnx.autodiff import rules  # noqa: F401

    ops = Ops(graph, "xcam/d", opset)
    active, path = _path(graph, at, set(cotangents))
    lacking = [node for node in path if (node.domain, node.op_type) not in RULES]
    if lacking:
        raise ModelError(_lacking(lacking))
    adjoints: dict[str, list[Value]] = {
        output: [Value(ops, source, graph.dtype(output))] for output, source in cotangents.items() if output in active
    }
    straight = False
    for proto in reversed(path):
        gradients = [ops.total(adjoints.pop(o)) if o in adjoints and o != at else None for o in proto.output]
        while gradients and gradients[-1] is None:
            gradients.pop()
        if not gradients:
            continue
        node, entry = Node(proto, ops), RULES[proto.domain, proto.op_type]
        straight = straight or proto.op_type == "QuantizeLinear"
        try:
            if len(gradients) > entry.takes:
                raise Unsupported(f"its output {len(gradients) - 1} leads to the score")
            found = entry.rule(node, *gradients)
            found = found if isinstance(found, tuple | list) else (found,)
            for place, source in enumerate(proto.input):
                if source not in active:
                    continue
                if place >= len(found):
                    raise Unsupported(f"the derivative with respect to its input {place} is not known here")
                gradient = found[place]
                if gradient is not None:
                    if entry.broadcasts:
                        gradient = ops.broadcast_undone(gradient, node.y, ops.forward(source))
                    adjoints.setdefault(source, []).append(gradient)
        except Unsupported as error:
            raise ModelError(
                f"the node {proto.name or proto.output[0]!r} ({proto.op_type}) cannot be differentiated: {error}; "
                f"choose a layer behind it, or {_others()}"
            ) from error
    if at not in adjoints:
        raise ModelError(
            f"no differentiable path leads from {at!r} to the outputs (only whole numbers do); choose another layer, or "
            + _others()
        )
    ops.named(ops.total(adjoints[at]), name)
    return _needed(ops, name, straight)


def _path(graph: Graph, at: str, outputs: set[str]) -> tuple[set[str], list[NodeProto]]:
    """The tensors that carry a gradient, and the nodes between them, in order."""
    carries, forward = {at}, []
    for node in graph.nodes:
        if not any(name in carries for name in reads(node)):
            continue
        found = [name for name in node.output if name and _carries(graph.dtype(name), node)]
        if found and at not in node.output:
            carries.update(found)
            forward.append(node)
    needed, path = set(outputs), []
    for node in reversed(forward):
        if any(name in needed for name in node.output):
            needed.update(reads(node))
            path.append(node)
    return carries & needed, path[::-1]


def _carries(dtype: int, node: NodeProto) -> bool:
    return dtype in FLOATS or dtype in QUANTISED or node.op_type in SUMMING or dtype == 0


def _lacking(nodes: Sequence[NodeProto]) -> str:
    kinds: dict[str, list[str]] = {}
    for node in nodes:
        kind = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
        kinds.setdefault(kind, []).append(node.name or node.output[0])
    listed = "; ".join(
        f"{kind} ({', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''})"
        for kind, names in sorted(kinds.items())
    )
    return (
        f"between the layer and the outputs stand operators that xcam cannot differentiate: {listed}; choose a layer "
        f"behind them, or {_others()}"
    )


def _others() -> str:
    return f"a method that needs no gradient: {', '.join(without_gradients())}"


def _needed(ops: Ops, name: str, straight: bool) -> Backward:
    """Leave out what the gradient does not need; note what it takes from the forward graph."""
    wanted, nodes = {name}, []
    for node in reversed(ops.nodes):
        if any(output in wanted for output in node.output):
            nodes.append(node)
            wanted.update(node.input)
    nodes.reverse()
    made = {output for node in nodes for output in node.output}
    constants = [tensor for tensor in ops.constants if tensor.name in wanted]
    shapes = [node for node in ops.shapes if node.output[0] in wanted]
    own = made | {tensor.name for tensor in constants}
    taken = list(dict.fromkeys(n for node in nodes for n in reads(node) if n not in own))
    asked = {name: kind for name, kind in ops.asked.items() if name in taken}
    return Backward(nodes, constants, shapes, taken, asked, name, straight)
