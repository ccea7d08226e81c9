"""An ONNX graph: the producer, dependencies, type and shape of its tensors; and parts of it as models."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from xcam.contract import Array

FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
INTEGERS: dict[int, tuple[int, int]] = {
    dtype: (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if sign == "" else (0, 2**bits - 1)
    for bits in (2, 4, 8, 16)
    for sign in ("", "U")
    if (dtype := dict(TensorProto.DataType.items()).get(f"{sign}INT{bits}")) is not None
}
"""The integer types of quantised values, with their smallest and largest values."""
FLOAT8: dict[int, int] = {
    TensorProto.FLOAT8E4M3FN: 448,
    TensorProto.FLOAT8E4M3FNUZ: 240,
    TensorProto.FLOAT8E5M2: 57344,
    TensorProto.FLOAT8E5M2FNUZ: 57344,
}
"""The other types of quantised values, with their largest values."""
QUANTIZERS = {"QuantizeLinear": (2, TensorProto.UINT8), "DequantizeLinear": (1, TensorProto.FLOAT)}
"""The input whose type is that of the output, and its type where it is omitted or unknown."""
INFERRED = "inferred by xcam"
"""Description of types that the file itself does not state: with them, the runtime would fuse and round otherwise."""
FIXED = "fixed/"
"""Prefix of the constants of other inputs that are repeated for each image, and of the nodes that repeat them."""
Shape = tuple[int | str | None, ...]
"""A dimension is a number, a name, or None where it is unknown."""


class Graph:
    """A view of a model's main graph.

    The model must not be changed while it is in use, except that nodes may get more outputs.

    Args:
        model: The model.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.proto: GraphProto = model.graph
        self.nodes: Sequence[NodeProto] = list(self.proto.node)
        self.opset: dict[str, int] = {
            "" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import
        }
        self._dtypes: dict[str, int] = {}
        self._shapes: dict[str, Shape | None] = {}

    @cached_property
    def initializers(self) -> dict[str, TensorProto]:
        """The constants that the graph states."""
        return {t.name: t for t in self.proto.initializer}

    @cached_property
    def inputs(self) -> list[ValueInfoProto]:
        """The inputs that a caller gives."""
        return [v for v in self.proto.input if v.name not in self.initializers]

    @cached_property
    def producer(self) -> dict[str, int]:
        """The index of the node that computes a tensor."""
        return {name: i for i, n in enumerate(self.nodes) for name in n.output if name}

    @cached_property
    def reads(self) -> list[list[str]]:
        """The tensors that each node reads."""
        return [reads(node) for node in self.nodes]

    @cached_property
    def _declarations(self) -> dict[str, ValueInfoProto | TensorProto]:
        graph = self.proto
        return {v.name: v for v in (*graph.output, *graph.input, *graph.value_info, *self.initializers.values())}

    @cached_property
    def typed(self) -> Graph:
        """The same graph with inferred types and shapes; this one has those that the file states."""
        return Graph(inferred(self.model))

    def dtype(self, name: str) -> int:
        """Return the TensorProto data type; 0 where it is unknown."""
        if name not in self._dtypes:
            self._dtypes[name] = _dtype(self._declarations.get(name))
        return self._dtypes[name]

    def shape(self, name: str) -> Shape | None:
        """Return the shape; None where the rank is unknown."""
        if name not in self._shapes:
            self._shapes[name] = _shape(self._declarations.get(name))
        return self._shapes[name]

    def set_type(self, name: str, dtype: int, shape: Shape) -> None:
        """Set the type and shape of a tensor to those of a run."""
        self._dtypes[name], self._shapes[name] = dtype, shape

    def constant(self, name: str) -> Array | None:
        """Return the value of a small constant; None for other tensors."""
        if name in self.initializers:
            tensor = self.initializers[name]
            return None if tensor.data_location == TensorProto.EXTERNAL else numpy_helper.to_array(tensor)
        node = self.nodes[self.producer[name]] if name in self.producer else None
        if node is None:
            return None
        if node.op_type in ("Identity", "Cast") and node.domain == "":
            value = self.constant(node.input[0])
            if value is not None and node.op_type == "Cast":
                return value.astype(helper.tensor_dtype_to_np_dtype(attribute(node, "to")))
            return value
        if node.op_type != "Constant":
            return None
        (entry,) = node.attribute
        value = helper.get_attribute_value(entry)
        if isinstance(value, TensorProto):
            return None if value.data_location == TensorProto.EXTERNAL else numpy_helper.to_array(value)
        return np.asarray(value) if entry.name.startswith("value_") and not isinstance(value, bytes) else None

    def after(self, names: Iterable[str]) -> set[str]:
        """Return the tensors that depend on one of `names`, these included."""
        dependent = set(names)
        for node, read in zip(self.nodes, self.reads, strict=True):
            if not dependent.isdisjoint(read):
                dependent.update(node.output)
        return dependent - {""}

    def between(self, inputs: Iterable[str], outputs: Iterable[str]) -> list[NodeProto]:
        """Return the nodes that `outputs` need and that depend on `inputs` or are constant, in order."""
        start = set(inputs)
        inside, needed = self.after(start), set(outputs) - start
        nodes = []
        for node, read in zip(reversed(self.nodes), reversed(self.reads), strict=True):
            if any(name in needed and (name in inside or name not in self.live) for name in node.output):
                nodes.append(node)
                needed.update(name for name in read if name not in start)
        return nodes[::-1]

    @cached_property
    def live(self) -> set[str]:
        """The tensors that depend on the model's inputs; all others are constants."""
        return self.after(value.name for value in self.inputs)

    def info(self, name: str) -> ValueInfoProto:
        """Return the declaration of a tensor, as far as it is known."""
        return declared(name, self.dtype(name), self.shape(name))


