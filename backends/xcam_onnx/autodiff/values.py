"""Tensors of a graph that is being written, with arithmetic operators: a rule reads like its formula.

g * y * (1 - y)             # emits Mul, Sub, Mul
o.Where(y > 0, g, 0)        # any ONNX operator by its name; numbers become constants of the matching type
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from xcam.contract import Array
from xcam_onnx.graph import FLOATS, Graph, Shape

BOOLEAN = {"Greater", "Less", "Equal", "GreaterOrEqual", "LessOrEqual", "And", "Or", "Not", "IsNaN"}
INTEGER = {"Shape", "Size", "NonZero", "ArgMax", "ArgMin"}

INPUTS_SINCE = {
    "Split": (13, "split"),
    **dict.fromkeys(("Squeeze", "Unsqueeze", "ReduceSum"), (13, "axes")),
    **dict.fromkeys(("ReduceMean", "ReduceMax", "ReduceProd"), (18, "axes")),
}
"""Operators whose attribute became the second input: the version that changed it, and the attribute."""
ADDING = 16
"""The first version in which ScatterElements and ScatterND can add."""
NARROW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def _operator(op: str, reflected: bool = False) -> Callable[[Value, Any], Value]:
    """Return the method of Value for a binary operator."""

    def method(self: Value, other: Any) -> Value:
        return self.ops(op, other, self) if reflected else self.ops(op, self, other)

    return method


class Value:
    """A tensor of the forward graph or of the gradient graph, referred to by its name."""

    def __init__(self, ops: Ops, name: str, dtype: int) -> None:
        self.ops, self.name, self.dtype = ops, name, dtype

    @property
    def shape(self) -> Shape:
        """The known dimensions of the shape. Raises Unsupported where the rank is unknown."""
        shape = self.ops.graph.shape(self.name)
        if shape is None:
            raise Unsupported(f"the shape of {self.name!r} is unknown")
        return shape

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def dims(self) -> list[Any]:
        """Each dimension: a number where it is fixed, else a Value of shape [1] that the graph computes."""
        return [self.ops.dim(self, axis) for axis in range(self.rank)]

    @property
    def const(self) -> Array | None:
        """The value of a small constant, else None."""
        return self.ops.graph.constant(self.name)

    __add__ = __radd__ = _operator("Add")
    __sub__, __rsub__ = _operator("Sub"), _operator("Sub", reflected=True)
    __mul__ = __rmul__ = _operator("Mul")
    __truediv__, __rtruediv__ = _operator("Div"), _operator("Div", reflected=True)
    __floordiv__ = __truediv__  # of non-negative integers
    __pow__ = _operator("Pow")
    __gt__, __lt__ = _operator("Greater"), _operator("Less")
    __ge__, __le__ = _operator("GreaterOrEqual"), _operator("LessOrEqual")
    __and__ = _operator("And")

    def __neg__(self) -> Value:
        return self.ops.Neg(self)


class Unsupported(Exception):  # noqa: N818  (internal: the engine turns it into a ModelError)
    """Error of a rule that cannot differentiate a node; the message gives the reason."""


class TooOld(Exception):  # noqa: N818
    """Error of a rule that needs an operator which the graph's operator set lacks."""


def _runs_in_float32_only(op: str, dtype: int, attributes: dict[str, Any]) -> bool:
    """Return whether ONNX Runtime's CPU provider has this operator for wider types than `dtype` alone.

    It converts float16 where it lacks an operator altogether, but the scatter operators are registered for every type, and
    fail when they are to add. In bfloat16 it has few operators, and converts none.
    """
    adds = attributes.get("reduction") == "add"
    return (dtype in NARROW and adds) or (dtype == TensorProto.BFLOAT16 and op not in ("Cast", "Shape"))


