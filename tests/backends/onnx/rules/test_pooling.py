"""Pooling: the rules of `xcam_onnx.autodiff.rules.pooling`.

Values stay away from kinks and ties, where no derivative exists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (as everywhere)

from onnx_rules import (
    Case,
    Cases,
    Draw,
    Edges,
    Half,
    Values,
    at_edges,
    gradients,
    in_float16,
    in_other_precisions,
    one,
    rules_of,
)

case = Cases()


def _windows(d: Draw, kind: str) -> tuple[Values, dict[str, Any], bool]:
    """Return the inputs and attributes of a pooling, and whether torch supports it.

    A last window inside the padding is left out, but before version 22 ONNX infers a shape with it.
    """
    space = d.of(1, 2, 2, 3)
    kernel, strides = d.each(space, 1, 3), d.each(space, 1, 3)
    dilations = d.each(space, 1, 2) if kind == "dilated" else [1] * space
    opset = d.of(*POOLINGS[kind])
    old = kind == "ceil" and opset < 22
    if old or kind == "auto_pad":  # the runtime refuses negative padding
        strides = [min(s, k) for s, k in zip(strides, kernel, strict=True)]
    reach = [t * (k - 1) + 1 for k, t in zip(kernel, dilations, strict=True)]
    x = d.distinct(d.whole(1, 2), d.whole(1, 2), *(r + d.whole(0, 3) for r in reach))
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "opset": opset}
    if kind == "dilated":
        attributes["dilations"] = dilations
    if kind == "auto_pad":
        attributes["auto_pad"] = d.of("SAME_UPPER", "SAME_LOWER", "VALID")
        return {"x": x}, attributes, False
    pads = [0 if old else d.whole(0, k // 2) for k in kernel]
    other = pads if old or d.flag() else [d.whole(0, k - 1) for k in kernel]
    attributes |= {"pads": [*pads, *other]} if any((*pads, *other)) else {}
    attributes |= {"ceil_mode": 1} if kind == "ceil" else {}
    return {"x": x}, attributes, pads == other


POOLINGS = {"plain": (11, 22), "ceil": (11, 19, 22), "auto_pad": (11, 19, 22), "dilated": (19, 22)}


def _poolings(kind: str) -> None:
    @case("MaxPool", kind=kind)
    def max_pool(d: Draw) -> Case:
        values, attributes, has = _windows(d, kind)
        function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(attributes["kernel_shape"]) - 1]
        torchs = _torch_pool(function, attributes, dilation=attributes.get("dilations", 1)) if has else None
        return one(d, values, torchs, by="runtime", step=0.25, **attributes)

    @case("AveragePool", kind=kind)
    def average_pool(d: Draw) -> Case:
        values, attributes, has = _windows(d, kind)
        values, include = {"x": d.any(*values["x"].shape)}, d.whole(0, 1)
        function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(attributes["kernel_shape"]) - 1]
        torchs = (
            _torch_pool(function, attributes, count_include_pad=bool(include)) if has and kind != "dilated" else None
        )
        attributes |= {"count_include_pad": include}
        return one(d, values, torchs, by="runtime", step=1, **attributes)


def _torch_pool(function: Any, attributes: dict[str, Any], **more: Any) -> Callable[..., torch.Tensor]:
    kernel, strides, ceil = attributes["kernel_shape"], attributes["strides"], bool(attributes.get("ceil_mode"))
    pads = attributes.get("pads", [0] * 2 * len(kernel))[: len(kernel)]
    return lambda x: function(x, kernel, strides, pads, ceil_mode=ceil, **more)


for _kind in POOLINGS:
    _poolings(_kind)


@case("AveragePool", kind="blocks")
def blocks(d: Draw) -> Case:
    """Windows that do not overlap."""
    kernel = d.each(d.of(1, 2, 3), 1, 3)
    x = d.any(d.whole(1, 2), d.whole(1, 3), *(k * d.whole(1, 2) + d.whole(0, k - 1) for k in kernel))
    function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    torchs = _torch_pool(function, {"kernel_shape": kernel, "strides": kernel})
    return one(d, {"x": x}, torchs, by="runtime", step=1, kernel_shape=kernel, strides=kernel)


@case("GlobalAveragePool", "GlobalMaxPool")
def global_pool(d: Draw) -> Case:
    x = d.distinct(d.whole(1, 3), d.whole(1, 3), *d.shape(1, 3))
    axes = list(range(2, x.ndim))
    function = {"GlobalAveragePool": torch.mean, "GlobalMaxPool": torch.amax}[d.op]
    return one(d, {"x": x}, lambda x: function(x, axes, keepdim=True), by="torch")


test_gradient = gradients(case)
test_other_precisions = in_other_precisions(case)


def test_every_rule_has_cases() -> None:
    assert case.operators == rules_of("pooling")


EDGES: Edges = {
    "GlobalMaxPool of equals": ("GlobalMaxPool", {"x": [[[1.0, 3, 3, 0]]]}, {}, [[[0, 0.5, 0.5, 0]]]),
    "MaxPool of equals": ("MaxPool", {"x": [[[3.0, 3, 1]]]}, {"kernel_shape": [3]}, [[[1, 0, 0]]]),
}

test_at_kinks_ties_and_far_out = at_edges(EDGES)

HALF: Half = {
    "MaxPool": ([(2, 3, 7, 7)], {"kernel_shape": [3, 3], "strides": [2, 2]}, lambda x: F.max_pool2d(x, 3, 2)),
    "AveragePool": ([(2, 3, 7, 7)], {"kernel_shape": [3, 3], "strides": [2, 2]}, lambda x: F.avg_pool2d(x, 3, 2)),
}

test_float16 = in_float16(HALF)
