"""Tensors of a graph that is being written, with arithmetic: a rule reads like its formula.

g * y * (1 - y)             # emits Mul, Sub, Mul
o.Where(y > 0, g, 0)        # any ONNX operator by its name; numbers become constants of the right type
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from xcam_onnx.graph import Graph, Shape

BOOLEAN = {"Greater", "Less", "Equal", "GreaterOrEqual", "LessOrEqual", "And", "Or", "Not", "IsNaN"}
WHOLE = {"Shape", "Size", "NonZero", "ArgMax", "ArgMin"}

INPUTS_SINCE = {
    "Split": (13, "split"),
    "Squeeze": (13, "axes"),
    "Unsqueeze": (13, "axes"),
    "ReduceSum": (13, "axes"),
    "ReduceMean": (18, "axes"),
    "ReduceMax": (18, "axes"),
    "ReduceProd": (18, "axes"),
}
"""Operators of which an attribute became the second input, and since which version."""
ADDING = 16
"""Since which version ScatterElements and ScatterND add."""

Number = float | int


class Value:
    """A tensor by its name: of the graph that is differentiated, or emitted."""

    def __init__(self, ops: Ops, name: str, dtype: int) -> None:
        self.ops, self.name, self.dtype = ops, name, dtype

    @property
    def shape(self) -> Shape:
        """What is known of the shape. Raises Unsupported where not even the rank is."""
        shape = self.ops.graph.shape(self.name)
        if shape is None:
            raise Unsupported(f"nothing is known of the shape of {self.name!r}")
        return shape

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def dims(self) -> list[Any]:
        """Each dimension: a number where it is fixed, else a Value of shape [1] that the graph works out."""
        return [self.ops.dim(self, axis) for axis in range(self.rank)]

    @property
    def const(self) -> np.ndarray | None:
        """The value of a small constant, else None."""
        return self.ops.graph.constant(self.name)

    def __add__(self, other: Any) -> Value:
        return self.ops.Add(self, other)

    def __radd__(self, other: Any) -> Value:
        return self.ops.Add(self, other)

    def __sub__(self, other: Any) -> Value:
        return self.ops.Sub(self, other)

    def __rsub__(self, other: Any) -> Value:
        return self.ops.Sub(other, self)

    def __mul__(self, other: Any) -> Value:
        return self.ops.Mul(self, other)

    def __rmul__(self, other: Any) -> Value:
        return self.ops.Mul(self, other)

    def __truediv__(self, other: Any) -> Value:
        return self.ops.Div(self, other)

    def __rtruediv__(self, other: Any) -> Value:
        return self.ops.Div(other, self)

    def __floordiv__(self, other: Any) -> Value:
        """Of whole numbers, none negative."""
        return self.ops.Div(self, other)

    def __pow__(self, other: Any) -> Value:
        return self.ops.Pow(self, other)

    def __neg__(self) -> Value:
        return self.ops.Neg(self)

    def __gt__(self, other: Any) -> Value:
        return self.ops.Greater(self, other)

    def __lt__(self, other: Any) -> Value:
        return self.ops.Less(self, other)

    def __ge__(self, other: Any) -> Value:
        return self.ops.GreaterOrEqual(self, other)

    def __le__(self, other: Any) -> Value:
        return self.ops.LessOrEqual(self, other)

    def __and__(self, other: Value) -> Value:
        return self.ops.And(self, other)


class Unsupported(Exception):  # noqa: N818  (it is a finding: the engine makes the error of it)
    """A rule cannot differentiate this node; the words say why."""


class TooOld(Exception):  # noqa: N818
    """What a rule writes does not exist in the graph's version of the operators."""


