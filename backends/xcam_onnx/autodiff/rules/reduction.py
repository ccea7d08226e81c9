"""Reductions over axes, and the cumulative sum."""

from __future__ import annotations

from typing import Any

from xcam_onnx.autodiff.registry import Node, vjp
from xcam_onnx.autodiff.values import Value


def _axes(n: Node) -> list[int]:
    """Return the reduced axes: an attribute, or an input since version 13 or 18; all axes by default."""
    axes: Any = n.attr("axes")
    if axes is None:
        value = n.const(1, "list of axes")
        axes = [] if value is None else value.ravel().tolist()
    if not axes and n.attr("noop_with_empty_axes", 0):
        return []
    return sorted(axis % n.x.rank for axis in axes) or list(range(n.x.rank))


def _wide(n: Node, value: Value, axes: list[int]) -> Value:
    """Restore the reduced axes as axes of length 1."""
    return value if n.attr("keepdims", 1) else n.ops.Unsqueeze(value, axes)


@vjp("ReduceSum")
def reduce_sum(n: Node, g: Value) -> tuple[Value, None]:
    return n.ops.expand_like(_wide(n, g, _axes(n)), n.x), None


@vjp("ReduceMean")
def reduce_mean(n: Node, g: Value) -> tuple[Value, None]:
    axes = _axes(n)
    count = n.ops.count([n.x.dims[axis] for axis in axes], g.dtype)
    return n.ops.expand_like(_wide(n, g, axes) / count, n.x), None


@vjp("ReduceMax", "ReduceMin")
def reduce_extreme(n: Node, g: Value) -> tuple[Value, None]:
    """Divide the gradient evenly among equal values."""
    o, axes = n.ops, _axes(n)
    if not axes:
        return g, None
    hits = o.Cast(o.Equal(n.x, _wide(n, n.y, axes)), to=g.dtype)
    return _wide(n, g, axes) / o.ReduceSum(hits, axes, keepdims=1) * hits, None


@vjp("ReduceProd")
def reduce_prod(n: Node, g: Value) -> tuple[Value, None]:
    """Multiply by the product of the other values: correct also where one value is zero; zero where two are."""
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
    """The derivative at 0 is 0."""
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
    """Return the cumulative sum in the opposite direction."""
    axis = n.inputs[1]
    back = n.ops.CumSum(g, axis, exclusive=n.attr("exclusive", 0), reverse=1 - n.attr("reverse", 0))
    return back, None
