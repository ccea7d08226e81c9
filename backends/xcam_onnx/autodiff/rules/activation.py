"""Activation functions: formulas as in the ONNX standard, differentiated by hand."""

from __future__ import annotations

import math

from xcam_onnx.autodiff.registry import Node, vjp
from xcam_onnx.autodiff.values import Value


@vjp("Relu")
def relu(n: Node, g: Value) -> Value:
    return n.ops.masked(g, n.y > 0)


@vjp("LeakyRelu")
def leaky_relu(n: Node, g: Value) -> Value:
    return n.ops.Where(n.x > 0, g, g * n.attr("alpha", 0.01))


@vjp("PRelu", broadcasts=True)
def prelu(n: Node, g: Value) -> tuple[Value, Value]:
    slope = n.inputs[1]
    return n.ops.Where(n.x > 0, g, g * slope), n.ops.Where(n.x > 0, 0, g * n.x)


@vjp("Elu")
def elu(n: Node, g: Value) -> Value:
    return n.ops.Where(n.x > 0, g, g * n.attr("alpha", 1.0) * n.ops.Exp(n.x))


@vjp("Selu")
def selu(n: Node, g: Value) -> Value:
    alpha, gamma = n.attr("alpha", 1.67326319217681884765625), n.attr("gamma", 1.05070102214813232421875)
    return n.ops.Where(n.x > 0, g * gamma, g * (alpha * gamma) * n.ops.Exp(n.x))


@vjp("Celu")
def celu(n: Node, g: Value) -> Value:
    return n.ops.Where(n.x > 0, g, g * n.ops.Exp(n.x / n.attr("alpha", 1.0)))


@vjp("ThresholdedRelu")
def thresholded_relu(n: Node, g: Value) -> Value:
    return n.ops.masked(g, n.x > n.attr("alpha", 1.0))


@vjp("Clip", broadcasts=True)
def clip(n: Node, g: Value) -> tuple[Value | None, ...]:
    """The gradient at the bounds themselves is zero, as for ReLU and ReLU6."""
    low, high = n.input(1), n.input(2)
    inside = g
    if low is not None:
        inside = n.ops.masked(inside, n.x > low)
    if high is not None:
        inside = n.ops.masked(inside, n.x < high)
    return (
        inside,
        low and n.ops.masked(g, n.x <= low),
        high and n.ops.masked(g, n.x >= high),
    )


@vjp("Sigmoid")
def sigmoid(n: Node, g: Value) -> Value:
    return g * n.y * (1 - n.y)


@vjp("HardSigmoid")
def hard_sigmoid(n: Node, g: Value) -> Value:
    return n.ops.masked(g * n.attr("alpha", 0.2), (n.y > 0) & (n.y < 1))


@vjp("HardSwish")
def hard_swish(n: Node, g: Value) -> Value:
    o, x = n.ops, n.x
    return o.masked(g * (x / 3 + 0.5), (x > -3) & (x < 3)) + o.masked(g, x >= 3)


@vjp("Swish")
def swish(n: Node, g: Value) -> Value:
    alpha = n.attr("alpha", 1.0)
    s = n.ops.Sigmoid(n.x * alpha)
    return g * s * (1 + n.x * alpha * (1 - s))


@vjp("Mish")
def mish(n: Node, g: Value) -> Value:
    o, x = n.ops, n.x
    t = o.Tanh(o.Softplus(x))
    return g * (t + x * o.Sigmoid(x) * (1 - t * t))


@vjp("Softplus")
def softplus(n: Node, g: Value) -> Value:
    return g * n.ops.Sigmoid(n.x)


@vjp("Softsign")
def softsign(n: Node, g: Value) -> Value:
    around = 1 + n.ops.Abs(n.x)
    return g / (around * around)


@vjp("Gelu")
@vjp("Gelu", domain="com.microsoft")
def gelu(n: Node, g: Value) -> Value:
    """Hendrycks and Gimpel 2016: x·Φ(x), or its approximation by tanh."""
    o, x = n.ops, n.x
    if n.attr("approximate", "none") == "tanh":
        c = math.sqrt(2 / math.pi)
        t = o.Tanh(c * (x + 0.044715 * x * x * x))
        return g * (0.5 * (1 + t) + 0.5 * c * x * (1 - t * t) * (1 + 3 * 0.044715 * x * x))
    below = 0.5 * (1 + o.Erf(x * math.sqrt(0.5)))
    return g * (below + x * o.Exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi)))


@vjp("Softmax")
def softmax(n: Node, g: Value) -> Value:
    weighted = g * n.y
    return weighted - n.y * n.ops.ReduceSum(weighted, _axes(n), keepdims=1)


@vjp("LogSoftmax")
def log_softmax(n: Node, g: Value) -> Value:
    return g - n.ops.Exp(n.y) * n.ops.ReduceSum(g, _axes(n), keepdims=1)


def _axes(n: Node) -> list[int]:
    """Since version 13 one axis; before, all from the axis on."""
    return [n.axis(-1)] if n.version >= 13 else list(range(n.axis(1), n.x.rank))
