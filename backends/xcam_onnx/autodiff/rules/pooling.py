"""Pooling. Windows that overlap add up."""

from __future__ import annotations

import math
from typing import Any

from onnx import TensorProto

from xcam_onnx.autodiff.engine import Node, vjp
from xcam_onnx.autodiff.rules.convolution import place, spread, stretched, windows
from xcam_onnx.autodiff.values import Ops, Unsupported, Value


@vjp("MaxPool")
def max_pool(n: Node, g: Value) -> Value:
    """Each value goes back to the place it was taken from, which the forward pass hands out as `Indices`."""
    o = n.ops
    if n.attr("storage_order", 0):
        raise Unsupported("its indices are stored in columns")
    indices = n.extra(1, TensorProto.INT64)
    count = o.number(n.x.dims, TensorProto.INT64)
    flat = o.full([count], 0, g.dtype)
    flat = o.ScatterElements(flat, o.Reshape(indices, [-1]), o.Reshape(g, [-1]), axis=0, reduction="add")
    return o.reshape_like(flat, n.x)


@vjp("AveragePool")
def average_pool(n: Node, g: Value) -> Value:
    """Each value is spread evenly over its window; a position sums over the windows that cover it."""
    o, x = n.ops, n.x
    kernel, strides, dilations, begins, ends = windows(n, n.attr("kernel_shape"))
    lengths = stretched(n, strides)
    if kernel == strides and set(dilations) == {1} and not any((*begins, *ends)) and not n.attr("ceil_mode", 0):
        return place(o, _repeated(o, g / math.prod(kernel), n.y.dims, kernel), begins, x.dims[2:], lengths)
    wide = spread(o, g * _shares(n, kernel, strides, dilations, begins, g.dtype), n.y.dims, strides)
    reach = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
    one = o.full([1, 1, *kernel], 1, g.dtype)  # the same kernel for all channels: they stand in the batch
    wide = o.reshape(wide, [o.number(n.y.dims[:2], TensorProto.INT64), 1, *lengths])
    summed = o.Conv(wide, one, pads=reach * 2, dilations=dilations)
    lengths = [m + r for m, r in zip(lengths, reach, strict=True)]
    return place(o, o.reshape(summed, [*n.y.dims[:2], *lengths]), begins, x.dims[2:], lengths)


def _repeated(o: Ops, g: Value, dims: list[Any], times: list[int]) -> Value:
    """Every value of `g` [N, C, *space] in a block of its own."""
    space = len(times)
    g = o.Unsqueeze(g, [3 + 2 * i for i in range(space)])
    g = o.Expand(g, [1, 1, *(v for k in times for v in (1, k))])
    return o.reshape(g, [*dims[:2], *(m * k for m, k in zip(dims[2:], times, strict=True))])


def _shares(
    n: Node, kernel: list[int], strides: list[int], dilations: list[int], begins: list[Any], dtype: int
) -> Value:
    """What each output gives to a position under it: 1 / the number of positions that it was divided by, [1, 1, *space].

    The pooling itself tells: the mean of ones under a window is the share of real positions among those that count
    (less than 1 where padding counts too); divided by the number of real positions it is the weight of each.
    """
    o, x = n.ops, n.x
    space = len(kernel)
    ones = o.full([1, 1, *x.dims[2:]], 1, dtype)
    means = o.AveragePool(ones, **{a.name: n.attr(a.name) for a in n.proto.attribute})
    behind = [
        d * (k - 1) + s for k, d, s in zip(kernel, dilations, strides, strict=True)
    ]  # no window reaches further
    padded = o.Pad(ones, o.dims([0, 0, *begins, 0, 0, *behind]))
    real = o.Conv(padded, o.full([1, 1, *kernel], 1, dtype), strides=strides, dilations=dilations)
    return means / o.Slice(real, [0] * space, o.dims(n.y.dims[2:]), list(range(2, 2 + space)))


@vjp("GlobalAveragePool")
def global_average_pool(n: Node, g: Value) -> Value:
    o = n.ops
    return o.expand_like(g / o.number(n.x.dims[2:], g.dtype), n.x)


@vjp("GlobalMaxPool")
def global_max_pool(n: Node, g: Value) -> Value:
    """Places that are equally high share the gradient evenly."""
    o = n.ops
    hits = o.Cast(o.Equal(n.x, n.y), to=g.dtype)
    return g / o.ReduceSum(hits, list(range(2, n.x.rank)), keepdims=1) * hits
