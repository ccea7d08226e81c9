"""Activations: the rules of `xcam_onnx.autodiff.rules.activation`.

Values stay away from kinks and ties, where no derivative exists.
"""

from __future__ import annotations

from collections.abc import Callable

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


UNARY: dict[str, tuple[Callable[..., torch.Tensor], Callable[[Draw], Callable[..., np.ndarray]]]] = {
    "Sigmoid": (torch.sigmoid, lambda d: d.any),
    "Relu": (torch.relu, lambda d: d.off(0)),
    "HardSwish": (F.hardswish, lambda d: d.off(-3, 3)),
    "Mish": (F.mish, lambda d: d.any),
    "Softplus": (F.softplus, lambda d: d.any),
}


@case(*UNARY)
def unary(d: Draw) -> Case:
    function, values = UNARY[d.op]
    return one(d, {"x": values(d)(*d.shape(0, 4))}, function)


@case("Softsign")
def softsign(d: Draw) -> Case:
    """The reference fails on a single value."""
    return one(d, {"x": d.any(*d.shape(0, 4))}, F.softsign, by="torch")


def _selu(x: torch.Tensor, alpha: float, gamma: float) -> torch.Tensor:
    return gamma * torch.where(x > 0, x, alpha * (x.exp() - 1))


PARAMETRIC: dict[str, tuple[Callable[..., torch.Tensor], tuple[float, ...], dict[str, tuple[float, ...]]]] = {
    "LeakyRelu": (lambda x, alpha=0.01: F.leaky_relu(x, alpha), (0,), {"alpha": (0.2, 1.5, -0.5)}),
    "Elu": (lambda x, alpha=1.0: F.elu(x, alpha), (0,), {"alpha": (0.5, 2.0)}),
    "Celu": (lambda x, alpha=1.0: F.celu(x, alpha), (0,), {"alpha": (0.5, 2.0)}),
    "ThresholdedRelu": (lambda x, alpha=1.0: F.threshold(x, alpha, 0), (1, 0.4, -0.4), {"alpha": (0.4, -0.4)}),
    "Swish": (lambda x, alpha=1.0: x * torch.sigmoid(alpha * x), (), {"alpha": (0.5, 1.702)}),
    "HardSigmoid": (
        lambda x, alpha=0.2, beta=0.5: (alpha * x + beta).clamp(0, 1),
        (-2.5, 2.5, -1.25, 1.25, -1.5, 1, -0.75, 0.5),
        {"alpha": (0.4,), "beta": (0.6,)},
    ),
    "Selu": (
        lambda x, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875: _selu(x, alpha, gamma),
        (0,),
        {"alpha": (0.7,), "gamma": (1.3,)},
    ),
}


@case(*PARAMETRIC)
def parametric(d: Draw) -> Case:
    function, kinks, choices = PARAMETRIC[d.op]
    attributes = {name: d.of(*values) for name, values in choices.items() if d.flag()}
    opset = 24 if d.op == "Swish" else None  # the only one in which the runtime has it
    return one(
        d, {"x": d.off(*kinks)(*d.shape(0, 4))}, lambda x: function(x, **attributes), opset=opset, **attributes
    )


@case("Gelu")
@case("Gelu", domain="com.microsoft")
def gelu(d: Draw) -> Case:
    approximate = d.of("none", "tanh") if not d.domain else "none"
    x = d.any(*d.shape(1, 4))
    attributes = {"approximate": approximate} if not d.domain else {"shape": x.shape, "symbolic": ()}
    return one(d, {"x": x}, lambda x: F.gelu(x, approximate=approximate), by="torch", **attributes)


@case("Softmax", "LogSoftmax")
def softmax(d: Draw) -> Case:
    x, opset = d.any(*d.shape(1, 4)), d.opset(11, 13, NEWEST)
    attributes = {"axis": d.axis(x.ndim)} if d.flag() or (x.ndim == 1 and opset == 11) else {}
    function = F.softmax if d.op == "Softmax" else F.log_softmax

    def flat(x: torch.Tensor) -> torch.Tensor:
        """Treat all axes from this one on as one, as version 11 does."""
        axis = attributes.get("axis", 1) % x.ndim
        return function(x.flatten(axis), axis).reshape(x.shape)

    new = lambda x: function(x, attributes.get("axis", -1))  # noqa: E731
    return one(d, {"x": x}, flat if opset == 11 else new, by="torch", opset=opset, **attributes)


@case("PRelu")
def prelu(d: Draw) -> Case:
    shape = d.shape(1, 4)
    values = {"x": d.off(0)(*shape), "s": d.any(*d.broadcast(shape))}
    return one(d, values, lambda x, s: torch.where(x > 0, x, s * x), at="xs", free="s")


@case("Clip")
def clip(d: Draw) -> Case:
    values = {
        "x": d.off(-0.5, 0.6)(*d.shape(1, 4)),
        d.of("l", "_l"): np.float32(-0.5),
        d.of("h", "_h"): np.float32(0.6),
    }

    def function(x: torch.Tensor, *bounds: torch.Tensor) -> torch.Tensor:
        for bound in bounds:
            x = torch.maximum(x, bound) if bound < 0 else torch.minimum(x, bound)
        return x

    return one(d, values, function, at=[name for name in values if name in "xlh"], free="lh")


test_gradient = gradients(case)
test_other_precisions = in_other_precisions(case)


def test_every_rule_has_cases() -> None:
    assert case.operators == rules_of("activation")


HALF: Half = {
    "Softmax": ([(3, 6)], {"axis": 1}, lambda x: F.softmax(x, 1)),
}

test_float16 = in_float16(HALF)

EDGES: Edges = {
    "Relu at 0": ("Relu", {"x": [-1.0, 0, 1]}, {}, [0, 0, 1]),
    "LeakyRelu at 0": ("LeakyRelu", {"x": [-1.0, 0, 1]}, {"alpha": 0.5}, [0.5, 0.5, 1]),
    "Clip at its bounds": ("Clip", {"x": [-1.0, 0, 3, 6, 7], "l": 0.0, "h": 6.0}, {}, [0, 0, 1, 0, 0]),
    "Softplus far out": ("Softplus", {"x": [-100.0, 100]}, {}, [0, 1]),
    "Sigmoid far out": ("Sigmoid", {"x": [-200.0, 200]}, {}, [0, 0]),
    "Mish far out": ("Mish", {"x": [-200.0, 100]}, {}, [0, 1]),
    "Gelu far out": ("Gelu", {"x": [-50.0, 50]}, {"opset": 20}, [0, 1]),
    "Softmax far out": ("Softmax", {"x": [1000.0, 0, -1000]}, {}, [0, 0, 0]),
}

test_at_kinks_ties_and_far_out = at_edges(EDGES)
