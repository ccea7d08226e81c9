"""Branches (If) and loops (Loop) that do not depend on the image's values, replaced by the nodes that are executed.

torch's exporters write `x.squeeze(2)` of an axis whose size they do not know as an If whose condition compares a size. For an
input of a known shape such a condition is known, and so is the number of rounds of most loops. The gradient needs the
nodes inside. The decisions are checked by a run of the resulting model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from xcam.contract import Array
from xcam_onnx.graph import Graph, Shape, bodies, copied, inferred
from xcam_onnx.known import Known
from xcam_onnx.sequences import OPERATORS, resolve_sequences

CONTROL_FLOW = {"If", "Loop"}
ROUNDS, NODES = 1024, 20_000
"""The largest number of rounds of a loop that is unrolled, and of nodes that this may result in."""

Check = Callable[[ModelProto, Sequence[str]], Mapping[str, Array]]
"""Runs a model, and returns some of its tensors."""


@dataclass(frozen=True)
class Decision:
    """The value of a condition, or of a number of rounds."""

    tensor: str
    value: Array


def control_flow_nodes(model: ModelProto) -> int:
    """Return the number of branches, loops, and operators on sequences in the main graph."""
    return sum(node.op_type in CONTROL_FLOW or node.op_type in OPERATORS for node in model.graph.node)


def inlined(model: ModelProto, source: str, shape: Shape, run: Check) -> ModelProto:
    """Replace the branches and loops that are decided for an input of a given shape.

    Args:
        model: The model; it is not changed.
        source: The name of the input.
        shape: The shape of the input; None where a size is left open.
        run: Runs a model on an input of this shape.

    Returns:
        The model, without the branches and loops that could be decided; the model itself where none could.
    """
    result, decisions = _resolved(model, source, shape)
    if decisions is None:
        return model
    live = Graph(result).live
    wanted = {decision.tensor: decision.value for decision in decisions if decision.tensor in live}
    if wanted:
        try:
            values = run(result, list(wanted))
        except Exception:  # a wrong branch, as inferred sizes were wrong
            return model
        if not all(np.array_equal(np.ravel(values[name]), np.ravel(value)) for name, value in wanted.items()):
            return model
    return result


def _resolved(model: ModelProto, source: str, shape: Shape) -> tuple[ModelProto, list[Decision] | None]:
    """Replace branches, loops and sequences until no further one is decided; None where none was."""
    result = copied(model)
    decisions: list[Decision] = []
    values: dict[str, Array] = {}
    any_change = False
    while control_flow_nodes(result):
        known = Known(Graph(inferred(_scratch(result, source, shape, values))), values)
        complete = {name: value.array for name, value in known.values.items() if value.complete}
        inliner = _Inliner(result, known)
        changed = inliner.run()
        decisions += inliner.decisions
        changed |= resolve_sequences(result, known)
        any_change |= changed
        if not changed and len(complete) <= len(values):
            break
        values = complete
    if not any_change:
        return model, None
    del result.graph.value_info[:]
    return inferred(result), decisions


def set_sizes(model: ModelProto, source: str, shape: Shape) -> None:
    """Declare the sizes of an input; None leaves one as it is."""
    declared = next(value for value in model.graph.input if value.name == source).type.tensor_type.shape
    for dim, size in zip(declared.dim, shape, strict=True):
        if isinstance(size, int):
            dim.dim_value = size


def _scratch(model: ModelProto, source: str, shape: Shape, values: Mapping[str, Array]) -> ModelProto:
    """Return a copy for shape inference: with known sizes and values, and without earlier inferences.

    The runtime gets none of them: it would trust a size that is inferred wrongly.
    """
    result = copied(model)
    set_sizes(result, source, shape)
    del result.graph.value_info[:]
    for value in result.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    for node in result.graph.node:
        if len(node.output) == 1 and node.output[0] in values and node.op_type not in {"Constant", *CONTROL_FLOW}:
            tensor = numpy_helper.from_array(np.array(values[node.output[0]], order="C"))
            node.CopyFrom(helper.make_node("Constant", [], [node.output[0]], value=tensor))
    return result


class _Inliner:
    """Replaces, in a model, the branches and loops that are decided by known values."""

    def __init__(self, model: ModelProto, known: Known) -> None:
        self._model, self._known = model, known
        self._version = Graph(model).opset.get("", 1)
        self._tensors, self._names = _counts(model.graph)
        self.decisions: list[Decision] = []

    def run(self) -> bool:
        """Replace them; return whether there were any."""
        nodes: list[NodeProto] = []
        changed = False
        for node in self._model.graph.node:
            body = None
            if node.op_type in CONTROL_FLOW and node.domain in ("", "ai.onnx"):
                body = self._branch(node) if node.op_type == "If" else self._loop(node)
            changed |= body is not None
            nodes += [_copy(node)] if body is None else body
        if changed:
            del self._model.graph.node[:]
            self._model.graph.node.extend(nodes)
        return changed

    def _branch(self, node: NodeProto) -> list[NodeProto] | None:
        condition = self._known.complete(node.input[0])
        if condition is None or condition.size != 1:
            return None
        branch = _subgraph(node, "then_branch" if condition.item() else "else_branch")
        self.decisions.append(Decision(node.input[0], condition))
        return self._body(branch, {}, list(node.output), node.name or node.output[0], always=False)

    def _loop(self, node: NodeProto) -> list[NodeProto] | None:
        """Unroll a loop whose number of rounds, or whose condition in each round, is known."""
        inputs = [*node.input, "", ""][: max(len(node.input), 2)]
        rounds = self._known.complete(inputs[0]) if inputs[0] else np.asarray(ROUNDS + 1)
        condition = self._known.complete(inputs[1]) if inputs[1] else np.asarray(True)
        if rounds is None or condition is None or rounds.size != 1 or condition.size != 1:
            return None
        body, title = _subgraph(node, "body"), node.name or node.output[0]
        carried = inputs[2:]
        scans = len(body.output) - 1 - len(carried)
        collected: list[list[str]] = [[] for _ in range(scans)]
        nodes: list[NodeProto] = []
        count, goes = 0, bool(condition.item())
        added = len(self._model.graph.initializer)
        while goes and count < int(rounds.item()):
            if count >= ROUNDS or len(nodes) > NODES:
                del self._model.graph.initializer[added:]
                return None
            prefix = f"{title}/{count}"
            outputs = [self._fresh(_joined(prefix, value.name)) for value in body.output]
            index = self._constant(_joined(prefix, body.input[0].name), np.asarray(count, np.int64))
            proceed = self._constant(_joined(prefix, body.input[1].name), np.asarray(True))
            bound = dict(zip((value.name for value in body.input), [index, proceed, *carried], strict=True))
            round_nodes = self._body(body, bound, outputs, prefix, always=True)
            for inner in round_nodes:
                self._known.visit(inner)
            nodes += round_nodes
            proceeds = self._known.complete(outputs[0])
            if proceeds is None or proceeds.size != 1:
                del self._model.graph.initializer[added:]
                return None
            goes, count = bool(proceeds.item()), count + 1
            carried = outputs[1 : 1 + len(carried)]
            for values, output in zip(collected, outputs[1 + len(carried) :], strict=True):
                values.append(output)
        if scans and not count:
            return None  # the shape of an empty result is unknown
        for tensor, value in ((inputs[0], rounds), (inputs[1], condition)):
            if tensor:
                self.decisions.append(Decision(tensor, value))
        finals = [(value, name) for value, name in zip(carried, node.output, strict=False) if name]
        computed = {name for inner in nodes for name in inner.output}
        direct = {value: name for value, name in finals if value in computed}
        nodes = [_renamed(inner, direct) for inner in nodes]
        nodes += [
            helper.make_node("Identity", [direct.get(value, value)], [name])
            for value, name in finals
            if direct.get(value) != name
        ]
        for values, output in zip(collected, node.output[len(carried) :], strict=False):
            nodes += self._stacked([direct.get(value, value) for value in values], output) if output else []
        return nodes

    def _stacked(self, values: list[str], output: str) -> list[NodeProto]:
        """Join the values of all rounds along a new first axis."""
        nodes, parts = [], []
        for value in values:
            parts.append(self._fresh(f"{value}/row"))
            if self._version < 13:
                nodes.append(helper.make_node("Unsqueeze", [value], [parts[-1]], axes=[0]))
            else:
                axes = self._constant(f"{value}/axes", np.asarray([0], np.int64))
                nodes.append(helper.make_node("Unsqueeze", [value, axes], [parts[-1]]))
        return [*nodes, helper.make_node("Concat", parts, [output], axis=0)]

    def _body(
        self, body: GraphProto, names: Mapping[str, str], outputs: Sequence[str], prefix: str, always: bool
    ) -> list[NodeProto]:
        """Return the nodes of a subgraph as nodes of the main graph; its initializers are added there.

        Args:
            body: The subgraph.
            names: Names of the main graph for its inputs.
            outputs: The names of its outputs in the main graph.
            prefix: Begins its names in the main graph, where they are taken.
            always: Begin every name with it: the nodes are used several times.
        """
        renamed = dict(names)
        inner = dict.fromkeys(name for node in body.node for name in node.output if name)
        for value, target in zip(body.output, outputs, strict=False):
            if target and value.name in inner and value.name not in renamed:
                renamed[value.name] = target
        for name in [*(tensor.name for tensor in body.initializer), *inner]:
            if name not in renamed:
                free = not always and self._tensors[name] == 1
                renamed[name] = name if free else self._fresh(_joined(prefix, name))
        for tensor in body.initializer:
            weight = TensorProto()
            weight.CopyFrom(tensor)
            weight.name = renamed[tensor.name]
            self._model.graph.initializer.append(weight)
            if weight.data_location != TensorProto.EXTERNAL:
                self._known.add(weight.name, numpy_helper.to_array(weight))
        nodes = [_renamed(node, renamed) for node in body.node]
        for node in nodes:
            if node.name and (always or self._names[node.name] > 1):
                node.name = _joined(prefix, node.name)
        for value, target in zip(body.output, outputs, strict=False):
            origin = renamed.get(value.name, value.name)
            if target and origin != target:
                nodes.append(helper.make_node("Identity", [origin], [target]))
        return nodes

    def _fresh(self, name: str) -> str:
        """Return a new name that begins with `name`."""
        result, count = name, 1
        while self._tensors[result]:
            result, count = f"{name}_{count}", count + 1
        self._tensors[result] += 1
        return result

    def _constant(self, name: str, value: Array) -> str:
        name = self._fresh(name)
        self._model.graph.initializer.append(numpy_helper.from_array(value, name))
        self._known.add(name, value)
        return name


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}/{name.lstrip('/')}"


def _subgraph(node: NodeProto, name: str) -> GraphProto:
    return next(entry.g for entry in node.attribute if entry.name == name)


def _counts(graph: GraphProto) -> tuple[Counter[str], Counter[str]]:
    """Count how often each name of a tensor, and each name of a node, is defined, in subgraphs too."""
    tensors, names = Counter[str](), Counter[str]()
    tensors.update(value.name for value in (*graph.input, *graph.initializer))
    for node in graph.node:
        tensors.update(name for name in node.output if name)
        names[node.name] += 1
        for inner in bodies(node):
            for total, more in zip((tensors, names), _counts(inner), strict=True):
                total.update(more)
    return tensors, names


def _renamed(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    """Return a copy of a node with other names for some tensors, in its subgraphs too."""
    result = _copy(node)
    result.input[:] = [names.get(name, name) for name in node.input]
    result.output[:] = [names.get(name, name) for name in node.output]
    for graph in bodies(result):
        local = {value.name for value in (*graph.input, *graph.initializer)}
        local |= {name for inner in graph.node for name in inner.output}
        outer = {name: new for name, new in names.items() if name not in local}
        nodes = [_renamed(inner, outer) for inner in graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
        for value in graph.output:
            value.name = outer.get(value.name, value.name)
    return result


def _copy(node: NodeProto) -> NodeProto:
    result = NodeProto()
    result.CopyFrom(node)
    return result
