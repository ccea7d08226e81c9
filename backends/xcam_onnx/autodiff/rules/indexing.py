"""Reading and writing at indices. The gradient of a value goes to the index it was read from; several reads add up."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from xcam_onnx.autodiff.registry import Node, vjp
from xcam_onnx.autodiff.values import Ops, Unsupported, Value


def undo_gather(o: Ops, g: Value, indices: Value, axis: int, x: Value, y: Value | None = None) -> Value:
    """Return dx for y = Gather(x, indices, axis).

    Args:
        o: Writes the nodes.
        g: The gradient. Along the other axes it has the shape of `x`; where `y` is given, the axes behind `axis` have
            that of `y`.
        indices: Of rank 1.
        axis: The axis of `x` that was gathered along.
        x: The input, in the forward graph.
        y: The output of a node that works on one axis after the other.
    """
    rank = x.rank
    front = [axis, *(i for i in range(rank) if i != axis)]  # ScatterND adds along the first axis
    if axis:
        g = o.Transpose(g, perm=front)
    rest = [x.dims[i] if y is None or i < axis else y.dims[i] for i in front[1:]]
    zeros = o.full([x.dims[axis], *rest], 0, g.dtype)
    indices = indices if indices.dtype == TensorProto.INT64 else o.Cast(indices, to=TensorProto.INT64)
    g = o.ScatterND(zeros, o.Unsqueeze(indices, [-1]), g, reduction="add")
    return o.Transpose(g, perm=np.argsort(front).tolist()) if axis else g


@vjp("Gather")
def gather(n: Node, g: Value) -> tuple[Value, None]:
    o, x, indices, axis = n.ops, n.x, n.inputs[1], n.axis()
    known = indices.const
    if known is not None and known.size == 1 and isinstance(x.dims[axis], int):  # one slice, such as the class token
        index = int(known.reshape(())) % x.dims[axis]
        g = g if known.ndim == 1 else o.reshape(g, [1 if i == axis else m for i, m in enumerate(x.dims)])
        before, behind = [0] * x.rank, [0] * x.rank
        before[axis], behind[axis] = index, x.dims[axis] - 1 - index
        return o.Pad(g, [*before, *behind]), None
    if indices.rank != 1:
        dims = [*x.dims[:axis], -1, *x.dims[axis + 1 :]]
        g, indices = o.Reshape(g, o.dims(dims)), o.Reshape(indices, [-1])
    return undo_gather(o, g, indices, axis, x), None


@vjp("GatherElements")
def gather_elements(n: Node, g: Value) -> tuple[Value, None]:
    o = n.ops
    return o.ScatterElements(o.zeros_like(n.x), n.inputs[1], g, axis=n.axis(), reduction="add"), None


@vjp("GatherND")
def gather_nd(n: Node, g: Value) -> tuple[Value, None]:
    o, indices, lead = n.ops, n.inputs[1], n.attr("batch_dims", 0)
    if lead:  # the leading axes become part of the index
        dims = indices.dims[:-1]
        grids = []
        for i in range(lead):
            grid = o.Unsqueeze(o.range(dims[i]), [k for k in range(len(dims) + 1) if k != i])
            grids.append(o.Expand(grid, o.dims([*dims, 1])))
        indices = o.Concat(*grids, indices, axis=-1)
    return o.ScatterND(o.zeros_like(n.x), indices, g, reduction="add"), None


@vjp("ScatterElements")
def scatter_elements(n: Node, g: Value) -> tuple[Value, None, Value]:
    o, indices, axis = n.ops, n.inputs[1], n.axis()
    kept = g if _adds(n) else o.ScatterElements(g, indices, o.zeros_like(n.inputs[2]), axis=axis)
    return kept, None, o.GatherElements(g, indices, axis=axis)


@vjp("ScatterND")
def scatter_nd(n: Node, g: Value) -> tuple[Value, None, Value]:
    o, indices = n.ops, n.inputs[1]
    kept = g if _adds(n) else o.ScatterND(g, indices, o.zeros_like(n.inputs[2]))
    return kept, None, o.GatherND(g, indices)


def _adds(n: Node) -> bool:
    """Return whether a scatter adds to the existing values, instead of replacing them."""
    reduction = n.attr("reduction", "none")
    if reduction not in ("none", "add"):
        raise Unsupported(f"its reduction {reduction!r} is not supported, only none and add")
    return bool(reduction == "add")


@vjp("TopK")
def top_k(n: Node, g: Value) -> tuple[Value, None]:
    """Differentiate the values; the forward pass returns their indices."""
    indices = n.extra(1, TensorProto.INT64)
    return n.ops.ScatterElements(n.ops.zeros_like(n.x), indices, g, axis=n.axis(-1)), None
