"""Arithmetic and functions of single values."""

from __future__ import annotations

import math

from xcam_onnx.autodiff.engine import Node, vjp
from xcam_onnx.autodiff.values import Unsupported, Value
from xcam_onnx.graph import FLOATS

Two = tuple[Value, Value]


@vjp("Add", broadcasts=True)
def add(n: Node, g: Value) -> Two:
    return g, g


@vjp("Sub", broadcasts=True)
def sub(n: Node, g: Value) -> Two:
    return g, -g


@vjp("Mul", broadcasts=True)
def mul(n: Node, g: Value) -> Two:
    a, b = n.inputs
    return g * b, g * a


@vjp("Div", broadcasts=True)
def div(n: Node, g: Value) -> Two:
    b = n.inputs[1]
    return g / b, -(g * n.y / b)


@vjp("Pow", broadcasts=True)
def power(n: Node, g: Value) -> Two:
    o, (a, b) = n.ops, n.inputs
    fixed = b.const
    if fixed is not None and fixed.size == 1:
        p = float(fixed.reshape(()))
        slope = p if p == 1 else p * a if p == 2 else p * a ** (p - 1)
        return g * (slope if p else 0), g * o.Log(a) * n.y
    b = o.Cast(b, to=a.dtype) if b.dtype != a.dtype else b
    zero = o.Equal(b, 0)
    one = o.Where(o.Equal(a, 0), 1, a)  # log 0 times 0 counts as 0
    return g * o.Where(zero, 0, b * a ** (b - 1)), g * n.y * o.Log(one)


@vjp("Neg")
def neg(n: Node, g: Value) -> Value:
    return -g


@vjp("Abs")
def absolute(n: Node, g: Value) -> Value:
    return g * n.ops.Sign(n.x)


@vjp("Sqrt")
def sqrt(n: Node, g: Value) -> Value:
    return g * 0.5 / n.y


@vjp("Reciprocal")
def reciprocal(n: Node, g: Value) -> Value:
    return -(g * n.y * n.y)


@vjp("Exp")
def exp(n: Node, g: Value) -> Value:
    return g * n.y


@vjp("Log")
def log(n: Node, g: Value) -> Value:
    return g / n.x


@vjp("Erf")
def erf(n: Node, g: Value) -> Value:
    return g * (2 / math.sqrt(math.pi)) * n.ops.Exp(-(n.x * n.x))


@vjp("Sin")
def sin(n: Node, g: Value) -> Value:
    return g * n.ops.Cos(n.x)


@vjp("Cos")
def cos(n: Node, g: Value) -> Value:
    return -(g * n.ops.Sin(n.x))


@vjp("Tan")
def tan(n: Node, g: Value) -> Value:
    return g * (1 + n.y * n.y)


@vjp("Asin")
def asin(n: Node, g: Value) -> Value:
    return g / n.ops.Sqrt(1 - n.x * n.x)


@vjp("Acos")
def acos(n: Node, g: Value) -> Value:
    return -(g / n.ops.Sqrt(1 - n.x * n.x))


@vjp("Atan")
def atan(n: Node, g: Value) -> Value:
    return g / (1 + n.x * n.x)


@vjp("Sinh")
def sinh(n: Node, g: Value) -> Value:
    return g * n.ops.Cosh(n.x)


@vjp("Cosh")
def cosh(n: Node, g: Value) -> Value:
    return g * n.ops.Sinh(n.x)


@vjp("Tanh")
def tanh(n: Node, g: Value) -> Value:
    return g * (1 - n.y * n.y)


@vjp("Sum", broadcasts=True)
def total(n: Node, g: Value) -> list[Value]:
    return [g] * len(n.inputs)


@vjp("Mean", broadcasts=True)
def mean(n: Node, g: Value) -> list[Value]:
    return [g / len(n.inputs)] * len(n.inputs)


@vjp("Max", "Min", broadcasts=True)
def extreme(n: Node, g: Value) -> list[Value]:
    """Inputs that are equally large share the gradient evenly, as torch.maximum has it."""
    o = n.ops
    hits = [o.Cast(o.Equal(x, n.y), to=g.dtype) for x in n.inputs]
    share = g / o.total(hits) if len(hits) > 1 else g
    return [share * hit for hit in hits]


@vjp("Where", broadcasts=True)
def where(n: Node, g: Value) -> tuple[None, Value, Value]:
    return None, n.ops.Where(n.x, g, 0), n.ops.Where(n.x, 0, g)


@vjp("Identity")
def identity(n: Node, g: Value) -> Value:
    return g


@vjp("Dropout")
def dropout(n: Node, g: Value) -> Value:
    training = n.input(2)
    if training is not None and (training.const is None or training.const.any()):
        raise Unsupported("it drops values at random (training_mode)")
    return g


@vjp("Cast")
def cast(n: Node, g: Value) -> Value:
    if n.attr("to") not in FLOATS:
        raise Unsupported("it rounds to whole numbers")
    return n.ops.Cast(g, to=n.x.dtype)


@vjp("CastLike")
def cast_like(n: Node, g: Value) -> tuple[Value, None]:
    if g.dtype not in FLOATS:
        raise Unsupported("it rounds to whole numbers")
    return n.ops.Cast(g, to=n.x.dtype), None


@vjp("Sign", "Floor", "Ceil", "Round", "Hardmax")
def step(n: Node, g: Value) -> None:
    """Flat wherever it has a derivative."""


@vjp("QuantizeLinear", "DequantizeLinear")
def straight_through(n: Node, g: Value) -> Value:
    """Bengio 2013: the rounding is taken for the identity. A quantised tensor's gradient is that of what it stands for."""
    return g