class Ops:
    """A writer of nodes: `ops.Relu(x)`, `ops.Concat(a, b, axis=1)`, `ops("Split", x, outputs=2)`.

    Args:
        graph: The forward graph, whose types and shapes are read.
        prefix: Begins the names of all tensors that are written.
        opset: The version of the operators that are written.
    """

    def __init__(self, graph: Graph, prefix: str, opset: int) -> None:
        self.graph = graph
        self.prefix = prefix
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.shapes: list[NodeProto] = []
        """Shape nodes that belong behind the forward graph: passing a shape takes less memory than its tensor."""
        self.requested: dict[str, tuple[int, Shape | None]] = {}
        """Additional outputs of the forward graph (shapes, optional outputs): their types and shapes."""
        self._cache: dict[Any, Value] = {}
        self._scaled: dict[str, tuple[Value, str]] = {}
        self._count = 0

    def fresh(self, suffix: str) -> str:
        """Return a new name."""
        self._count += 1
        return f"{self.prefix}{self._count}_{suffix}"

    def forward(self, name: str) -> Value:
        """Return a tensor of the forward graph."""
        return Value(self, name, self.graph.dtype(name))

    def __getattr__(self, op: str) -> Callable[..., Value]:
        if not op[:1].isupper():
            raise AttributeError(op)
        return lambda *inputs, **attributes: self(op, *inputs, **attributes)

    def __call__(self, op: str, *inputs: Any, outputs: int = 1, dtype: int | None = None, **attributes: Any) -> Any:
        """Write a node; numbers and arrays among its inputs become constants.

        Returns:
            One Value, or a list of Values where `outputs` is larger than 1.

        Raises:
            TooOld: The operator does not exist in `opset` in this form.
        """
        types = [v.dtype for v in inputs if isinstance(v, Value)]
        if op == "Where":  # its first input is the condition
            types = [v.dtype for v in inputs[1:] if isinstance(v, Value)]
        kind = types[0] if types else dtype or TensorProto.INT64
        since, attribute = INPUTS_SINCE.get(op, (0, ""))
        if self.opset < since and len(inputs) > 1:
            if isinstance(inputs[1], Value):
                raise TooOld(f"{op} takes computed {attribute} from opset {since} on")
            attributes = {n: v for n, v in attributes.items() if n != "noop_with_empty_axes"} | {
                attribute: list(inputs[1])
            }
            inputs = inputs[:1]
        if self.opset < ADDING and attributes.get("reduction") == "add":
            raise TooOld(f"{op} adds from opset {ADDING} on")
        if _runs_in_float32_only(op, kind, attributes):
            wide = [
                self.Cast(v, to=TensorProto.FLOAT) if isinstance(v, Value) and v.dtype == kind else v for v in inputs
            ]
            computed = self(op, *wide, outputs=outputs, dtype=None if dtype == kind else dtype, **attributes)
            back = [
                self.Cast(v, to=kind) if v.dtype == TensorProto.FLOAT else v
                for v in (computed if outputs > 1 else [computed])
            ]
            return back if outputs > 1 else back[0]
        names = [self.value(v, kind).name if v is not None else "" for v in inputs]
        if dtype is None:
            dtype = TensorProto.BOOL if op in BOOLEAN else TensorProto.INT64 if op in INTEGER else kind
            dtype = attributes["to"] if op == "Cast" else dtype
        results = [self.fresh(op) for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, names, results, name=results[0], **attributes))
        values = [Value(self, name, dtype) for name in results]
        return values[0] if outputs == 1 else values

    def value(self, source: Any, dtype: int) -> Value:
        """Convert to a Value: a number to a constant of `dtype`, a list to one of INT64, an array to its own type."""
        if isinstance(source, Value):
            return source
        if isinstance(source, int | float | np.number):
            array = np.asarray(source, np.float64).astype(helper.tensor_dtype_to_np_dtype(dtype))
        elif isinstance(source, list | tuple):
            array = np.asarray(source, np.int64)
        else:
            array = np.asarray(source)
        key = (array.tobytes(), array.shape, array.dtype.name)
        if key not in self._cache:
            name = self.fresh("constant")
            self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
            self._cache[key] = Value(self, name, self.constants[-1].data_type)
        return self._cache[key]

    def masked(self, g: Value, condition: Value) -> Value:
        """Return `g` where the condition holds, 0 elsewhere: as a product, which is several times faster than Where."""
        return g * self.Cast(condition, to=g.dtype)

    def once(self, key: Any, write: Callable[[], Value]) -> Value:
        """Return the tensor that was written under this key, or write it."""
        if key not in self._cache:
            self._cache[key] = write()
        return self._cache[key]

    def adjoint(self, g: Value, x: Value) -> Value:
        """Convert a gradient to the type that gradients with respect to `x` have: float32 where `x` is quantised."""
        dtype = x.dtype if x.dtype in FLOATS else TensorProto.FLOAT
        return g if g.dtype == dtype else self.Cast(g, to=dtype)

    def scaled(self, g: Value, scale: Value) -> Value:
        """Return g · scale in float32: the gradient with respect to the integers of a dequantised value."""
        result = (g if g.dtype == scale.dtype else self.Cast(g, to=scale.dtype)) * scale
        self._scaled[result.name] = g, scale.name
        return result

    def unscaled(self, g: Value, scale: Value) -> Value:
        """Return g / scale: the gradient with respect to the value that was quantised; the inverse of `scaled`."""
        factor, name = self._scaled.get(g.name, (g, ""))
        return factor if name == scale.name else g / scale

    def named(self, x: Value, name: str) -> Value:
        """Return the same tensor under a given name."""
        self.nodes.append(helper.make_node("Identity", [x.name], [name], name=name))
        return Value(self, name, x.dtype)

    def full(self, dims: Sequence[Any], number: float, dtype: int) -> Value:
        """Return a tensor of the given dimensions, filled with a number."""
        value = helper.make_tensor("value", dtype, [1], [number])
        return self("ConstantOfShape", self.dims(dims), value=value, dtype=dtype)

    def zeros_like(self, x: Value) -> Value:
        """Return zeros of the shape and type of `x`."""
        return self.full(x.dims, 0, x.dtype)

    # Shapes

    def shape(self, x: Value) -> Value:
        """Return the shape of a tensor of the forward graph as a Value [rank]."""
        shape = self.graph.shape(x.name)
        if shape is not None and all(isinstance(n, int) for n in shape):
            return self.value(list(shape), TensorProto.INT64)
        key = ("shape", x.name)
        if key not in self._cache:
            node = helper.make_node("Shape", [x.name], [self.fresh("Shape")])
            node.name = node.output[0]
            self.shapes.append(node)
            self.requested[node.output[0]] = TensorProto.INT64, (None if shape is None else len(shape),)
            self._cache[key] = Value(self, node.output[0], TensorProto.INT64)
        return self._cache[key]

    def dim(self, x: Value, axis: int) -> Any:
        """Return one dimension of a tensor of the forward graph: a number, or a Value [1]."""
        known = x.shape[axis]
        if isinstance(known, int):
            return known
        key = ("dim", x.name, axis)
        if key not in self._cache:
            self._cache[key] = self.Gather(self.shape(x), [axis])
        return self._cache[key]

    def dims(self, dims: Sequence[Any]) -> Value:
        """Join dimensions, numbers and Values [1] mixed, into one Value."""
        if all(isinstance(n, int) for n in dims):
            return self.value(list(dims), TensorProto.INT64)
        return self.Concat(*(n if isinstance(n, Value) else self.value([n], 0) for n in dims), axis=0)

    def reshape(self, x: Value, dims: Sequence[Any]) -> Value:
        """Reshape; the operator infers a single unknown dimension."""
        if sum(isinstance(n, Value) for n in dims) == 1:
            dims = [-1 if isinstance(n, Value) else n for n in dims]
        return self.Reshape(x, self.dims(dims))

    def reshape_like(self, g: Value, x: Value) -> Value:
        """Reshape `g` to the shape of `x`, a tensor of the forward graph with the same number of elements."""
        shape = self.graph.shape(x.name)
        if shape is not None and sum(not isinstance(n, int) for n in shape) <= 1 and 0 not in shape:
            return self.Reshape(g, [n if isinstance(n, int) else -1 for n in shape])
        return self.Reshape(g, self.shape(x))

    def expand_like(self, g: Value, x: Value) -> Value:
        """Broadcast `g` to the shape of `x`, a tensor of the forward graph."""
        return self.Expand(g, self.shape(x))

    def range(self, n: Any) -> Value:
        """Return 0, 1, …, n − 1."""
        if isinstance(n, int):
            return self.value(np.arange(n, dtype=np.int64), 0)
        start, step = np.int64(0), np.int64(1)
        return self.Range(np.asarray(start), self.Squeeze(n, [0]), np.asarray(step), dtype=TensorProto.INT64)

    def count(self, dims: Sequence[Any], dtype: int) -> Any:
        """Return the product of dimensions as a number, or as a Value of `dtype`."""
        product: Any = math.prod(n for n in dims if isinstance(n, int))
        for n in dims:
            if isinstance(n, Value):
                product = n * product
        return self.Cast(product, to=dtype) if isinstance(product, Value) else product

    def transpose_matrices(self, x: Value, rank: int) -> Value:
        """Exchange the last two axes of a tensor of the given rank."""
        return self.Transpose(x, perm=[*range(rank - 2), rank - 1, rank - 2])

    def total(self, values: Sequence[Value]) -> Value:
        """Add up tensors of one shape."""
        return values[0] if len(values) == 1 else self.Sum(*values)

    def undo_broadcast(self, g: Value, y: Value, x: Value, matrix_axes: int = 0) -> Value:
        """Sum a gradient over the axes along which `x` was broadcast to `y`.

        Args:
            g: The gradient, of the shape of `y`.
            y: The output, in the forward graph.
            x: The input, in the forward graph.
            matrix_axes: The number of last axes that are left alone; a matrix product broadcasts only those before.

        Returns:
            The gradient with the rank of `x`.
        """
        if y.name == x.name:
            return g
        small, large = x.shape, y.shape
        lead = len(large) - len(small)
        pairs = [(i, lead + i) for i in range(len(small) - matrix_axes)]
        broadcast = [k for i, k in pairs if small[i] == 1 and large[k] != 1]
        undecided = [
            (i, k)
            for i, k in pairs
            if not isinstance(small[i], int) and large[k] != 1 and (small[i] is None or small[i] != large[k])
        ]
        if lead or broadcast:
            g = self.ReduceSum(g, [*range(lead), *broadcast], keepdims=1)
        if undecided:  # only the run shows whether these axes were broadcast
            sizes = self.Gather(self.shape(x), [i for i, _ in undecided])
            targets = self.Gather(self.shape(y), [k for _, k in undecided])
            axes = self.Compress(self.value([k for _, k in undecided], 0), self.Less(sizes, targets), axis=0)
            g = self.ReduceSum(g, axes, keepdims=1, noop_with_empty_axes=1)
        return self.Squeeze(g, list(range(lead))) if lead else g
