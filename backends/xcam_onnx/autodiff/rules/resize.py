"""Resizing: linear, one axis after the other. dx = Rᵀ·g for each axis, where R is the resized identity matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from xcam_onnx.autodiff.registry import Node, vjp
from xcam_onnx.autodiff.values import Unsupported, Value

BLOCKS = {("half_pixel", "round_prefer_floor"), ("pytorch_half_pixel", "round_prefer_floor"), ("asymmetric", "floor")}
"""Variants of nearest-neighbour that repeat each value in a block where the scale is an integer."""


@vjp("Resize")
def resize(n: Node, g: Value) -> tuple[Value, ...]:
    o, x = n.ops, n.x
    coordinates = n.attr("coordinate_transformation_mode", "half_pixel")
    policy = n.attr("keep_aspect_ratio_policy", "stretch")
    if coordinates == "tf_crop_and_resize" or policy != "stretch":
        raise Unsupported(f"its mode {coordinates}, {policy} is not supported")
    scales, axes = n.input(2), n.attr("axes", list(range(x.rank)))
    fixed = None if scales is None else scales.const
    if fixed is not None and not fixed.size:  # an empty list means that `scales` is omitted
        scales = fixed = None
    for k, axis in enumerate(axes):
        axis %= x.rank
        size, out = x.dims[axis], n.y.dims[axis]
        scale = None if fixed is None else float(fixed[k])
        if scale == 1 or (isinstance(size, int) and size == out and scale is None):
            continue
        whole = scale if scale is not None else out / size if isinstance(size, int) and isinstance(out, int) else 0.5
        kind = coordinates, n.attr("nearest_mode", "round_prefer_floor")
        if n.attr("mode", "nearest") == "nearest" and whole == int(whole) and kind in BLOCKS:
            finished = {a % x.rank for a in axes[:k]}
            dims = [x.dims[i] if i in finished else n.y.dims[i] for i in range(x.rank)]
            g = o.Reshape(g, o.dims([*dims[:axis], size, int(whole), *dims[axis + 1 :]]))
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


def _matrix(n: Node, size: Any, out: Any, scales: Value | None, fixed: Any, k: int) -> Value:
    """Return R [out, size]: the node's operator applied to the identity matrix, along one axis."""
    o, x = n.ops, n.x
    attributes = {
        a.name: n.attr(a.name) for a in n.proto.attribute if a.name not in ("axes", "keep_aspect_ratio_policy")
    }
    eye = o.Cast(o.EyeLike(o.full([size, size], 0, TensorProto.FLOAT)), to=x.dtype)
    eye = o.Unsqueeze(eye, [0, 1])
    if scales is None:
        big = o.Resize(eye, None, None, o.dims([1, 1, out, size]), **attributes)
    else:
        scale = (
            np.asarray([1, 1, fixed[k], 1], np.float32)
            if fixed is not None
            else o.Concat(np.ones(2, np.float32), o.Gather(scales, [k]), np.ones(1, np.float32), axis=0)
        )
        big = o.Resize(eye, None, scale, **attributes)
    return o.Reshape(big, o.dims([out, size]))
