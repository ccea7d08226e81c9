"""Arithmetic and elementwise functions."""

from __future__ import annotations

import math
from collections.abc import Callable

from xcam_onnx.autodiff.registry import Node, vjp
from xcam_onnx.autodiff.values import Unsupported, Value
from xcam_onnx.graph import FLOAT8, FLOATS

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
    exponent = b.const
    if exponent is not None and exponent.size == 1:
        p = float(exponent.reshape(()))
        slope = p if p == 1 else p * a if p == 2 else p * a ** (p - 1)
        return g * (slope if p else 0), g * o.Log(a) * n.y
    b = o.Cast(b, to=a.dtype) if b.dtype != a.dtype else b
    zero = o.Equal(b, 0)
    one = o.Where(o.Equal(a, 0), 1, a)  # log 0 times 0 counts as 0
    return g * o.Where(zero, 0, b * a ** (b - 1)), g * n.y * o.Log(one)


DERIVATIVES: dict[str, Callable[[Node], Value]] = {
    "Abs": lambda n: n.ops.Sign(n.x),
    "Sqrt": lambda n: 0.5 / n.y,
    "Reciprocal": lambda n: -(n.y * n.y),
    "Exp": lambda n: n.y,
    "Log": lambda n: 1 / n.x,
    "Erf": lambda n: (2 / math.sqrt(math.pi)) * n.ops.Exp(-(n.x * n.x)),
    "Sin": lambda n: n.ops.Cos(n.x),
    "Cos": lambda n: -n.ops.Sin(n.x),
    "Tan": lambda n: 1 + n.y * n.y,
    "Asin": lambda n: 1 / n.ops.Sqrt(1 - n.x * n.x),
    "Acos": lambda n: -1 / n.ops.Sqrt(1 - n.x * n.x),
    "Atan": lambda n: 1 / (1 + n.x * n.x),
    "Sinh": lambda n: n.ops.Cosh(n.x),
    "Cosh": lambda n: n.ops.Sinh(n.x),
    "Tanh": lambda n: 1 - n.y * n.y,
}


def _times(derivative: Callable[[Node], Value]) -> Callable[[Node, Value], Value]:
    return lambda n, g: g * derivative(n)


for _op, _derivative in DERIVATIVES.items():
    vjp(_op)(_times(_derivative))


@vjp("Neg")
def neg(n: Node, g: Value) -> Value:
    return -g


@vjp("Sum", broadcasts=True)
def total(n: Node, g: Value) -> list[Value]:
    return [g] * len(n.inputs)


@vjp("Mean", broadcasts=True)
def mean(n: Node, g: Value) -> list[Value]:
    return [g / len(n.inputs)] * len(n.inputs)


@vjp("Max", "Min", broadcasts=True)
def extreme(n: Node, g: Value) -> list[Value]:
    """Divide the gradient evenly among equal inputs, as torch.maximum does."""
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


@vjp("Cast", "CastLike")
def cast(n: Node, g: Value) -> tuple[Value, None]:
    """Pass the gradient on, in the type of the input. Integers are quantised values (see engine.quantised)."""
    o, x, g = n.ops, n.x, n.ops.adjoint(g, n.x)
    if n.y.dtype not in FLOAT8 or x.dtype not in FLOATS:
        return g, None
    return o.masked(g, o.Abs(x) <= FLOAT8[n.y.dtype]), None


@vjp("Sign", "Floor", "Ceil", "Round", "Hardmax")
def step(n: Node, g: Value) -> None:
    """Return a derivative of zero."""
