"""Operators that move, slice, join and repeat values without changing them."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from xcam_onnx.autodiff.registry import Node, vjp
from xcam_onnx.autodiff.rules.indexing import undo_gather
from xcam_onnx.autodiff.values import Ops, Unsupported, Value


@vjp("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(n: Node, g: Value) -> tuple[Value, None]:
    return n.ops.reshape_like(g, n.x), None


@vjp("Transpose")
def transpose(n: Node, g: Value) -> Value:
    perm = n.attr("perm") or list(range(n.x.rank))[::-1]
    return n.ops.Transpose(g, perm=np.argsort(perm).tolist())


@vjp("Expand")
def expand(n: Node, g: Value) -> tuple[Value, None]:
    return n.ops.undo_broadcast(g, n.y, n.x), None


@vjp("Tile")
def tile(n: Node, g: Value) -> tuple[Value, None]:
    o, rank = n.ops, n.x.rank
    fixed = n.inputs[1].const
    times = fixed.tolist() if fixed is not None else [o.Gather(n.inputs[1], [axis]) for axis in range(rank)]
    pairs = [v for r, m in zip(times, n.x.dims, strict=True) for v in (r, m)]
    return o.ReduceSum(o.Reshape(g, o.dims(pairs)), list(range(0, 2 * rank, 2)), keepdims=0), None


@vjp("Concat")
def concat(n: Node, g: Value) -> list[Value]:
    o, axis = n.ops, n.axis()
    sizes = [x.dims[axis] for x in n.inputs]
    if len(sizes) == 1:
        return [g]
    fixed = all(isinstance(n, int) for n in sizes)
    return o("Split", g, sizes if fixed else o.dims(sizes), axis=axis, outputs=len(sizes))


@vjp("Split")
def split(n: Node, *gradients: Value | None) -> tuple[Value, None]:
    o = n.ops
    missing = [None] * (len(n.outputs) - len(gradients))
    parts = [g or o.zeros_like(y) for g, y in zip([*gradients, *missing], n.outputs, strict=True)]
    return o.Concat(*parts, axis=n.axis()), None


@vjp("Slice")
def slice_(n: Node, g: Value) -> tuple[Value, ...]:
    """Pad contiguous slices; scatter those with steps to the indices they were read from."""
    o, x = n.ops, n.x
    starts = n.inputs[1]
    axes_input, steps_input = n.const(3, "list of axes"), n.const(4, "list of steps")
    count = starts.shape[0]
    if not isinstance(count, int):
        raise Unsupported("the number of its axes is not fixed")
    axes = [int(a) % x.rank for a in (range(count) if axes_input is None else axes_input)]
    steps = [1] * count if steps_input is None else steps_input.tolist()
    known, ends = starts.const, n.inputs[2].const
    for k in reversed(range(count)):
        axis, step, size, kept = axes[k], steps[k], x.dims[axes[k]], n.y.dims[axes[k]]
        start = None if known is None else int(known[k])
        if start is not None and isinstance(size, int):
            start = min(max(start + size if start < 0 else start, 0), size)
        if step == 1 and start is not None and start >= 0:
            before, behind = [0] * x.rank, [0] * x.rank
            before[axis], behind[axis] = start, size - kept - start
            g = o.Pad(g, o.dims([*before, *behind]))
            continue
        indices = o.Slice(
            o.range(size),
            o.Cast(o.Gather(starts, [k]), to=TensorProto.INT64) if known is None else [int(known[k])],
            o.Cast(o.Gather(n.inputs[2], [k]), to=TensorProto.INT64) if ends is None else [int(ends[k])],
            [0],
            [int(step)],
        )
        g = _scatter(o, g, indices, axis, size, kept, x.rank)
    return (g,)


def _scatter(o: Ops, g: Value, indices: Value, axis: int, size: Any, kept: Any, rank: int) -> Value:
    """Scatter `g` [.., kept, ..] to distinct `indices` of an axis of length `size`; the rest is zero."""
    # For each position of the axis, the entry of g that belongs there; `kept` is the index of a zero padded behind g.
    source = o.ScatterElements(o.Expand(o.dims([kept]), o.dims([size])), indices, o.range(kept))
    behind = [0] * 2 * rank
    behind[rank + axis] = 1
    return o.Gather(o.Pad(g, behind), source, axis=axis)


@vjp("Pad")
def pad(n: Node, g: Value) -> tuple[Value, ...]:
    """Crop a constant border; add the values of any other border to those that they copy."""
    o, x, mode = n.ops, n.x, n.attr("mode", "constant")
    pads = n.inputs[1]
    axes_input = n.const(3, "list of axes")
    axes = list(range(x.rank)) if axes_input is None else [int(a) % x.rank for a in axes_input]
    if mode == "constant":
        if pads.const is not None:
            whole = [0] * 2 * x.rank
            for k, axis in enumerate(axes):
                whole[axis], whole[x.rank + axis] = -int(pads.const[k]), -int(pads.const[k + len(axes)])
            return (o.Pad(g, whole),)
        return (o.Pad(g, -pads, None, axes) if axes_input is not None else o.Pad(g, -pads),)
    for axis, k in sorted((axis, k) for k, axis in enumerate(axes)):
        both = [k, k + len(axes)]
        if pads.const is not None and not pads.const[both].any():
            continue
        widths = pads.const[both] if pads.const is not None else o.Gather(pads, both)
        positions = o.Cast(o.range(x.dims[axis]), to=g.dtype)  # not every runtime pads integers in every mode
        source = o.Cast(o.Pad(positions, widths, mode=mode), to=TensorProto.INT64)
        g = undo_gather(o, g, source, axis, x, n.y)
    return (g,)


@vjp("DepthToSpace")
def depth_to_space(n: Node, g: Value) -> Value:
    o, block = n.ops, n.attr("blocksize")
    if n.attr("mode", "DCR") == "DCR":
        return o.SpaceToDepth(g, blocksize=block)
    batch, channels, height, width = n.x.dims
    g = o.Reshape(g, o.dims([batch, channels // block**2, height, block, width, block]))
    return o.reshape_like(o.Transpose(g, perm=[0, 1, 3, 5, 2, 4]), n.x)


@vjp("SpaceToDepth")
def space_to_depth(n: Node, g: Value) -> Value:
    return n.ops.DepthToSpace(g, blocksize=n.attr("blocksize"))


@vjp("Trilu")
def trilu(n: Node, g: Value) -> tuple[Value, None]:
    return n.ops.Trilu(g, n.input(1), upper=n.attr("upper", 1)), None