def _dtype(value: ValueInfoProto | TensorProto | None) -> int:
    if isinstance(value, TensorProto):
        return value.data_type
    return 0 if value is None else value.type.tensor_type.elem_type


def _shape(value: ValueInfoProto | TensorProto | None) -> Shape | None:
    if isinstance(value, TensorProto):
        return tuple(value.dims)
    if value is None or not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in dims)


def declared(name: str, dtype: int, shape: Shape | None) -> ValueInfoProto:
    """Declare a tensor; dtype 0 and shape None mean that they are unknown."""
    if not dtype:  # the runtime infers it
        return ValueInfoProto(name=name)
    if shape is None:  # make_tensor_value_info would declare a scalar
        value = ValueInfoProto(name=name)
        value.type.tensor_type.elem_type = dtype
        return value
    return helper.make_tensor_value_info(name, dtype, shape)


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the branches of a node, or the body of its loop."""
    for entry in node.attribute:
        if entry.type == AttributeProto.GRAPH:
            yield entry.g
        elif entry.type == AttributeProto.GRAPHS:
            yield from entry.graphs


def reads(node: NodeProto) -> list[str]:
    """Return the tensors that a node reads, those that its subgraphs read from outside included."""
    names = [name for name in node.input if name]
    if not node.attribute:
        return names
    for graph in bodies(node):
        local = {v.name for v in graph.input} | {t.name for t in graph.initializer}
        for inner in graph.node:
            names += [name for name in reads(inner) if name not in local]
            local.update(inner.output)
        names += [v.name for v in graph.output if v.name not in local]
    return names


def nodes(within: GraphProto | FunctionProto) -> Iterator[NodeProto]:
    """Yield every node of a graph, those in its branches and loops included."""
    for node in within.node:
        yield node
        for inner in bodies(node):
            yield from nodes(inner)


def sort(within: GraphProto) -> None:
    """Bring the nodes of a graph, and of its branches and loops, into execution order, as the runtime does.

    Nodes that wait for a tensor that no node computes keep their order at the end.
    """
    for node in within.node:
        for inner in bodies(node):
            sort(inner)
    producer = {name: i for i, node in enumerate(within.node) for name in node.output if name}
    needs = [{producer[name] for name in reads(node) if name in producer} for node in within.node]
    if all(max(indices, default=-1) < i for i, indices in enumerate(needs)):
        return
    readers: dict[int, list[int]] = {}
    for i, indices in enumerate(needs):
        for index in indices:
            readers.setdefault(index, []).append(i)
    waiting = [len(indices) for indices in needs]
    ready = [i for i, count in enumerate(waiting) if not count]
    heapq.heapify(ready)
    order = []
    while ready:
        order.append(heapq.heappop(ready))
        for i in readers.get(order[-1], ()):
            waiting[i] -= 1
            if not waiting[i]:
                heapq.heappush(ready, i)
    done = set(order)
    ordered = [within.node[i] for i in (*order, *(i for i in range(len(needs)) if i not in done))]
    copies = [NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del within.node[:]
    within.node.extend(copies)


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Return an attribute's value: a number, a string or a list of these; `default` where it is omitted."""
    for entry in node.attribute:
        if entry.name == name:
            if entry.type == AttributeProto.INT:
                return entry.i
            value = helper.get_attribute_value(entry)
            if isinstance(value, bytes):
                return value.decode()
            return list(value) if entry.type in (AttributeProto.INTS, AttributeProto.FLOATS) else value
    return default


