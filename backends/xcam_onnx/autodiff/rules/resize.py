"""Resizing is linear, and works on one axis at a time: dx = Rᵀ·g for each, R being what resizing makes of the identity."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from xcam_onnx.autodiff.engine import Node, vjp
from xcam_onnx.autodiff.values import Unsupported, Value

BLOCKS = {("half_pixel", "round_prefer_floor"), ("pytorch_half_pixel", "round_prefer_floor"), ("asymmetric", "floor")}
"""Kinds of nearest that repeat each value in a block, when the scale is a whole number."""


@vjp("Resize")
def resize(n: Node, g: Value) -> tuple[Value, ...]:
    o, x = n.ops, n.x
    how = n.attr("coordinate_transformation_mode", "half_pixel")
    if how == "tf_crop_and_resize" or n.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Unsupported(f"it is of the kind {how}, {n.attr('keep_aspect_ratio_policy', 'stretch')}")
    scales, axes = n.input(2), n.attr("axes", list(range(x.rank)))
    fixed = None if scales is None else scales.const
    if fixed is not None and not fixed.size:  # an empty list stands for none
        scales = fixed = None
    for k, axis in enumerate(axes):
        axis %= x.rank
        size, out = x.dims[axis], n.y.dims[axis]
        scale = None if fixed is None else float(fixed[k])
        if scale == 1 or (isinstance(size, int) and size == out and scale is None):
            continue
        whole = scale if scale is not None else out / size if isinstance(size, int) and isinstance(out, int) else 0.5
        kind = how, n.attr("nearest_mode", "round_prefer_floor")
        if n.attr("mode", "nearest") == "nearest" and whole == int(whole) and kind in BLOCKS:
            done = [x.dims[i] if i in _before(axes, k, x.rank) else n.y.dims[i] for i in range(x.rank)]
            g = o.Reshape(g, o.dims([*done[:axis], size, int(whole), *done[axis + 1 :]]))
            g = o.ReduceSum(g, [axis + 1], keepdims=0)
            continue
        matrix = _matrix(n, size, out, scales, fixed, k)
        last = x.rank - 1
        perm = list(range(x.rank))
        perm[axis], perm[last] = last, axis
        g = g if axis == last else o.Transpose(g, perm=perm)
        g = o.MatMul(g, matrix)
        g = g if axis == last else o.Transpose(g, perm=perm)
    return (g,)


def _before(axes: list[int], k: int, rank: int) -> set[int]:
    """The axes that are undone already."""
    return {axis % rank for axis in axes[:k]}


def _matrix(n: Node, size: Any, out: Any, scales: Value | None, fixed: Any, k: int) -> Value:
    """R [out, size]: the node's own operator, on the identity, along one axis."""
    o, x = n.ops, n.x
    given = {a.name: n.attr(a.name) for a in n.proto.attribute if a.name not in ("axes", "keep_aspect_ratio_policy")}
    eye = o.Cast(o.EyeLike(o.full([size, size], 0, TensorProto.FLOAT)), to=x.dtype)
    eye = o.Unsqueeze(eye, [0, 1])
    if scales is None:
        big = o.Resize(eye, None, None, o.dims([1, 1, out, size]), **given)
    else:
        scale = (
            np.asarray([1, 1, fixed[k], 1], np.float32)
            if fixed is not None
            else o.Concat(np.ones(2, np.float32), o.Gather(scales, [k]), np.ones(1, np.float32), axis=0)
        )
        big = o.Resize(eye, None, scale, **given)
    return o.Reshape(big, o.dims([out, size]))
