"""Reductions and cumulative sums: the rules of `xcam_onnx.autodiff.rules.reduction`.

Values stay away from kinks and ties, where no derivative exists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from onnx_gradients import NEWEST
from onnx_rules import Case, Cases, Draw, Edges, Values, at_edges, gradients, in_other_precisions, ints, one, rules_of

case = Cases()


def _product(x: torch.Tensor, axes: list[int], keepdim: bool) -> torch.Tensor:
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        x = x.prod(axis, keepdim)
    return x


REDUCTIONS: dict[str, Callable[[torch.Tensor, list[int], bool], torch.Tensor]] = {
    "ReduceSum": torch.sum,
    "ReduceMean": torch.mean,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keep).sqrt(),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keep),
}


@case(*REDUCTIONS)
def reduction(d: Draw) -> Case:
    """The axes are an attribute up to version 11 of ReduceSum and 13 of the others, an input later."""
    shape, opset = d.shape(1, 4), d.opset(11, 13, 18, NEWEST)
    draws = {"ReduceMax": d.distinct, "ReduceMin": d.distinct, "ReduceLogSum": d.positive, "ReduceL1": d.off(0)}
    x = draws.get(d.op, d.any)(*shape)
    x = x / x.size if d.op in ("ReduceMax", "ReduceMin") else x
    axes = d.of(None, d.some(len(shape), 1))
    by_input = opset >= 18 or (opset == 13 and d.op == "ReduceSum")
    keep = d.flag()
    attributes: dict[str, Any] = {"keepdims": int(keep)} if not keep or d.flag() else {}
    values: Values = {"x": x}
    if by_input and axes is None and d.flag():
        axes = []
    if axes is not None:
        values |= {"a": ints(*axes)} if by_input else {}
        attributes |= {} if by_input else {"axes": axes}
    over = axes or list(range(x.ndim))
    return one(d, values, lambda x, a=None: REDUCTIONS[d.op](x, over, keep), fixed="a", opset=opset, **attributes)


@case(*REDUCTIONS, kind="noop")
def reduction_noop(d: Draw) -> Case:
    x = d.positive(*d.shape(1, 3))
    values = {"x": x} | ({"a": ints()} if d.flag() else {})
    return one(d, values, fixed="a", opset=d.opset(18, NEWEST), noop_with_empty_axes=1, keepdims=d.whole(0, 1))


@case("ReduceProd", kind="zeros")
def reduce_prod(d: Draw) -> Case:
    x = d.any(*d.shape(1, 3))
    x[d.rng.random(x.shape) < 0.4] = 0
    axes = d.some(x.ndim, 1)
    function = lambda x, a: _product(x, axes, True)  # noqa: E731
    return one(d, {"x": x, "a": ints(*axes)}, function, fixed="a", opset=18)


@case("CumSum")
def cumsum(d: Draw) -> Case:
    x = d.any(*d.shape(1, 3))
    axis, exclusive, reverse = d.axis(x.ndim), d.whole(0, 1), d.whole(0, 1)

    def function(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        x = x.flip(axis) if reverse else x
        y = x.cumsum(axis) - (x if exclusive else 0)
        return y.flip(axis) if reverse else y

    values = {"x": x, "a": np.array(axis, np.int64)}
    return one(d, values, function, free="a", exclusive=exclusive, reverse=reverse)


test_gradient = gradients(case)
test_other_precisions = in_other_precisions(case)


def test_every_rule_has_cases() -> None:
    assert case.operators == rules_of("reduction")


EDGES: Edges = {
    "ReduceMax of equals": ("ReduceMax", {"x": [1.0, 3, 3, 0]}, {}, [0, 0.5, 0.5, 0]),
    "ReduceMin of equals": ("ReduceMin", {"x": [1.0, 1, 3, 1]}, {"keepdims": 0}, [1 / 3, 1 / 3, 0, 1 / 3]),
    "ReduceL2 at 0": ("ReduceL2", {"x": [0.0, 0]}, {"keepdims": 0}, [0, 0]),
}

test_at_kinks_ties_and_far_out = at_edges(EDGES)
