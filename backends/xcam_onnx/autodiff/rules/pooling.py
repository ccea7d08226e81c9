"""Pooling. The gradients of overlapping windows add up."""

from __future__ import annotations

import math
from typing import Any

from onnx import TensorProto

from xcam_onnx.autodiff.registry import Node, vjp
from xcam_onnx.autodiff.rules.convolution import crop_or_pad, spread, stretched, windows
from xcam_onnx.autodiff.values import Ops, Unsupported, Value


@vjp("MaxPool")
def max_pool(n: Node, g: Value) -> Value:
    """Add each gradient at the index of the maximum, which the forward pass returns as `Indices`."""
    o = n.ops
    if n.attr("storage_order", 0):
        raise Unsupported("its indices are stored in column-major order")
    indices = n.extra(1, TensorProto.INT64)
    count = o.count(n.x.dims, TensorProto.INT64)
    flat = o.full([count], 0, g.dtype)
    flat = o.ScatterElements(flat, o.Reshape(indices, [-1]), o.Reshape(g, [-1]), axis=0, reduction="add")
    return o.reshape_like(flat, n.x)


@vjp("AveragePool")
def average_pool(n: Node, g: Value) -> Value:
    """Spread each gradient evenly over its window; a position sums over the windows that cover it."""
    o, x = n.ops, n.x
    kernel, strides, dilations, begins, ends = windows(n, n.attr("kernel_shape"))
    lengths = stretched(n, strides)
    if kernel == strides and set(dilations) == {1} and not any((*begins, *ends)) and not n.attr("ceil_mode", 0):
        return crop_or_pad(o, _repeated(o, g / math.prod(kernel), n.y.dims, kernel), begins, x.dims[2:], lengths)
    wide = spread(o, g * _shares(n, kernel, strides, dilations, begins, g.dtype), n.y.dims, strides)
    reach = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
    one = o.full([1, 1, *kernel], 1, g.dtype)  # the same kernel for all channels, which are moved to the batch axis
    wide = o.reshape(wide, [o.count(n.y.dims[:2], TensorProto.INT64), 1, *lengths])
    summed = o.Conv(wide, one, pads=reach * 2, dilations=dilations)
    lengths = [m + r for m, r in zip(lengths, reach, strict=True)]
    return crop_or_pad(o, o.reshape(summed, [*n.y.dims[:2], *lengths]), begins, x.dims[2:], lengths)


def _repeated(o: Ops, g: Value, dims: list[Any], times: list[int]) -> Value:
    """Repeat every value of `g` [N, C, *space] in a block."""
    space = len(times)
    g = o.Unsqueeze(g, [3 + 2 * i for i in range(space)])
    g = o.Expand(g, [1, 1, *(v for k in times for v in (1, k))])
    return o.reshape(g, [*dims[:2], *(m * k for m, k in zip(dims[2:], times, strict=True))])


def _shares(
    n: Node, kernel: list[int], strides: list[int], dilations: list[int], begins: list[Any], dtype: int
) -> Value:
    """Return the weight of each position in the mean of its window, [1, 1, *space].

    It is computed by the operator itself: the mean of ones in a window is the share of positions in the image among those
    that count (less than 1 where padding counts too); divided by the number of these positions it is the weight of each.
    """
    o, x = n.ops, n.x
    space = len(kernel)
    ones = o.full([1, 1, *x.dims[2:]], 1, dtype)
    means = o.AveragePool(ones, **{a.name: n.attr(a.name) for a in n.proto.attribute})
    # No window reaches further than this.
    behind = [d * (k - 1) + s for k, d, s in zip(kernel, dilations, strides, strict=True)]
    padded = o.Pad(ones, o.dims([0, 0, *begins, 0, 0, *behind]))
    counts = o.Conv(padded, o.full([1, 1, *kernel], 1, dtype), strides=strides, dilations=dilations)
    return means / o.Slice(counts, [0] * space, o.dims(n.y.dims[2:]), list(range(2, 2 + space)))


@vjp("GlobalAveragePool")
def global_average_pool(n: Node, g: Value) -> Value:
    o = n.ops
    return o.expand_like(g / o.count(n.x.dims[2:], g.dtype), n.x)


@vjp("GlobalMaxPool")
def global_max_pool(n: Node, g: Value) -> Value:
    """Divide the gradient evenly among equal maxima."""
    o = n.ops
    hits = o.Cast(o.Equal(n.x, n.y), to=g.dtype)
    return g / o.ReduceSum(hits, list(range(2, n.x.rank)), keepdims=1) * hits
