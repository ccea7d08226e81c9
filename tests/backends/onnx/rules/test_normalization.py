"""Normalisations: the rules of `xcam_onnx.autodiff.rules.normalization`.

Values stay away from kinks and ties, where no derivative exists.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (as everywhere)

from onnx_gradients import NEWEST
from onnx_rules import (
    Case,
    Cases,
    Draw,
    Edges,
    Half,
    at_edges,
    gradients,
    in_float16,
    in_other_precisions,
    one,
    rules_of,
)

case = Cases()


@case("BatchNormalization")
def batch_norm(d: Draw) -> Case:
    shape = (d.whole(1, 3), channels := d.whole(1, 4), *d.shape(0, 3))
    values = {"x": d.any(*shape), "s": d.any(channels), "b": d.any(channels), "m": d.any(channels)}
    values["v"] = d.positive(channels)
    attributes = {"epsilon": 0.1} if d.flag() else {}
    function = lambda x, s, b, m, v: F.batch_norm(x, m, v, s, b, eps=attributes.get("epsilon", 1e-5))  # noqa: E731
    return one(
        d, values, function, fixed="m", free="sbv", by="torch", opset=d.opset(11, 14, 15, NEWEST), **attributes
    )


@case("InstanceNormalization")
def instance_norm(d: Draw) -> Case:
    shape = (d.whole(1, 3), channels := d.whole(1, 4), d.whole(4, 6), *d.shape(0, 2))
    values = {"x": d.any(*shape), "s": d.any(channels), "b": d.any(channels)}
    epsilon = d.of(1e-5, 0.1)
    function = lambda x, s, b: F.instance_norm(x, weight=s, bias=b, eps=epsilon)  # noqa: E731
    return one(d, values, function, free="sb", epsilon=epsilon)


@case("GroupNormalization")
def group_norm(d: Draw) -> Case:
    groups, width, opset, epsilon = d.whole(1, 3), d.whole(1, 3), d.opset(18, 21, NEWEST), d.of(1e-5, 0.1)
    x = d.any(d.whole(1, 2), groups * width, d.whole(4, 6), *d.shape(0, 2))
    scaled = groups if opset < 21 else groups * width
    values = {"x": x, "s": d.any(scaled), "b": d.any(scaled)}

    def function(x: torch.Tensor, s: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        s, b = (s, b) if opset >= 21 else (s.repeat_interleave(width), b.repeat_interleave(width))
        return F.group_norm(x, groups, s, b, epsilon)

    attributes = {"num_groups": groups, "epsilon": epsilon, "shape": x.shape, "symbolic": ()}
    return one(d, values, function, free="sb", by="torch", opset=opset, **attributes)


def _scaled(d: Draw) -> tuple[np.ndarray, int]:
    shape = (*d.shape(0, 3), d.whole(4, 6))
    return d.any(*shape), d.axis(len(shape))


@case("LayerNormalization")
def layer_norm(d: Draw) -> Case:
    x, axis = _scaled(d)
    values = {"x": x, "s": d.any(*x.shape[axis:])} | ({"b": d.any(*x.shape[axis:])} if d.flag() else {})
    epsilon = d.of(1e-5, 0.1)
    function = lambda x, s, b=None: F.layer_norm(x, x.shape[axis:], s, b, epsilon)  # noqa: E731
    attributes = {} if axis == -1 and d.flag() else {"axis": axis}
    return one(d, values, function, free="sb", opset=d.opset(17, 21, NEWEST), epsilon=epsilon, **attributes)


@case("RMSNormalization", "SimplifiedLayerNormalization")
def rms_norm(d: Draw) -> Case:
    x, axis = _scaled(d)
    contributed = d.op == "SimplifiedLayerNormalization"  # an operator of the runtime's, that ONNX cannot infer
    axis = -1 if contributed else axis
    attributes = {"shape": x.shape, "symbolic": (), "opset": 18} if contributed else {"opset": d.opset(23, NEWEST)}
    epsilon = d.of(1e-5, 0.1)
    function = lambda x, s: F.rms_norm(x, x.shape[axis:], s, epsilon)  # noqa: E731
    values = {"x": x, "s": d.any(*x.shape[axis:])}
    return one(d, values, function, free="s", by="torch", axis=axis, epsilon=epsilon, **attributes)


@case("LpNormalization")
def lp_norm(d: Draw) -> Case:
    x, p = d.off(0)(*d.shape(1, 4)), d.of(1, 2)
    axis = d.axis(x.ndim)
    return one(d, {"x": x}, lambda x: F.normalize(x, p, axis), by="torch", opset=d.opset(11, 22), p=p, axis=axis)


@case("LRN")
def lrn(d: Draw) -> Case:
    """The runtime supports only odd sizes, and only images."""
    size, alpha, beta, bias = d.of(1, 3, 5), d.of(1e-4, 0.5), d.of(0.75, 0.6), d.of(1.0, 1.2)
    x = d.any(d.whole(1, 2), d.whole(1, 6), *d.each(2, 1, 3))
    attributes = {"size": size, "alpha": alpha, "beta": beta, "bias": bias}
    return one(d, {"x": x}, lambda x: F.local_response_norm(x, size, alpha, beta, bias), by="torch", **attributes)


@case("MeanVarianceNormalization")
def mean_variance(d: Draw) -> Case:
    """The standard adds 1e-9 to the deviation."""
    x = d.any(d.whole(2, 3), d.whole(1, 3), d.whole(4, 5), d.whole(1, 3))
    attributes = d.of({}, {"axes": [0, 2, 3]}, {"axes": [2, 3]}, {"axes": [0, 1, 2, 3]})
    axes = attributes.get("axes", [0, 2, 3])

    def function(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(axes, True)) / (x.var(axes, correction=0, keepdim=True).sqrt() + 1e-9)

    return one(d, {"x": x}, function, by="torch", opset=d.opset(13, 21, NEWEST), **attributes)


test_gradient = gradients(case)
test_other_precisions = in_other_precisions(case)


def test_every_rule_has_cases() -> None:
    assert case.operators == rules_of("normalization")


HALF: Half = {
    "LayerNormalization": ([(2, 3, 8), (8,), (8,)], {}, lambda x, s, b: F.layer_norm(x, (8,), s, b)),
    "GroupNormalization": (
        [(2, 4, 5), (4,), (4,)],
        {"num_groups": 2, "opset": 21, "shape": (2, 4, 5)},
        lambda x, s, b: F.group_norm(x, 2, s, b),
    ),
}

test_float16 = in_float16(HALF)

EDGES: Edges = {
    "LpNormalization at 0": ("LpNormalization", {"x": [[0.0, 0], [3, 4]]}, {}, [[0, 0], [0.032, -0.024]]),
}

test_at_kinks_ties_and_far_out = at_edges(EDGES)
