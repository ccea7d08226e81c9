"""Sequences of tensors, replaced by their members where the length is known.

A scripted torch module writes a list as a sequence: SequenceInsert in a loop, ConcatFromSequence behind it. When the loop
is unrolled, each member is a tensor of the graph.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from xcam.contract import Array
from xcam_onnx.graph import Graph, attribute, reads
from xcam_onnx.known import Known

OPERATORS = {
    *("SequenceEmpty", "SequenceConstruct", "SequenceInsert", "SequenceErase", "SequenceAt", "SequenceLength"),
    *("SplitToSequence", "ConcatFromSequence"),
}


def resolve_sequences(model: ModelProto, known: Known) -> bool:
    """Replace the operators on sequences whose members are known; return whether there were any."""
    writer = _Writer(model, known)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        written = writer.written(node)
        nodes += [node] if written is None else written
    if not writer.changed:
        return False
    needed = {value.name for value in model.graph.output}
    kept: list[NodeProto] = []
    for node in reversed(nodes):  # the operators that made sequences are not needed any more
        if node.op_type in OPERATORS and not any(name in needed for name in node.output):
            continue
        needed.update(reads(node))
        kept.append(NodeProto())
        kept[-1].CopyFrom(node)
    del model.graph.node[:]
    model.graph.node.extend(kept[::-1])
    model.graph.initializer.extend(writer.constants)
    return True


class _Writer:
    """Writes the nodes that replace an operator on sequences."""

    def __init__(self, model: ModelProto, known: Known) -> None:
        graph = Graph(model)
        self._known = known
        self._version = graph.opset.get("", 1)
        self._taken = {*graph.producer, *graph.initializers, *(value.name for value in model.graph.input)}
        self._members: dict[str, list[str]] = {}
        """The members of each known sequence."""
        self.constants: list[TensorProto] = []
        self.changed = False

    def written(self, node: NodeProto) -> list[NodeProto] | None:
        """Return the nodes that replace a node; None where it remains."""
        if node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type == "Identity" and node.input[0] in self._members:
            self._members[node.output[0]] = self._members[node.input[0]]
            return None
        if node.op_type not in OPERATORS:
            return None
        write: Callable[[NodeProto], list[NodeProto] | None] = getattr(self, f"_{node.op_type}")
        nodes = write(node)
        self.changed |= nodes is not None
        return nodes

    def _name(self, name: str) -> str:
        result, count = name, 1
        while result in self._taken:
            result, count = f"{name}_{count}", count + 1
        self._taken.add(result)
        return result

    def _constant(self, name: str, value: Array) -> str:
        name = self._name(name)
        self.constants.append(numpy_helper.from_array(value, name))
        self._known.add(name, value)
        return name

    def _position(self, node: NodeProto, index: int, default: int | None, length: int) -> int | None:
        """Return the position that an input states, counted from the front; None where it is unknown or invalid."""
        if len(node.input) <= index or not node.input[index]:
            return default
        value = self._known.complete(node.input[index])
        if value is None or value.size != 1 or not -length <= int(value.item()) <= length:
            return None
        return int(value.item()) + (length if value.item() < 0 else 0)

    def _SequenceEmpty(self, node: NodeProto) -> None:  # noqa: N802  (the operators' names)
        self._members[node.output[0]] = []

    def _SequenceConstruct(self, node: NodeProto) -> None:  # noqa: N802
        self._members[node.output[0]] = list(node.input)

    def _SequenceInsert(self, node: NodeProto) -> None:  # noqa: N802
        members = self._members.get(node.input[0])
        if members is not None:
            position = self._position(node, 2, len(members), len(members))
            if position is not None:
                self._members[node.output[0]] = [*members[:position], node.input[1], *members[position:]]

    def _SequenceErase(self, node: NodeProto) -> None:  # noqa: N802
        members = self._members.get(node.input[0])
        if members:
            position = self._position(node, 1, len(members) - 1, len(members))
            if position is not None and position < len(members):
                self._members[node.output[0]] = [*members[:position], *members[position + 1 :]]

    def _SequenceAt(self, node: NodeProto) -> list[NodeProto] | None:  # noqa: N802
        members = self._members.get(node.input[0])
        position = None if members is None else self._position(node, 1, None, len(members))
        if members is None or position is None or position >= len(members):
            return None
        return [helper.make_node("Identity", [members[position]], list(node.output), node.name)]

    def _SequenceLength(self, node: NodeProto) -> list[NodeProto] | None:  # noqa: N802
        members = self._members.get(node.input[0])
        if members is None:
            return None
        value = np.asarray(len(members), np.int64)
        self._known.add(node.output[0], value)
        return [helper.make_node("Constant", [], list(node.output), node.name, value=numpy_helper.from_array(value))]

    def _ConcatFromSequence(self, node: NodeProto) -> list[NodeProto] | None:  # noqa: N802
        members, axis = self._members.get(node.input[0]), attribute(node, "axis")
        if not members:
            return None
        nodes: list[NodeProto] = []
        if attribute(node, "new_axis", 0):
            parts = [self._name(f"{node.output[0]}/{k}") for k in range(len(members))]
            nodes = [
                self._moved("Unsqueeze", member, part, axis) for member, part in zip(members, parts, strict=True)
            ]
            members = parts
        return [*nodes, helper.make_node("Concat", members, list(node.output), node.name, axis=axis)]

    def _SplitToSequence(self, node: NodeProto) -> list[NodeProto] | None:  # noqa: N802
        """Write a Split, whose nodes remain where only some members are read by known positions."""
        axis, keeps = attribute(node, "axis", 0), attribute(node, "keepdims", 1)
        size = self._known.size(node.input[0], axis)
        is_listed = len(node.input) > 1 and bool(node.input[1])
        split = self._known.complete(node.input[1]) if is_listed else np.asarray(1)
        if split is None or (split.ndim == 0 and size is None):
            return None
        if split.ndim:
            sizes = [int(n) for n in split]
        else:
            step = int(split)
            sizes = [min(step, int(size or 0) - begin) for begin in range(0, int(size or 0), step)]
        parts = [self._name(f"{node.output[0]}/{k}") for k in range(len(sizes))]
        if self._version < 13:
            nodes = [helper.make_node("Split", [node.input[0]], parts, node.name, axis=axis, split=sizes)]
        else:
            lengths = self._constant(f"{node.output[0]}/split", np.asarray(sizes, np.int64))
            nodes = [helper.make_node("Split", [node.input[0], lengths], parts, node.name, axis=axis)]
        if not is_listed and not keeps:
            members = [self._name(f"{part}/squeezed") for part in parts]
            nodes += [self._moved("Squeeze", part, member, axis) for part, member in zip(parts, members, strict=True)]
            parts = members
        self._members[node.output[0]] = parts
        # Readers at unknown positions still need a sequence.
        return [*nodes, helper.make_node("SequenceConstruct", parts, list(node.output))]

    def _moved(self, op: str, source: str, result: str, axis: int) -> NodeProto:
        """Return a Squeeze or Unsqueeze of one axis."""
        if self._version < 13:
            return helper.make_node(op, [source], [result], axes=[axis])
        return helper.make_node(
            op, [source, self._constant(f"{result}/axes", np.asarray([axis], np.int64))], [result]
        )
