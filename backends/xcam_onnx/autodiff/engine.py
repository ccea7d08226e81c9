"""Reverse-mode differentiation of an ONNX graph: from its outputs back to some tensors, in plain ONNX operators.

Source: Griewank and Walther, Evaluating Derivatives (2008), section 3.2: adjoints are accumulated along the nodes in
reverse. For each operator a rule computes the vector-Jacobian products: see `xcam_onnx.autodiff.registry.vjp`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx.inliner
from onnx import ModelProto, NodeProto, TensorProto

from xcam.errors import ModelError
from xcam.explanation.context import without_gradients
from xcam_onnx.autodiff.registry import RULES, Node
from xcam_onnx.autodiff.values import Ops, Unsupported, Value
from xcam_onnx.graph import FLOAT8, FLOATS, INTEGERS, Graph, Shape, inferred, reads
from xcam_onnx.standard.registry import PREFIX

OPSET = 18
"""The oldest operator set in which the written nodes are correct; newer ones are too."""

RUNTIME_DECISIONS = {"If": "whose branch", "Loop": "whose number of rounds"}
QUANTISING = {"QuantizeLinear", "DynamicQuantizeLinear"}
PASSING = {
    *("Cast", "Identity", "Add", "Sub", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Concat", "Split"),
    *("Slice", "Gather", "GatherElements", "GatherND", "Expand", "Tile", "Pad", "DepthToSpace", "SpaceToDepth"),
    *("MaxPool", "Relu", "Clip", "Max", "Min", "Where"),
}
"""Operators whose results are quantised values where their first inputs are."""
STEPS = {"Sign", "Floor", "Ceil", "Round", "Hardmax"}
"""Operators whose gradient is zero everywhere."""


class NoPath(ModelError):  # noqa: N818
    """No differentiable path leads from a tensor to the outputs."""

    def __init__(self, tensor: str) -> None:
        super().__init__(
            f"no differentiable path leads from {tensor!r} to the outputs (only integers do); choose another layer, or "
            + _alternatives()
        )
        self.tensor = tensor


@dataclass(frozen=True)
class Backward:
    """The nodes that differentiation wrote."""

    nodes: list[NodeProto]
    constants: list[TensorProto]
    shapes: list[NodeProto]
    """Nodes that belong behind the forward graph."""
    reads: list[str]
    """Tensors of the forward graph that the nodes read."""
    requested: dict[str, tuple[int, Shape | None]]
    """Types and shapes of tensors that are added to the forward graph (shapes, optional outputs of its nodes)."""


def inline_undifferentiable(model: ModelProto, at: Collection[str], outputs: Sequence[str]) -> ModelProto:
    """Return the model, with the operators behind `at` that lack a rule replaced by their definitions, if these exist."""
    _, path = _path(Graph(model), at, set(outputs))
    operators = {(node.domain, node.op_type) for node in path}
    without_rule = [key for key in sorted(operators) if key not in RULES and _is_defined_by_others(key, model)]
    if not without_rule:
        return model
    _complete_for_inliner(model, without_rule)
    return inferred(onnx.inliner.inline_selected_functions(model, without_rule, inline_schema_functions=True))


def _complete_for_inliner(model: ModelProto, operators: Sequence[tuple[str, str]]) -> None:
    """Add the types of initializers and the defaults of attributes, which the inliner does not look up."""
    graph = Graph(model)
    listed = {value.name for value in (*model.graph.value_info, *model.graph.input)}
    model.graph.value_info.extend(graph.info(name) for name in graph.initializers if name not in listed)
    for node in model.graph.node:
        if (node.domain, node.op_type) in operators:
            schema = onnx.defs.get_schema(node.op_type, graph.opset.get(node.domain, 1), node.domain)
            present = {a.name for a in node.attribute}
            node.attribute.extend(
                a.default_value
                for name, a in schema.attributes.items()
                if name not in present and a.default_value.name
            )


def _is_defined_by_others(key: tuple[str, str], model: ModelProto) -> bool:
    domain, op = key
    version = next((o.version for o in model.opset_import if o.domain in (domain, domain or "ai.onnx")), 0)
    try:
        schema: Any = onnx.defs.get_schema(op, version, domain)
    except Exception:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def differentiable(graph: Graph, outputs: Sequence[str]) -> set[str]:
    """Return the tensors to which a gradient leads from the outputs, as far as operators and types decide."""
    able: dict[tuple[str, str], bool] = {}

    def has_gradient(node: NodeProto) -> bool:
        key = node.domain, node.op_type
        if key not in able:
            is_step = node.op_type in STEPS and not node.domain
            able[key] = not is_step and (key in RULES or _is_defined_by_others(key, graph.model))
        return able[key]

    carries = _carrying(graph)
    reached = set(outputs)
    for node, read in zip(reversed(graph.nodes), reversed(graph.reads), strict=True):
        if any(name in reached for name in node.output) and has_gradient(node):
            reached.update(name for name in read if carries(name))
    return reached


def differentiate(graph: Graph, at: Mapping[str, str], cotangents: Mapping[str, str], opset: int) -> Backward:
    """Write the gradient of Σ ⟨cotangent, output⟩ with respect to some tensors: the total derivative at each.

    The graph is not changed, except that nodes get optional outputs that the gradient needs.

    Args:
        graph: The forward graph.
        at: For each tensor to differentiate with respect to, the name of the gradient.
        cotangents: For each output that counts, the name of the tensor that holds its cotangent.
        opset: The version of the operators that are written.

    Returns:
        The nodes, reduced to those that the gradients need.

    Raises:
        ModelError: Operators have no rule, or a node cannot be differentiated.
        TooOld: An operator to be written does not exist in `opset`.
    """
    ops = Ops(graph, "xcam/d", opset)
    active, path = _path(graph, at, set(cotangents))
    without_rule = [node for node in path if (node.domain, node.op_type) not in RULES]
    if without_rule:
        raise ModelError(_explain_without_rule(without_rule))
    adjoints: dict[str, list[Value]] = {
        output: [Value(ops, source, graph.dtype(output))] for output, source in cotangents.items() if output in active
    }
    for proto in reversed(path):
        gradients = [ops.total(adjoints.pop(o)) if o in adjoints else None for o in proto.output]
        for output, gradient in zip(proto.output, gradients, strict=True):
            if output in at and gradient is not None:
                ops.named(gradient, at[output])
        while gradients and gradients[-1] is None:
            gradients.pop()
        if not gradients:
            continue
        try:
            for source, part in _input_gradients(Node(proto, ops), gradients, active):
                adjoints.setdefault(source, []).append(part)
        except Unsupported as error:
            raise ModelError(
                f"cannot differentiate the node {proto.name or proto.output[0]!r} ({proto.op_type}): {error}; "
                f"choose a layer behind it, or {_alternatives()}"
            ) from error
    written = {output for node in ops.nodes for output in node.output}
    for tensor, name in at.items():
        if tensor in adjoints:
            ops.named(ops.total(adjoints[tensor]), name)
        elif name not in written:
            raise NoPath(tensor)
    return _prune(ops, at.values())


def _input_gradients(node: Node, gradients: list[Value | None], active: set[str]) -> list[tuple[str, Value]]:
    """Apply a node's rule: the gradients of its inputs that are in `active`."""
    entry = RULES[node.proto.domain, node.proto.op_type]
    if len(gradients) > entry.max_gradients:
        raise Unsupported(f"its output {len(gradients) - 1} leads to the score")
    products = entry.rule(node, *gradients)
    products = products if isinstance(products, tuple | list) else (products,)
    result = []
    for index, source in enumerate(node.proto.input):
        if source not in active:
            continue
        if index >= len(products):
            raise Unsupported(f"the derivative with respect to its input {index} is not known")
        product = products[index]
        if product is not None:
            if entry.broadcasts:
                product = node.ops.undo_broadcast(product, node.y, node.inputs[index])
            result.append((source, product))
    return result


