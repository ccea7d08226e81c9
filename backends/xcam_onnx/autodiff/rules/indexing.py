"""Reading and writing at indices. What was read goes back to where it was read from; what was read twice adds up."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from xcam_onnx.autodiff.engine import Node, vjp
from xcam_onnx.autodiff.values import Ops, Unsupported, Value


def gather_undone(o: Ops, g: Value, indices: Value, axis: int, x: Value, y: Value | None = None) -> Value:
    """dx for y = Gather(x, indices, axis), `indices` of rank 1; along the other axes `g` has the shape of `x`, or of `y`.

    A ScatterND adds along the first axis, so the axis is brought there and back.
    """
    rank = x.rank
    front = [axis, *(i for i in range(rank) if i != axis)]
    if axis:
        g = o.Transpose(g, perm=front)
    rest = [x.dims[i] for i in front[1:]] if y is None else [_beside(x, y, axis, i) for i in front[1:]]
    zeros = o.full([x.dims[axis], *rest], 0, g.dtype)
    indices = indices if indices.dtype == TensorProto.INT64 else o.Cast(indices, to=TensorProto.INT64)
    g = o.ScatterND(zeros, o.Unsqueeze(indices, [-1]), g, reduction="add")
    return o.Transpose(g, perm=np.argsort(front).tolist()) if axis else g


def _beside(x: Value, y: Value, axis: int, i: int) -> object:
    """Axes ahead of the one in hand are undone already; those behind it are as the output has them."""
    return x.dims[i] if i < axis else y.dims[i]


@vjp("Gather")
def gather(n: Node, g: Value) -> tuple[Value, None]:
    o, x, indices, axis = n.ops, n.x, n.inputs[1], n.axis()
    known = indices.const
    if known is not None and known.size == 1 and isinstance(x.dims[axis], int):  # one slice, such as the class token
        place = int(known.reshape(())) % x.dims[axis]
        g = g if known.ndim == 1 else o.reshape(g, [1 if i == axis else m for i, m in enumerate(x.dims)])
        before, behind = [0] * x.rank, [0] * x.rank
        before[axis], behind[axis] = place, x.dims[axis] - 1 - place
        return o.Pad(g, [*before, *behind]), None
    if indices.rank != 1:
        dims = [*x.dims[:axis], -1, *x.dims[axis + 1 :]]
        g, indices = o.Reshape(g, o.dims(dims)), o.Reshape(indices, [-1])
    return gather_undone(o, g, indices, axis, x), None


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
    kind = n.attr("reduction", "none")
    if kind not in ("none", "add"):
        raise Unsupported(f"its reduction is {kind!r}; none and add can be")
    kept = g if kind == "add" else o.ScatterElements(g, indices, o.zeros_like(n.inputs[2]), axis=axis)
    return kept, None, o.GatherElements(g, indices, axis=axis)


@vjp("ScatterND")
def scatter_nd(n: Node, g: Value) -> tuple[Value, None, Value]:
    o, indices = n.ops, n.inputs[1]
    kind = n.attr("reduction", "none")
    if kind not in ("none", "add"):
        raise Unsupported(f"its reduction is {kind!r}; none and add can be")
    kept = g if kind == "add" else o.ScatterND(g, indices, o.zeros_like(n.inputs[2]))
    return kept, None, o.GatherND(g, indices)


@vjp("TopK")
def top_k(n: Node, g: Value) -> tuple[Value, None]:
    """Of the values; the indices are handed out by the forward pass."""
    o = n.ops
    places = n.extra(1, TensorProto.INT64)
    return o.ScatterElements(o.zeros_like(n.x), places, g, axis=n.axis(-1)), None
