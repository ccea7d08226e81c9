"""Reductions over axes, and the running sum."""

from __future__ import annotations

from typing import Any

from xcam_onnx.autodiff.engine import Node, vjp
from xcam_onnx.autodiff.values import Value


def _axes(n: Node) -> list[int]:
    """The axes that are reduced: an attribute, or since version 13 or 18 an input; all of them where none are given."""
    given: Any = n.attr("axes")
    if given is None:
        value = n.const(1, "list of axes")
        given = [] if value is None else value.ravel().tolist()
    if not given and n.attr("noop_with_empty_axes", 0):
        return []
    return sorted(axis % n.x.rank for axis in given) or list(range(n.x.rank))


def _wide(n: Node, value: Value, axes: list[int]) -> Value:
    """What stands in the output's place, with the reduced axes put back as 1."""
    return value if n.attr("keepdims", 1) else n.ops.Unsqueeze(value, axes)


@vjp("ReduceSum")
def reduce_sum(n: Node, g: Value) -> tuple[Value, None]:
    return n.ops.expand_like(_wide(n, g, _axes(n)), n.x), None


@vjp("ReduceMean")
def reduce_mean(n: Node, g: Value) -> tuple[Value, None]:
    axes = _axes(n)
    count = n.ops.number([n.x.dims[axis] for axis in axes], g.dtype)
    return n.ops.expand_like(_wide(n, g, axes) / count, n.x), None


@vjp("ReduceMax", "ReduceMin")
def reduce_extreme(n: Node, g: Value) -> tuple[Value, None]:
    """Values that are equally large share the gradient evenly."""
    o, axes = n.ops, _axes(n)
    if not axes:
        return g, None
    hits = o.Cast(o.Equal(n.x, _wide(n, n.y, axes)), to=g.dtype)
    return _wide(n, g, axes) / o.ReduceSum(hits, axes, keepdims=1) * hits, None


@vjp("ReduceProd")
def reduce_prod(n: Node, g: Value) -> tuple[Value, None]:
    """The product of the others: also where one value is zero; zero where two are."""
    o, x, axes = n.ops, n.x, _axes(n)
    if not axes:
        return g, None
    zero = o.Equal(x, 0)
    filled = o.Where(zero, 1, x)
    zeros = o.ReduceSum(o.Cast(zero, to=g.dtype), axes, keepdims=1)
    product = o.Where(zeros > 1, 0, o.ReduceProd(filled, axes, keepdims=1))
    others = o.Where(zero, product, o.Where(zeros > 0, 0, product / filled))
    return _wide(n, g, axes) * others, None


@vjp("ReduceL1")
def reduce_l1(n: Node, g: Value) -> tuple[Value, None]:
    axes = _axes(n)
    return _wide(n, g, axes) * n.ops.Sign(n.x), None


@vjp("ReduceL2")
def reduce_l2(n: Node, g: Value) -> tuple[Value, None]:
    """0 at 0."""
    o, axes = n.ops, _axes(n)
    norm = _wide(n, n.y, axes)
    return o.Where(norm > 0, _wide(n, g, axes) * n.x / norm, 0), None


@vjp("ReduceSumSquare")
def reduce_sum_square(n: Node, g: Value) -> tuple[Value, None]:
    return _wide(n, g, _axes(n)) * (2 * n.x), None


@vjp("ReduceLogSum")
def reduce_log_sum(n: Node, g: Value) -> tuple[Value, None]:
    axes = _axes(n)
    return n.ops.expand_like(_wide(n, g / n.ops.Exp(n.y), axes), n.x), None


@vjp("ReduceLogSumExp")
def reduce_log_sum_exp(n: Node, g: Value) -> tuple[Value, None]:
    axes = _axes(n)
    return _wide(n, g, axes) * n.ops.Exp(n.x - _wide(n, n.y, axes)), None


@vjp("CumSum")
def cumsum(n: Node, g: Value) -> tuple[Value, None]:
    """A sum from the other end."""
    axis = n.inputs[1]
    back = n.ops.CumSum(g, axis, exclusive=n.attr("exclusive", 0), reverse=1 - n.attr("reverse", 0))
    return back, None