class Ops:
    """Writes nodes. `ops.Relu(x)`, `ops.Concat(a, b, axis=1)`, `ops("Split", x, outputs=2)`."""

    def __init__(self, graph: Graph, prefix: str, opset: int) -> None:
        self.graph = graph
        self.prefix = prefix
        self.opset = opset
        """The version of the operators that are written."""
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.shapes: list[NodeProto] = []
        """Shape nodes that belong behind the forward graph: a shape is less to hand over than a tensor."""
        self.asked: dict[str, tuple[int, Shape | None]] = {}
        """Tensors that the forward graph gives besides its own (shapes, optional outputs): their types and shapes."""
        self._known: dict[Any, Value] = {}
        self._count = 0

    def fresh(self, word: str) -> str:
        self._count += 1
        return f"{self.prefix}{self._count}_{word}"

    def forward(self, name: str) -> Value:
        """A tensor of the graph that is differentiated."""
        return Value(self, name, self.graph.dtype(name))

    def __getattr__(self, op: str) -> Callable[..., Value]:
        if not op[:1].isupper():
            raise AttributeError(op)
        return lambda *inputs, **attributes: self(op, *inputs, **attributes)

    def __call__(self, op: str, *inputs: Any, outputs: int = 1, dtype: int | None = None, **attributes: Any) -> Any:
        """Emit a node; numbers and arrays among its inputs become constants. One Value, or a list of `outputs`."""
        types = [v.dtype for v in inputs if isinstance(v, Value)]
        if op == "Where":  # its type is that of the values it picks from
            types = [v.dtype for v in inputs[1:] if isinstance(v, Value)]
        kind = types[0] if types else dtype or TensorProto.INT64
        since, word = INPUTS_SINCE.get(op, (0, ""))
        if self.opset < since and len(inputs) > 1:
            if isinstance(inputs[1], Value):
                raise TooOld(f"{op} takes {word} that are worked out from opset {since} on")
            attributes = {n: v for n, v in attributes.items() if n != "noop_with_empty_axes"} | {
                word: list(inputs[1])
            }
            inputs = inputs[:1]
        if self.opset < ADDING and attributes.get("reduction") == "add":
            raise TooOld(f"{op} adds from opset {ADDING} on")
        names = [self.value(v, kind).name if v is not None else "" for v in inputs]
        if dtype is None:
            dtype = TensorProto.BOOL if op in BOOLEAN else TensorProto.INT64 if op in WHOLE else kind
            dtype = attributes["to"] if op == "Cast" else dtype
        made = [self.fresh(op) for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, names, made, name=made[0], **attributes))
        values = [Value(self, name, dtype) for name in made]
        return values[0] if outputs == 1 else values

    def value(self, given: Any, dtype: int) -> Value:
        """A Value as it is; a number as a constant of `dtype`; whole numbers in a list as INT64; an array as it is."""
        if isinstance(given, Value):
            return given
        if isinstance(given, int | float | np.number):
            array = np.asarray(given, np.float64).astype(helper.tensor_dtype_to_np_dtype(dtype))
        elif isinstance(given, list | tuple):
            array = np.asarray(given, np.int64)
        else:
            array = np.asarray(given)
        key = (array.tobytes(), array.shape, array.dtype.name)
        if key not in self._known:
            name = self.fresh("constant")
            self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
            self._known[key] = Value(self, name, self.constants[-1].data_type)
        return self._known[key]

    def masked(self, g: Value, condition: Value) -> Value:
        """`g` where the condition holds, 0 elsewhere: a product, which takes a fraction of the time of Where."""
        return g * self.Cast(condition, to=g.dtype)

    def named(self, x: Value, name: str) -> Value:
        """The same tensor under a name that is not made up."""
        self.nodes.append(helper.make_node("Identity", [x.name], [name], name=name))
        return Value(self, name, x.dtype)

    def full(self, dims: Sequence[Any], number: Number, dtype: int) -> Value:
        """A tensor of the given dimensions, filled."""
        value = helper.make_tensor("value", dtype, [1], [number])
        return self("ConstantOfShape", self.dims(dims), value=value, dtype=dtype)

    def zeros_like(self, x: Value) -> Value:
        return self.full(x.dims, 0, x.dtype)

    # Shapes

    def shape(self, x: Value) -> Value:
        """The shape of a tensor of the graph, as a Value [rank]."""
        shape = self.graph.shape(x.name)
        if shape is not None and all(isinstance(n, int) for n in shape):
            return self.value(list(shape), TensorProto.INT64)
        key = ("shape", x.name)
        if key not in self._known:
            node = helper.make_node("Shape", [x.name], [self.fresh("Shape")])
            node.name = node.output[0]
            self.shapes.append(node)
            self.asked[node.output[0]] = TensorProto.INT64, (None if shape is None else len(shape),)
            self._known[key] = Value(self, node.output[0], TensorProto.INT64)
        return self._known[key]

    def dim(self, x: Value, axis: int) -> Any:
        """One dimension of a tensor of the graph: a number, or a Value [1]."""
        known = x.shape[axis]
        if isinstance(known, int):
            return known
        key = ("dim", x.name, axis)
        if key not in self._known:
            self._known[key] = self.Gather(self.shape(x), [axis])
        return self._known[key]

    def dims(self, dims: Sequence[Any]) -> Value:
        """Dimensions, numbers and Values [1] mixed, as one Value."""
        if all(isinstance(n, int) for n in dims):
            return self.value(list(dims), TensorProto.INT64)
        return self.Concat(*(n if isinstance(n, Value) else self.value([n], 0) for n in dims), axis=0)

    def reshape(self, x: Value, dims: Sequence[Any]) -> Value:
        """Reshape; one dimension that is not known is left to the operator."""
        if sum(isinstance(n, Value) for n in dims) == 1:
            dims = [-1 if isinstance(n, Value) else n for n in dims]
        return self.Reshape(x, self.dims(dims))

    def reshape_like(self, g: Value, x: Value) -> Value:
        """`g` with the shape of the tensor `x` of the graph, which has as many elements."""
        shape = self.graph.shape(x.name)
        if shape is not None and sum(not isinstance(n, int) for n in shape) <= 1 and 0 not in shape:
            return self.Reshape(g, [n if isinstance(n, int) else -1 for n in shape])
        return self.Reshape(g, self.shape(x))

    def expand_like(self, g: Value, x: Value) -> Value:
        return self.Expand(g, self.shape(x))

    def range(self, n: Any) -> Value:
        """0, 1, … n − 1."""
        if isinstance(n, int):
            return self.value(np.arange(n), 0)
        return self.Range(np.asarray(0), self.Squeeze(n, [0]), np.asarray(1), dtype=TensorProto.INT64)

    def number(self, dims: Sequence[Any], dtype: int) -> Any:
        """The product of dimensions as a number, or as a Value of `dtype`."""
        product: Any = math.prod(n for n in dims if isinstance(n, int))
        for n in dims:
            if isinstance(n, Value):
                product = n * product
        return self.Cast(product, to=dtype) if isinstance(product, Value) else product

    def swapped(self, x: Value, rank: int) -> Value:
        """The last two axes exchanged."""
        return self.Transpose(x, perm=[*range(rank - 2), rank - 1, rank - 2])

    def total(self, values: Sequence[Value]) -> Value:
        return values[0] if len(values) == 1 else self.Sum(*values)

    def broadcast_undone(self, g: Value, y: Value, x: Value, space: int = 0) -> Value:
        """Sum `g`, which has the shape of `y`, over the axes along which `x` was broadcast to it; `x`'s rank then.

        The last `space` axes are left alone: a matrix product broadcasts those ahead of its matrices.
        """
        if y.name == x.name:
            return g
        to, of = x.shape, y.shape
        lead = len(of) - len(to)
        pairs = [(i, lead + i) for i in range(len(to) - space)]
        sure = [k for i, k in pairs if to[i] == 1 and of[k] != 1]
        named = [(i, k) for i, k in pairs if not isinstance(to[i], int) and of[k] != 1]
        open_ = [(i, k) for i, k in named if to[i] is None or to[i] != of[k]]
        if lead or sure:
            g = self.ReduceSum(g, [*range(lead), *sure], keepdims=1)
        if open_:  # whether these were broadcast, only the run can tell
            mine = self.Gather(self.shape(x), [i for i, _ in open_])
            theirs = self.Gather(self.shape(y), [k for _, k in open_])
            picked = self.Compress(self.value([k for _, k in open_], 0), self.Less(mine, theirs), axis=0)
            g = self.ReduceSum(g, picked, keepdims=1, noop_with_empty_axes=1)
        return self.Squeeze(g, list(range(lead))) if lead else g
