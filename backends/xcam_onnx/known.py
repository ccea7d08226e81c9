"""Small values that are known before a model runs: those that follow from constants and from the shape of its input.

Exporters write the sizes of tensors, and the conditions that test them, as nodes: Shape, Gather, Equal, If. Here these
nodes are computed in NumPy. An entry that depends on a size which is left open (the batch) is unknown; all that is
computed from it is unknown too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from xcam.contract import Array
from xcam_onnx.graph import Graph, attribute

LIMIT = 1024
"""Values with more entries are unknown."""


@dataclass(frozen=True)
class Partial:
    """An array, some of whose entries may be unknown."""

    array: Array
    unknown: Array
    """Of the same shape: True where the entry is unknown; it is 1 then."""

    @property
    def complete(self) -> bool:
        """Whether every entry is known."""
        return not self.unknown.any()


def partial(array: Any) -> Partial:
    """Return an array all of whose entries are known."""
    array = np.asarray(array)
    return Partial(array, np.zeros(array.shape, bool))


def _quotient(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    return np.asarray(np.trunc(a / np.where(b == 0, 1, b)), a.dtype)


ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": _quotient,
    "Mod": np.mod,
    "Neg": np.negative,
    "Abs": np.abs,
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Sqrt": np.sqrt,
    "Max": lambda *values: np.asarray(_folded(np.maximum, values)),
    "Min": lambda *values: np.asarray(_folded(np.minimum, values)),
    "Equal": np.equal,
    "Greater": np.greater,
    "Less": np.less,
    "GreaterOrEqual": np.greater_equal,
    "LessOrEqual": np.less_equal,
    "Not": np.logical_not,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
    "Where": np.where,
}
REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceProd": np.prod,
    "ReduceSum": np.sum,
    "ReduceMax": np.max,
    "ReduceMin": np.min,
}


def _folded(function: Callable[[Array, Array], Array], values: tuple[Array, ...]) -> Array:
    result = values[0]
    for value in values[1:]:
        result = function(result, value)
    return result


class Known:
    """The known values of a graph.

    Args:
        graph: The graph, with the shapes that could be inferred.
        values: Values that are known already, by name.
    """

    def __init__(self, graph: Graph, values: Mapping[str, Array]) -> None:
        self._graph = graph
        self.values: dict[str, Partial] = {name: partial(value) for name, value in values.items()}
        for node in graph.nodes:
            self.visit(node)

    def complete(self, name: str) -> Array | None:
        """Return a value all of whose entries are known, or None."""
        value = self.get(name)
        return value.array if value is not None and value.complete else None

    def get(self, name: str) -> Partial | None:
        """Return a value, as far as it is known."""
        if name not in self.values and name in self._graph.initializers:
            constant = self._graph.constant(name)
            if constant is not None and constant.size <= LIMIT:
                self.values[name] = partial(constant)
        return self.values.get(name)

    def add(self, name: str, value: Array) -> None:
        """Add a value that is known from elsewhere."""
        self.values[name] = partial(value)

    def size(self, name: str, axis: int) -> int | None:
        """Return the length of an axis, or None where it is unknown."""
        shape = self._graph.shape(name)
        size = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
        return size if isinstance(size, int) else None

    def visit(self, node: NodeProto) -> None:
        """Compute the outputs of a node whose inputs are known."""
        if node.domain not in ("", "ai.onnx") or not node.output or node.output[0] in self.values:
            return
        try:
            with np.errstate(all="ignore"):
                results = self._results(node)
        except (ValueError, IndexError, TypeError, OverflowError):  # invalid for these values: the runtime tells
            return
        for name, result in zip(node.output, results, strict=False):
            if name and result.array.size <= LIMIT:
                self.values[name] = result

    def _results(self, node: NodeProto) -> list[Partial]:
        op = node.op_type
        if op == "Constant":
            value = self._graph.constant(node.output[0]) if node.output[0] in self._graph.producer else constant(node)
            return [] if value is None or value.size > LIMIT else [partial(value)]
        if op in ("Shape", "Size"):
            return self._shape(node)
        inputs = [self.get(name) if name else None for name in node.input]
        if any(value is None and name for value, name in zip(inputs, node.input, strict=True)):
            return []
        if op in ELEMENTWISE and not attribute(node, "fmod", 0):
            return [_elementwise(op, [value for value in inputs if value is not None])]
        if op in MOVING:
            first, *others = inputs
            if op != "Concat" and not all(value is None or value.complete for value in others):
                return []
            return _moved(node, inputs if op == "Concat" else [first], others)
        arrays = [value.array if value is not None else None for value in inputs]
        if op in COMPUTED and all(value is None or value.complete for value in inputs):
            return [partial(value) for value in COMPUTED[op](node, *arrays)]
        return []

    def _shape(self, node: NodeProto) -> list[Partial]:
        """Return the shape of a tensor, or its size."""
        shape = self._graph.shape(node.input[0])
        if shape is None:
            value = self.get(node.input[0])
            if value is None:
                return []
            shape = value.array.shape
        unknown = np.array([not isinstance(n, int) for n in shape], bool)
        array = np.array([n if isinstance(n, int) else 1 for n in shape], np.int64)
        if node.op_type == "Size":
            return [] if unknown.any() else [partial(np.int64(math.prod(array.tolist())))]
        kept = slice(attribute(node, "start", 0), attribute(node, "end"))
        return [Partial(array[kept], unknown[kept])]


def constant(node: NodeProto) -> Array | None:
    """Return the value of a Constant node; None where it is a string or sparse."""
    graph = helper.make_graph([node], "constant", [], [])
    return Graph(helper.make_model(graph)).constant(node.output[0])


def _elementwise(op: str, values: list[Partial]) -> Partial:
    array = np.asarray(ELEMENTWISE[op](*(value.array for value in values)))
    unknown = _folded(np.logical_or, tuple(value.unknown for value in values))
    if op in ("And", "Or"):  # one operand may decide
        decisive = op == "Or"
        decided = [~value.unknown & (value.array == decisive) for value in values]
        either = _folded(np.logical_or, tuple(decided))
        return Partial(np.where(either, decisive, array), unknown & ~either)
    if op == "Where":
        condition, a, b = values
        unknown = condition.unknown | np.where(condition.array, a.unknown, b.unknown)
    return Partial(array, np.broadcast_to(unknown, array.shape))


def _moved(node: NodeProto, data: list[Partial | None], others: list[Partial | None]) -> list[Partial]:
    """Move the entries, and in the same way the marks of those that are unknown."""
    parts = [value for value in data if value is not None]
    arguments = [None if value is None else value.array for value in others] if node.op_type != "Concat" else []
    move = MOVING[node.op_type]
    arrays = move(node, [value.array for value in parts], arguments)
    marks = move(node, [value.unknown for value in parts], arguments)
    if node.op_type == "Cast":
        kind = helper.tensor_dtype_to_np_dtype(attribute(node, "to"))
        arrays = [array.astype(kind) for array in arrays]
    return [Partial(array, mark) for array, mark in zip(arrays, marks, strict=True)]


def argument(node: NodeProto, name: str, inputs: list[Array | None], index: int = 0) -> list[int] | None:
    """Return a list of integers that is an attribute in some versions of an operator, and an input in others."""
    value = inputs[index] if index < len(inputs) else None
    return attribute(node, name) if value is None else [int(n) for n in value.ravel()]


Move = Callable[[NodeProto, list[Array], list[Array | None]], list[Array]]


def _gather(node: NodeProto, data: list[Array], inputs: list[Array | None]) -> list[Array]:
    assert inputs[0] is not None
    return [np.take(data[0], inputs[0].astype(np.int64), axis=attribute(node, "axis", 0))]


def _slice(node: NodeProto, data: list[Array], inputs: list[Array | None]) -> list[Array]:
    starts, ends = argument(node, "starts", inputs, 0) or [], argument(node, "ends", inputs, 1) or []
    axes = argument(node, "axes", inputs, 2) or list(range(len(starts)))
    steps = argument(node, "steps", inputs, 3) or [1] * len(starts)
    kept = [slice(None)] * data[0].ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = data[0].shape[axis]
        stop = None if step < 0 and end < -size else end
        kept[axis] = slice(start, stop, step)
    return [data[0][tuple(kept)]]


def _squeeze(node: NodeProto, data: list[Array], inputs: list[Array | None]) -> list[Array]:
    axes = argument(node, "axes", inputs)
    return [np.squeeze(data[0], None if axes is None else tuple(axes))]


def _unsqueeze(node: NodeProto, data: list[Array], inputs: list[Array | None]) -> list[Array]:
    return [np.expand_dims(data[0], tuple(argument(node, "axes", inputs) or ()))]


def _reshape(node: NodeProto, data: list[Array], inputs: list[Array | None]) -> list[Array]:
    sizes = argument(node, "shape", inputs) or []
    if not attribute(node, "allowzero", 0):
        sizes = [data[0].shape[i] if n == 0 else n for i, n in enumerate(sizes)]
    return [data[0].reshape(sizes)]


def _expand(node: NodeProto, data: list[Array], inputs: list[Array | None]) -> list[Array]:
    shape = np.broadcast_shapes(data[0].shape, tuple(argument(node, "", inputs) or ()))
    if math.prod(shape) > LIMIT:
        raise ValueError("it is large")
    return [np.broadcast_to(data[0], shape)]


def _split(node: NodeProto, data: list[Array], inputs: list[Array | None]) -> list[Array]:
    axis, sizes = attribute(node, "axis", 0), argument(node, "split", inputs)
    if sizes is None:
        size = -(-data[0].shape[axis] // len(node.output))
        sizes = [size] * len(node.output)
    return np.split(data[0], np.cumsum(sizes)[:-1], axis=axis)


def _transpose(node: NodeProto, data: list[Array], inputs: list[Array | None]) -> list[Array]:
    return [np.transpose(data[0], attribute(node, "perm"))]


MOVING: dict[str, Move] = {
    "Identity": lambda node, data, inputs: data,
    "Cast": lambda node, data, inputs: data,
    "Concat": lambda node, data, inputs: [np.concatenate(data, attribute(node, "axis", 0))],
    "Gather": _gather,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Expand": _expand,
    "Split": _split,
    "Transpose": _transpose,
}


def _range(node: NodeProto, start: Array, limit: Array, delta: Array) -> list[Array]:
    if abs((limit - start) / delta) > LIMIT:
        raise ValueError("it is large")
    return [np.arange(start.item(), limit.item(), delta.item()).astype(start.dtype)]


def _filled(node: NodeProto, shape: Array) -> list[Array]:
    if math.prod(shape.tolist()) > LIMIT:
        raise ValueError("it is large")
    tensor = attribute(node, "value")
    value = (
        np.zeros(1, np.float32) if tensor is None else constant(helper.make_node("Constant", [], ["c"], value=tensor))
    )
    return [] if value is None else [np.full(shape.tolist(), value.ravel()[0])]


def _reduced(node: NodeProto, data: Array, axes_input: Array | None = None) -> list[Array]:
    axes = argument(node, "axes", [axes_input])
    if not axes and attribute(node, "noop_with_empty_axes", 0):
        return [data]
    result = REDUCTIONS[node.op_type](
        data, axis=tuple(axes) if axes else None, keepdims=bool(attribute(node, "keepdims", 1))
    )
    return [np.asarray(result, data.dtype)]


COMPUTED: dict[str, Callable[..., list[Array]]] = {
    "Range": _range,
    "ConstantOfShape": _filled,
    **dict.fromkeys(REDUCTIONS, _reduced),
}
