"""Sampling at computed positions, linear between neighbours: deformable attention, and the regions of detectors."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from onnx import TensorProto

from xcam_onnx.autodiff.registry import Node, vjp
from xcam_onnx.autodiff.values import Ops, Unsupported, Value

LINEAR = ("linear", "bilinear")


@vjp("GridSample")
@vjp("GridSample", domain="com.microsoft")
def grid_sample(n: Node, g: Value) -> tuple[Value, Value | None]:
    """Give each corner around a sample its weight of the gradient; move the sample by the difference of its corners."""
    o, x, grid = n.ops, n.x, n.inputs[1]
    mode, padding = n.attr("mode", "linear"), n.attr("padding_mode", "zeros")
    if mode not in (*LINEAR, "nearest") or padding not in ("zeros", "border"):
        raise Unsupported(f"its mode {mode} with the padding {padding} is not supported")
    batch, channels, *sizes = x.dims
    points = o.count(grid.dims[1:-1], TensorProto.INT64)
    lasts = [_number(o, size, g.dtype) - 1 for size in sizes]
    shares: list[Value] = []
    lows: list[Value] = []
    slopes: list[Any] = []
    for k, (size, last) in enumerate(zip(sizes, lasts, strict=True)):
        column = o.Gather(grid, np.asarray(len(sizes) - 1 - k), axis=-1)  # (x, y) for axes [height, width]
        column = o.Reshape(column, o.dims([batch, 1, -1])) + 1
        scale = (last if n.attr("align_corners", 0) else _number(o, size, g.dtype)) * 0.5
        position = column * scale if n.attr("align_corners", 0) else column * scale - 0.5
        slope = scale
        if padding == "border":
            slope = o.Cast((position > 0) & (position < last), to=g.dtype) * scale
            position = _clipped(o, position, last)
        low = o.Floor(position) if mode in LINEAR else o.Round(position)
        shares.append(position - low)
        lows.append(low)
        slopes.append(slope)
    flat = o.reshape(g, [batch, channels, points])
    source = o.reshape(x, [batch, channels, o.count(sizes, TensorProto.INT64)])
    indices: list[Value] = []
    parts: list[Value] = []
    moved: list[list[Value]] = [[] for _ in sizes]
    for corner in itertools.product((0, 1) if mode in LINEAR else (0,), repeat=len(sizes)):
        at = [low + 1 if high else low for low, high in zip(lows, corner, strict=True)]
        inside = [o.Cast((a >= 0) & (a <= last), to=g.dtype) for a, last in zip(at, lasts, strict=True)]
        whole = [o.Cast(_clipped(o, a, last), to=TensorProto.INT64) for a, last in zip(at, lasts, strict=True)]
        index = whole[0]
        for a, size in zip(whole[1:], sizes[1:], strict=True):
            index = index * size + a
        index = o.Expand(index, o.dims([batch, channels, points]))
        mask = _product(inside)
        weights = [s if high else 1 - s for s, high in zip(shares, corner, strict=True)]
        indices.append(index)
        parts.append(flat * (mask * _product(weights) if mode in LINEAR else mask))
        dot = o.ReduceSum(flat * o.GatherElements(source, index, axis=2), [1], keepdims=1) * mask
        for k, high in enumerate(corner):
            moved[k].append(_product([dot if high else -dot, *weights[:k], *weights[k + 1 :]]))
    zeros = o.full([batch, channels, o.count(sizes, TensorProto.INT64)], 0, g.dtype)
    dx = o.ScatterElements(zeros, o.Concat(*indices, axis=2), o.Concat(*parts, axis=2), axis=2, reduction="add")
    dx = o.reshape_like(dx, x)
    if mode not in LINEAR:
        return dx, None
    columns = [o.total(m) * slope for m, slope in zip(moved, slopes, strict=True)]
    return dx, o.reshape_like(o.Transpose(o.Concat(*columns[::-1], axis=1), perm=[0, 2, 1]), grid)


@vjp("RoiAlign")
def roi_align(n: Node, g: Value) -> tuple[Value, None, None]:
    """Compute Aᵧᵀ·g·Aₓ for each region, where A are the weights of rows and columns in a bin. Regions are constants.

    (torchvision does not differentiate with respect to regions either.)
    """
    o, x, (regions, owners) = n.ops, n.x, n.inputs[1:3]
    samples = int(n.attr("sampling_ratio", 0))
    if n.attr("mode", "avg") != "avg" or samples < 1:
        raise Unsupported("it takes the maximum, or a number of samples that depends on the region")
    batch, channels, height, width = x.dims
    default = "half_pixel" if n.version >= 16 else "output_half_pixel"
    is_aligned = n.attr("coordinate_transformation_mode", default) == "half_pixel"
    scaled = o.Cast(regions, to=g.dtype) * float(n.attr("spatial_scale", 1.0)) - (0.5 if is_aligned else 0.0)
    x0, y0, x1, y1 = (o.Gather(scaled, [k], axis=1) for k in range(4))
    rows, columns = (
        _bins(o, start, end - start if is_aligned else o.Max(end - start, 1.0), bins, samples, size)
        for start, end, bins, size in (
            (y0, y1, int(n.attr("output_height", 1)), height),
            (x0, x1, int(n.attr("output_width", 1)), width),
        )
    )
    owners = o.Cast(owners, to=TensorProto.INT64)
    is_of = o.Equal(o.Unsqueeze(o.range(batch), [1]), o.Unsqueeze(owners, [0]))
    is_of = o.Unsqueeze(o.Cast(is_of, to=g.dtype), [2, 3])  # [N, R, 1, 1]
    count = int(n.attr("output_height", 1))
    across = o.MatMul(g, o.Unsqueeze(columns, [1]))  # [R, C, bins, W]
    across = o.Reshape(o.Transpose(across, perm=[0, 2, 1, 3]), o.dims([-1, _times(o, channels, width)]))
    down = o.Transpose(o.Unsqueeze(rows, [0]) * is_of, perm=[0, 3, 1, 2])  # [N, H, R, bins]
    down = o.Reshape(down, o.dims([batch, height, _times(o, regions.dims[0], count)]))
    dx = o.Reshape(o.MatMul(down, across), o.dims([batch, height, channels, width]))
    return o.Transpose(dx, perm=[0, 2, 1, 3]), None, None


def _bins(o: Ops, start: Value, length: Value, bins: int, samples: int, size: Any) -> Value:
    """Return the weight of each position in each bin, [R, bins, size]: the mean of the samples' linear weights."""
    steps = o.Cast(o.value(np.arange(bins * samples)[None], 0), to=start.dtype) + 0.5
    at = start + length * (steps / (bins * samples))  # [R, bins · samples]
    last = _number(o, size, at.dtype) - 1
    mask = o.Cast((at >= -1) & (at <= last + 1), to=at.dtype)
    at = o.Unsqueeze(_clipped(o, at, last), [2])
    weights = o.Relu(1 - o.Abs(at - o.Cast(o.range(size), to=at.dtype))) * o.Unsqueeze(mask, [2])
    weights = o.Reshape(weights, o.dims([-1, bins, samples, size]))
    return o.ReduceMean(weights, [2], keepdims=0)


def _clipped(o: Ops, position: Value, last: Any) -> Value:
    return o.Min(o.Max(position, 0.0), last)


def _product(values: list[Value]) -> Value:
    return math.prod(values[1:], start=values[0])


def _number(o: Ops, dim: Any, dtype: int) -> Any:
    """Return a dimension as a float, or as a Value of a float type."""
    return o.Cast(dim, to=dtype) if isinstance(dim, Value) else float(dim)


def _times(o: Ops, a: Any, b: Any) -> Any:
    return o.count([a, b], TensorProto.INT64)
