"""The standard form of a model: for everything that reads or differentiates its graph.

Three graphs of one model:

original   the file as the runtime runs it. Predictions and the values of layers come from it
standard   the same function in ONNX's standard operators: quantised and fused operators are expanded, each quantised value
           is dequantised once, and operators that only move values come behind that. Gradients and tails come from it
runnable   the original, and the nodes that compute those tensors of the standard form which the original lacks

Tensors that the standard form shares with the original have the same name, type and value; all others are `xcam/…`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from xcam_onnx.graph import FLOAT8, INTEGERS, Graph, bodies, copied, declared, inferred, nodes, reading
from xcam_onnx.standard import attention, fused, nchwc, quantized  # noqa: F401  (they register the expansions)
from xcam_onnx.standard.registry import MICROSOFT, NotExpandable, Original, Writer, expansion
from xcam_onnx.weights import WeightFiles

DEQUANTIZE, QUANTIZE = "DequantizeLinear", "QuantizeLinear"
MOVING = {
    *("MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Concat"),
    *("Expand", "Tile", "Identity", "DepthToSpace", "SpaceToDepth"),
}
"""Operators that only choose or move values: the same on integers as on the numbers that these represent."""
DYNAMIC = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul")
"""Operators that take the range of the values that they quantise."""
SEVERAL = ("Concat",)
"""Those of them whose inputs are all values, and not indices or shapes."""


@dataclass(frozen=True)
class Quantised:
    """A tensor of integers that represents real numbers."""

    integers: str
    scale: str
    zero_point: str
    """"" where it is omitted: 0."""
    axis: int | None
    """The axis of the scales; None for a single one."""
    dtype: int
    """The TensorProto type of the integers."""
    domain: str = ""
    """The domain of its DequantizeLinear."""

    def dequantize(self, out: str, source: str = "") -> NodeProto:
        """Return the node that computes the real numbers."""
        return self._node(DEQUANTIZE, source or self.integers, out)

    def quantize(self, source: str, out: str) -> NodeProto:
        """Return the node that computes the integers."""
        return self._node(QUANTIZE, source, out)

    def _node(self, op: str, source: str, out: str) -> NodeProto:
        names = [source, self.scale, *([self.zero_point] if self.zero_point else [])]
        attributes: dict[str, Any] = {} if self.axis is None else {"axis": self.axis}
        if op == QUANTIZE and not self.zero_point and self.dtype != TensorProto.UINT8:
            attributes["output_dtype"] = self.dtype
        return helper.make_node(op, names, [out], name=out, domain=self.domain, **attributes)


class _Written(NamedTuple):
    """The standard form of a model, and all that leads from the one to the other: see StandardForm."""

    model: ModelProto
    runnable: ModelProto
    floats: dict[str, str]
    quantised: dict[str, Quantised]
    merged: dict[str, str]


class StandardForm:
    """A model in its three graphs. The standard form is written when it is first needed.

    Args:
        graph: The model, its nodes in execution order. It is not changed.
        weights: The files with its larger weights.

    Attributes:
        ends: The model, in plain layout and with the types that the file states. The standard form has the same input and
            outputs, under the same names.

    Raises:
        ModelError: See nchwc.plain.
    """

    def __init__(self, graph: Graph, weights: WeightFiles | None = None) -> None:
        self._graph, self._weights = graph, weights
        is_blocked = any(node.domain == nchwc.DOMAIN for node in graph.nodes)
        self._unblocked = nchwc.plain(graph.typed.model, weights) if is_blocked else None
        self.ends = Graph(self._unblocked.model) if self._unblocked else graph

    @property
    def original(self) -> ModelProto:
        """The model, with inferred types."""
        return self._graph.typed.model

    @property
    def _plain(self) -> Graph:
        return self.ends if self._unblocked else self._graph.typed

    @cached_property
    def is_changed(self) -> bool:
        """Whether the standard form is another graph than the original."""
        is_quantised = any(_is(node, DEQUANTIZE) for node in self.ends.nodes)
        return is_quantised or self._unblocked is not None or bool(_expandable(self.ends))

    @property
    def model(self) -> ModelProto:
        """The standard form; `original` itself where that is in standard form."""
        return self._written.model

    @property
    def runnable(self) -> ModelProto:
        """The original, and the nodes that compute further tensors of the standard form."""
        return self._written.runnable

    @property
    def floats(self) -> dict[str, str]:
        """Tensor of quantised values → the tensor of the standard form that has them as real numbers."""
        return self._written.floats

    @property
    def quantised(self) -> dict[str, Quantised]:
        """The other way round, for each of these tensors."""
        return self._written.quantised

    @property
    def merged(self) -> dict[str, str]:
        """Output of a DequantizeLinear that the standard form lacks → the tensor that replaces it."""
        return self._written.merged

    @cached_property
    def graph(self) -> Graph:
        """The graph of the standard form."""
        return Graph(self.model) if self.is_changed else self._plain

    @cached_property
    def _written(self) -> _Written:
        if not self.is_changed:
            return _Written(self.original, self.original, {}, {}, {})
        model, unblocked = self.original, self._unblocked
        expanded = _expanded(self._plain, self._weights)
        merger = _Merger(expanded)
        result = copied(expanded.model)
        del result.graph.node[:]
        result.graph.node.extend(merger.nodes)
        result.graph.value_info.extend(merger.types)
        runnable = copied(model)
        computed = {name for node in model.graph.node for name in node.output} | {v.name for v in model.graph.input}
        quantised = {merger.floats[name]: entry for name, entry in merger.quantised.items() if name in merger.floats}
        recovered = [
            entry.dequantize(name)
            for name, entry in quantised.items()
            if name not in computed and entry.integers in computed
        ]
        needed = {name for node in recovered for name in node.input} - {t.name for t in model.graph.initializer}
        graph = Graph(result)
        runnable.graph.node.extend(recovered)
        runnable.graph.value_info.extend(graph.info(node.output[0]) for node in recovered)
        runnable.graph.initializer.extend(t for t in result.graph.initializer if t.name in needed)
        _import(runnable, {entry.domain for entry in quantised.values()})
        if unblocked:
            runnable.graph.node.extend(unblocked.nodes)
            runnable.graph.value_info.extend(graph.info(node.output[0]) for node in unblocked.nodes)
            merger.floats.update(unblocked.tensors)
        return _Written(result, runnable, merger.floats, quantised, merger.merged)

    @cached_property
    def _readers(self) -> dict[str, list[NodeProto]]:
        readers: dict[str, list[NodeProto]] = {}
        for node, read in zip(self.graph.nodes, self.graph.reads, strict=True):
            for name in read:
                readers.setdefault(name, []).append(node)
        return readers

    @property
    def mixes_rows(self) -> bool:
        """Whether the rows of a batch change each other: dynamic quantisation takes the range of the whole batch."""
        graph = self.ends
        return any(node.op_type in DYNAMIC and node.input[0] in graph.live for node in graph.nodes)

    def as_read(self, tensor: str) -> str | None:
        """Return the tensor of the standard form that a tail reads for a tensor of the original.

        For integers these are the real numbers that they represent; for a tensor that is read only by its QuantizeLinear,
        the value behind that: rounded, clipped and dequantised. None for integers of an unknown scale.
        """
        outputs = {value.name for value in self.model.graph.output}
        seen = set[str]()
        while tensor not in seen:
            seen.add(tensor)
            tensor = self.merged.get(tensor, tensor)
            if tensor in self.floats:
                tensor = self.floats[tensor]
            elif self.graph.dtype(tensor) in (*INTEGERS, *FLOAT8):
                return None
            readers = [] if tensor in outputs else self._readers.get(tensor, [])
            if len(readers) == 1 and _is(readers[0], QUANTIZE) and readers[0].input[0] == tensor:
                follower = readers[0].output[0]
                tensor = follower if follower in self.floats else tensor
        return tensor

    def ahead(self, tensor: str) -> str:
        """Return the tensor that is quantised to give an output; the output itself where it is not quantised.

        Scores often lie beyond the range that a quantiser gave them. That the file stores a score in a limited range is not
        part of its derivative: with the clip, the best class of such an image would have none.
        """
        entry = self.quantised.get(tensor)
        index = None if entry is None else self.graph.producer.get(entry.integers)
        if index is None or not _is(self.graph.nodes[index], QUANTIZE):
            return tensor
        return self.graph.nodes[index].input[0]


def _is(node: NodeProto, op: str) -> bool:
    return node.op_type == op and node.domain in ("", MICROSOFT)


def _import(model: ModelProto, domains: Iterable[str]) -> None:
    """Declare domains of operators, in the versions that this runtime has."""
    known = {entry.domain for entry in model.opset_import}
    model.opset_import.extend(helper.make_opsetid(domain, 1) for domain in sorted(set(domains) - known) if domain)


def _expanded(graph: Graph, weights: WeightFiles | None) -> Graph:
    """Return the graph with its expandable nodes expanded, as far as they can be, and types inferred.

    An expansion may need the types that only earlier ones let the inference find: there are as many rounds as that takes.
    """
    remaining, before = _expandable(graph), 0
    while remaining != before:
        before = remaining
        taken = {name for node in graph.nodes for name in (node.name, *node.output)} | set(graph.initializers)
        writer = Writer(graph.opset.get("", 1), taken=taken)
        result = copied(graph.model)
        del result.graph.node[:]
        for node in graph.nodes:
            expand = expansion(node, writer.opset)
            start, constants = len(writer.nodes), len(writer.constants)
            if expand is not None:
                try:
                    expand(Original(node, graph, weights), writer)
                except NotExpandable:
                    del writer.nodes[start:], writer.constants[constants:]
            if len(writer.nodes) == start:
                writer.nodes.append(node)
        result.graph.node.extend(writer.nodes)
        result.graph.initializer.extend(writer.constants)
        _import(result, writer.domains)
        graph = Graph(inferred(result))
        remaining = _expandable(graph)
    return graph


def _expandable(graph: Graph) -> int:
    """Count the nodes that an expansion exists for."""
    opset = graph.opset.get("", 1)
    return sum(expansion(node, opset) is not None for node in graph.nodes)


class _Merger:
    """Merges the DequantizeLinear nodes of each value, and moves operators on integers behind them.

    Afterwards every tensor of quantised values with a known scale has one DequantizeLinear, and every other reader of it
    reads that: a graph that is cut there is cut for all readers.

    Args:
        graph: The expanded graph.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.nodes: list[NodeProto] = []
        self.types: list[ValueInfoProto] = []
        """The types and shapes of the tensors that are written."""
        self.floats: dict[str, str] = {}
        self.quantised: dict[str, Quantised] = {}
        self._again: dict[str, str] = {}
        """Integers → the same integers, computed from their real numbers."""
        self.merged: dict[str, str] = {}
        within = (inner for node in graph.nodes for inner in _inner(node))
        self._pinned = {v.name for v in graph.proto.output} | {name for node in within for name in node.input}
        self._know_inputs()
        for node in graph.nodes:
            self._add(node)
        for value in graph.proto.output:
            if value.name in self.quantised:
                self._float(value.name)

    def _know_inputs(self) -> None:
        """Take the scale of an input of integers from the DequantizeLinear that reads it, first moved or not."""
        graph, inputs = self._graph, {value.name for value in self._graph.inputs}
        for node in graph.nodes:
            if not _is(node, DEQUANTIZE):
                continue
            source = node.input[0]
            while source in graph.producer:
                producer = graph.nodes[graph.producer[source]]
                if producer.op_type not in MOVING or producer.op_type in SEVERAL or producer.domain:
                    break
                source = producer.input[0]
            if source in inputs and source not in self.quantised:
                self._know(node, source)
                entry = self.quantised.get(source)
                if source != node.input[0] and entry is not None and entry.axis is not None:
                    del self.quantised[source]

    def _add(self, node: NodeProto) -> None:
        if any(name in self.merged for name in node.input):
            node = reading(node, [self.merged.get(name, name) for name in node.input])
        known = [name for name in node.input if name in self.quantised]
        if _is(node, QUANTIZE) and node.input[0] in self._graph.live and len(node.input) > 1:
            self.nodes.append(node)
            self._know(node, node.output[0])
        elif _is(node, DEQUANTIZE) and node.input[0] in self._graph.live:
            self._dequantise(node)
        elif known and node.op_type in MOVING and not node.domain and self._moves(node, known):
            return
        elif known and not _is(node, DEQUANTIZE):
            self.nodes.append(reading(node, [self._requantised(n) if n in self.quantised else n for n in node.input]))
        else:
            self.nodes.append(node)

    def _know(self, node: NodeProto, integers: str) -> None:
        """Remember the scale of integers from the QuantizeLinear or DequantizeLinear next to them."""
        if any(entry.name == "block_size" and entry.i for entry in node.attribute):
            return
        shape = self._graph.shape(node.input[1])
        several = shape is None or (len(shape) > 0 and shape != (1,))
        axis = next((int(entry.i) for entry in node.attribute if entry.name == "axis"), 1) if several else None
        zero = node.input[2] if len(node.input) > 2 else ""
        dtype = self._graph.dtype(zero) if zero else self._graph.dtype(integers) or TensorProto.UINT8
        self.quantised[integers] = Quantised(integers, node.input[1], zero, axis, dtype, node.domain)

    def _dequantise(self, node: NodeProto) -> None:
        integers, out = node.input[0], node.output[0]
        if integers not in self.floats:  # its scale decides, even if the QuantizeLinear has another one
            self._know(node, integers)
        entry = self.quantised.get(integers)
        if entry is None or not self._same(entry, node):
            requantised = self._requantised(integers) if integers in self.floats else integers
            self.nodes.append(reading(node, [requantised, *list(node.input)[1:]]))
        elif integers not in self.floats:
            self.nodes.append(node)
            self.floats[integers] = out
        elif out in self._pinned:
            self.nodes.append(helper.make_node("Identity", [self.floats[integers]], [out], name=node.name))
        else:
            self.merged[out] = self.floats[integers]

    def _same(self, entry: Quantised, node: NodeProto) -> bool:
        """Return whether a DequantizeLinear has the scale and zero point of its integers."""
        other = node.input[2] if len(node.input) > 2 else ""
        return self._equal(entry.scale, node.input[1]) and self._equal(entry.zero_point, other)

    def _equal(self, first: str, second: str) -> bool:
        if first == second:
            return True
        a, b = (self._graph.constant(name) if name else np.zeros((), np.int8) for name in (first, second))
        return a is not None and b is not None and a.size == b.size and bool((a.ravel() == b.ravel()).all())

    def _float(self, integers: str) -> str:
        """Return the real numbers of integers; a DequantizeLinear is written where there is none."""
        if integers not in self.floats:
            self.floats[integers] = f"xcam/dequantized/{integers}"
            self.nodes.append(self.quantised[integers].dequantize(self.floats[integers]))
            self._declare_float(integers)
        return self.floats[integers]

    def _requantised(self, integers: str) -> str:
        """Return the same integers, computed from their real numbers: for a reader of the integers themselves."""
        if integers not in self._again:
            value = self._float(integers)
            self._again[integers] = f"xcam/quantized/{integers}"
            self.nodes.append(self.quantised[integers].quantize(value, self._again[integers]))
            dtype, shape = self.quantised[integers].dtype, self._graph.shape(integers)
            self.types.append(declared(self._again[integers], dtype, shape))
        return self._again[integers]

    def _declare_float(self, integers: str) -> None:
        dtype = self._graph.dtype(self.quantised[integers].scale) or TensorProto.FLOAT
        self.types.append(declared(self.floats[integers], dtype, self._graph.shape(integers)))

    def _moves(self, node: NodeProto, known: Sequence[str]) -> bool:
        """Write an operator that moves integers on their real numbers; return False where that is impossible."""
        values = [name for name in (node.input if node.op_type in SEVERAL else node.input[:1]) if name]
        entries = [self.quantised.get(name) for name in values]
        first = entries[0]
        if first is None or first.axis is not None or set(known) - set(values):
            return False
        if not all(e is not None and self._equal_parameters(first, e) for e in entries):
            return False
        if node.op_type == "MaxPool" and len(node.output) > 1 and node.output[1]:
            return False
        moved = reading(node, [self._float(n) if n in values else n for n in node.input])
        del moved.output[:]
        moved.output.extend(f"xcam/float/{name}" if name else "" for name in node.output)
        self.nodes.append(moved)
        for name in node.output:
            if name:
                self.quantised[name] = replace(first, integers=name)
                self.floats[name] = f"xcam/float/{name}"
                self._declare_float(name)
                if name in self._pinned:
                    self.nodes.append(self.quantised[name].quantize(self.floats[name], name))
        return True

    def _equal_parameters(self, a: Quantised, b: Quantised) -> bool:
        return b.axis is None and self._equal(a.scale, b.scale) and self._equal(a.zero_point, b.zero_point)


def _inner(node: NodeProto) -> Iterator[NodeProto]:
    """Yield the nodes of a node's branches and loops."""
    for graph in bodies(node):
        yield from nodes(graph)