def part(graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> tuple[ModelProto, list[str]]:
    """Extract the part of a graph between tensors, as a model.

    Args:
        graph: The whole graph.
        inputs: Names of the tensors where the part begins.
        outputs: Names of the tensors that it returns.

    Returns:
        The model, with the constants and weights that it reads; and its further inputs: the bypass values of `inputs`.
    """
    nodes = graph.between(inputs, outputs)
    computed = dict.fromkeys(name for node in nodes for name in node.output if name)
    needed = list(dict.fromkeys([*(name for node in nodes for name in reads(node)), *outputs]))
    bypass = [name for name in needed if name in graph.live and name not in computed and name not in inputs]
    inner = helper.make_graph(
        nodes,
        graph.proto.name or "part",
        [graph.info(name) for name in (*inputs, *bypass)],
        [graph.info(name) for name in dict.fromkeys(outputs)],
        [graph.initializers[name] for name in needed if name in graph.initializers],
        value_info=[
            graph.info(name)
            for name in dict.fromkeys([*needed, *computed])
            if graph.dtype(name) and name not in graph.initializers
        ],
    )
    if {value.name for value in graph.inputs} >= set(inputs):
        stated = {value.name for value in graph.proto.value_info if value.doc_string != INFERRED}
        for value in inner.value_info:
            value.doc_string = "" if value.name in stated else INFERRED
    model = helper.make_model(inner, opset_imports=list(graph.model.opset_import), ir_version=graph.model.ir_version)
    model.functions.extend(graph.model.functions)
    return model, bypass


def inferred(model: ModelProto) -> ModelProto:
    """Return the model with inferred types and shapes; the model itself where inference fails."""
    nodes, stated = model.graph.node, {value.name for value in model.graph.value_info}
    others = [k for k, n in enumerate(nodes) if n.domain == "com.microsoft" and n.op_type in QUANTIZERS]
    source = copied(model) if others else model
    if others:  # ONNX does not know these operators: a Cast has the same type and shape
        types = {t.name: t.data_type for t in model.graph.initializer}
        for k in others:
            of, default = QUANTIZERS[nodes[k].op_type]
            dtype = types.get(nodes[k].input[of], default) if len(nodes[k].input) > of else default
            source.graph.node[k].CopyFrom(helper.make_node("Cast", nodes[k].input[:1], nodes[k].output[:], to=dtype))
    try:
        result = onnx.shape_inference.infer_shapes(source, data_prop=True)
    except Exception:  # for example an operator of another domain: declared types have to suffice
        return model
    for k in others:
        result.graph.node[k].CopyFrom(nodes[k])
    for value in result.graph.value_info:
        if value.name not in stated:
            value.doc_string = INFERRED
    return result


def copied(model: ModelProto) -> ModelProto:
    """Return a copy of the model."""
    result = ModelProto()
    result.CopyFrom(model)
    return result


def type_name(dtype: int) -> str:
    """Return the name of a TensorProto type as NumPy has it: `int8`, `float32`; `unknown` where it is not stated."""
    if dtype not in TensorProto.DataType.values()[1:]:
        return "unknown"
    name = TensorProto.DataType.Name(dtype).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def reading(node: NodeProto, names: Sequence[str]) -> NodeProto:
    """Return a copy of a node that reads other tensors."""
    result = NodeProto()
    result.CopyFrom(node)
    del result.input[:]
    result.input.extend(names)
    return result


def metadata(model: ModelProto | NodeProto) -> dict[str, str]:
    """Return the metadata of a model or node."""
    return {entry.key: entry.value for entry in model.metadata_props}