def _path(graph: Graph, at: Collection[str], outputs: set[str]) -> tuple[set[str], list[NodeProto]]:
    """Return the tensors that carry a gradient, and the nodes between them in order."""
    carries, carried, forward = _carrying(graph), set(at), []
    for node, read in zip(graph.nodes, graph.reads, strict=True):
        if carried.isdisjoint(read):
            continue
        names = [name for name in node.output if name and carries(name)]
        if names:
            carried.update(names)
            forward.append(node)
    needed, path = set(outputs), []
    for node in reversed(forward):
        if any(name in needed for name in node.output):
            needed.update(reads(node))
            path.append(node)
    return carried & needed, path[::-1]


def _carrying(graph: Graph) -> Callable[[str], bool]:
    """Return a function that decides whether a tensor can have a gradient: floats and quantised values."""
    integers = quantised(graph)
    constants = {name for node in graph.nodes if node.op_type == "DynamicQuantizeLinear" for name in node.output[1:]}

    def carries(name: str) -> bool:
        dtype = graph.dtype(name)
        if dtype == 0:
            return name in graph.producer
        return (dtype in FLOATS or dtype in FLOAT8 or name in integers) and name not in constants

    return carries


def quantised(graph: Graph) -> set[str]:
    """Return the integer tensors whose values are real numbers in steps: their gradient is that of the numbers.

    They come from QuantizeLinear, DynamicQuantizeLinear and the sums of integers that xcam_onnx.standard writes in float.
    Other integers are labels, indices and masks, which have no gradient.
    """
    result = set[str]()
    for node in graph.nodes:
        if (
            node.op_type in QUANTISING
            or (node.op_type == "Cast" and node.name.startswith(PREFIX))
            or (node.op_type in PASSING and any(name in result for name in node.input))
        ):
            result.update(name for name in node.output if graph.dtype(name) in {*INTEGERS, TensorProto.INT32})
    return result


def _explain_without_rule(nodes: Sequence[NodeProto]) -> str:
    names: dict[str, list[str]] = {}
    for node in nodes:
        kind = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
        names.setdefault(kind, []).append(node.name or node.output[0])
    listed = "; ".join(
        f"{kind} ({', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''})"
        + (f", {RUNTIME_DECISIONS[kind]} is known only while the model runs" if kind in RUNTIME_DECISIONS else "")
        for kind, names in sorted(names.items())
    )
    return (
        f"cannot differentiate operators between the layer and the outputs: {listed}; choose a layer behind them, "
        f"or {_alternatives()}"
    )


def _alternatives() -> str:
    return f"a method that needs no gradient: {', '.join(without_gradients())}"


def _prune(ops: Ops, names: Iterable[str]) -> Backward:
    """Keep the nodes that lead to the tensors `names`."""
    needed, nodes = set(names), []
    for node in reversed(ops.nodes):
        if any(output in needed for output in node.output):
            nodes.append(node)
            needed.update(node.input)
    nodes.reverse()
    constants = [tensor for tensor in ops.constants if tensor.name in needed]
    shapes = [node for node in ops.shapes if node.output[0] in needed]
    written = {output for node in nodes for output in node.output} | {tensor.name for tensor in constants}
    external = list(dict.fromkeys(n for node in nodes for n in reads(node) if n not in written))
    requested = {name: kind for name, kind in ops.requested.items() if name in external}
    return Backward(nodes, constants, shapes, external, requested)
