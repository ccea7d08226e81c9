"""Reading an ONNX graph: who makes a tensor, what it depends on, its type and shape; and cutting a part out of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
Shape = tuple[int | str | None, ...]
"""A dimension is a number, a name, or None where nothing is known."""


class Graph:
    """A view of a model's main graph. The model must not change under it, but for outputs that nodes are given."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.proto: GraphProto = model.graph
        self.nodes: Sequence[NodeProto] = self.proto.node
        self.opset: dict[str, int] = {
            "" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import
        }
        self.initializers: dict[str, TensorProto] = {t.name: t for t in self.proto.initializer}
        self.inputs: list[ValueInfoProto] = [v for v in self.proto.input if v.name not in self.initializers]
        self.producer: dict[str, int] = {name: i for i, n in enumerate(self.nodes) for name in n.output if name}

    @cached_property
    def _types(self) -> dict[str, tuple[int, Shape | None]]:
        found: dict[str, tuple[int, Shape | None]] = {
            t.name: (t.data_type, tuple(t.dims)) for t in self.initializers.values()
        }
        for value in (*self.proto.value_info, *self.proto.input, *self.proto.output):
            tensor = value.type.tensor_type
            shape: Shape | None = None
            if tensor.HasField("shape"):
                shape = tuple(
                    d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim
                )
            found.setdefault(value.name, (tensor.elem_type, shape))
        return found

    def dtype(self, name: str) -> int:
        """The TensorProto data type; 0 where it is not known."""
        return self._types.get(name, (0, None))[0]

    def shape(self, name: str) -> Shape | None:
        return self._types.get(name, (0, None))[1]

    def learn(self, name: str, dtype: int, shape: Shape) -> None:
        """What a run has shown of a tensor."""
        self._types[name] = dtype, shape

    def constant(self, name: str) -> np.ndarray | None:
        """The value of a small constant, or None."""
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
        (given,) = node.attribute
        value = helper.get_attribute_value(given)
        if isinstance(value, TensorProto):
            return None if value.data_location == TensorProto.EXTERNAL else numpy_helper.to_array(value)
        return np.asarray(value) if given.name.startswith("value_") and not isinstance(value, bytes) else None

    def after(self, names: Iterable[str]) -> set[str]:
        """The tensors that depend on one of `names`, these included."""
        found = set(names)
        for node in self.nodes:
            if any(name in found for name in reads(node)):
                found.update(name for name in node.output if name)
        return found

    def between(self, takes: Iterable[str], gives: Iterable[str]) -> list[NodeProto]:
        """The nodes that `gives` need and that depend on `takes` or are constant, in order."""
        start = set(takes)
        inside, wanted = self.after(start), set(gives) - start
        found = []
        for node in reversed(self.nodes):
            if any(name in wanted and (name in inside or name not in self.live) for name in node.output):
                found.append(node)
                wanted.update(name for name in reads(node) if name not in start)
        return found[::-1]

    @cached_property
    def live(self) -> set[str]:
        """The tensors that depend on the model's inputs; all others are constants."""
        return self.after(value.name for value in self.inputs)

    def info(self, name: str) -> ValueInfoProto:
        """The declaration of a tensor, as far as it is known."""
        return declared(name, self.dtype(name), self.shape(name))


def declared(name: str, dtype: int, shape: Shape | None) -> ValueInfoProto:
    if not dtype:  # the runtime finds it
        return ValueInfoProto(name=name)
    if shape is None:  # a rank of its own for each reader
        value = ValueInfoProto(name=name)
        value.type.tensor_type.elem_type = dtype
        return value
    return helper.make_tensor_value_info(name, dtype, shape)


def reads(node: NodeProto) -> Iterator[str]:
    """The tensors that a node reads; what its subgraphs take from outside counts."""
    yield from (name for name in node.input if name)
    for given in node.attribute:
        graphs = [given.g] if given.type == AttributeProto.GRAPH else given.graphs
        for graph in graphs:
            own = {v.name for v in graph.input} | {t.name for t in graph.initializer}
            for inner in graph.node:
                yield from (name for name in reads(inner) if name not in own)
                own.update(inner.output)
            yield from (v.name for v in graph.output if v.name not in own)


def attribute(node: NodeProto, name: str, default: object = None) -> object:
    """An attribute's value: numbers, strings, lists of these; `default` where it is not given."""
    for given in node.attribute:
        if given.name == name:
            value = helper.get_attribute_value(given)
            if isinstance(value, bytes):
                return value.decode()
            return list(value) if given.type in (AttributeProto.INTS, AttributeProto.FLOATS) else value
    return default


def part(graph: Graph, takes: Sequence[str], gives: Sequence[str]) -> tuple[ModelProto, list[str]]:
    """What leads from the tensors `takes` to the tensors `gives`, as a model of its own.

    What these nodes need besides and what does not depend on `takes` is taken as further inputs: their names come
    behind the model. Constants and weights come along.
    """
    nodes = graph.between(takes, gives)
    made = {name for node in nodes for name in node.output}
    needed = [name for node in nodes for name in reads(node)] + list(gives)
    frontier = list(dict.fromkeys(n for n in needed if n in graph.live and n not in made and n not in takes))
    made |= {*takes, *frontier}
    inner = helper.make_graph(
        nodes,
        graph.proto.name or "part",
        [graph.info(name) for name in (*takes, *frontier)],
        [graph.info(name) for name in dict.fromkeys(gives)],
        [graph.initializers[name] for name in dict.fromkeys(needed) if name in graph.initializers],
        value_info=[graph.info(n) for n in dict.fromkeys(needed) if graph.dtype(n) and n not in graph.initializers],
    )
    model = helper.make_model(inner, opset_imports=list(graph.model.opset_import), ir_version=graph.model.ir_version)
    model.functions.extend(graph.model.functions)
    return model, frontier


def inferred(model: ModelProto) -> ModelProto:
    """The model with what ONNX can tell of types and shapes; the model itself where it can tell nothing."""
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # an operator of another domain, say: what is declared has to do
        return model
