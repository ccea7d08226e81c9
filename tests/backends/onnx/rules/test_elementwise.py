"""Elementwise operators: the rules of `xcam_onnx.autodiff.rules.elementwise`.

Values stay away from kinks and ties, where no derivative exists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from onnx_gradients import NEWEST, written
from onnx_rules import Case, Cases, Draw, Edges, Values, at_edges, gradients, in_other_precisions, one, rules_of

case = Cases()


UNARY: dict[str, tuple[Callable[..., torch.Tensor], Callable[[Draw], Callable[..., np.ndarray]]]] = {
    "Neg": (torch.neg, lambda d: d.any),
    "Abs": (torch.abs, lambda d: d.off(0)),
    "Sqrt": (torch.sqrt, lambda d: d.positive),
    "Reciprocal": (torch.reciprocal, lambda d: d.positive),
    "Exp": (torch.exp, lambda d: d.any),
    "Log": (torch.log, lambda d: d.positive),
    "Sin": (torch.sin, lambda d: d.any),
    "Cos": (torch.cos, lambda d: d.any),
    "Tan": (torch.tan, lambda d: d.inside),
    "Asin": (torch.asin, lambda d: d.inside),
    "Acos": (torch.acos, lambda d: d.inside),
    "Atan": (torch.atan, lambda d: d.any),
    "Sinh": (torch.sinh, lambda d: d.any),
    "Cosh": (torch.cosh, lambda d: d.any),
    "Tanh": (torch.tanh, lambda d: d.any),
    "Identity": (lambda x: x, lambda d: d.any),
}


@case(*UNARY)
def unary(d: Draw) -> Case:
    function, values = UNARY[d.op]
    return one(d, {"x": values(d)(*d.shape(0, 4))}, function)


@case("Erf")
def erf(d: Draw) -> Case:
    """The reference approximates it."""
    return one(d, {"x": d.any(*d.shape(0, 4))}, torch.erf, by="torch")


BINARY: dict[str, Callable[..., torch.Tensor]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": torch.div,
    "Pow": torch.pow,
}


def _operands(d: Draw, draws: Sequence[Callable[..., np.ndarray]]) -> Values:
    whole = d.shape(0, 4)
    shapes = [d.broadcast(whole) for _ in draws]
    shapes[d.whole(0, len(draws) - 1)] = whole
    return dict(zip("xbcd", (draw(*shape) for draw, shape in zip(draws, shapes, strict=True)), strict=False))


@case(*BINARY)
def binary(d: Draw) -> Case:
    values = _operands(d, {"Div": [d.any, d.positive], "Pow": [d.positive, d.any]}.get(d.op, [d.any, d.any]))
    return one(d, values, BINARY[d.op], at="xb", free="b")


@case("Pow", kind="exponent")
def power(d: Draw) -> Case:
    """A constant exponent, an integer or not, of the base's type or not; integers take negative bases too."""
    exponent = d.of(0, 1, 2, 3, -1, -2, 0.5, 1.5)
    whole = exponent == int(exponent)
    dtype = d.of(np.float32, np.int64) if whole and exponent >= 0 else np.float32
    b = np.full(d.of((), (1,)), exponent, dtype)
    x = d.off(0)(*d.shape(1, 3)) if whole else d.positive(*d.shape(1, 3))
    return one(d, {"x": x, "b": b}, torch.pow, free="b", opset=d.opset(13, 18, NEWEST), step=1e-6)


VARIADIC: dict[str, Callable[..., torch.Tensor]] = {
    "Sum": lambda *xs: sum(xs),
    "Mean": lambda *xs: sum(xs) / len(xs),
    "Max": lambda *xs: torch.stack(torch.broadcast_tensors(*xs)).amax(0),
    "Min": lambda *xs: torch.stack(torch.broadcast_tensors(*xs)).amin(0),
}


@case(*VARIADIC)
def variadic(d: Draw) -> Case:
    count = d.whole(1, 4)
    values = _operands(d, [d.any] * count)
    if d.op in ("Max", "Min"):  # no two alike
        split = np.cumsum([v.size for v in values.values()])[:-1]
        parts = np.split(d.distinct(sum(v.size for v in values.values())), split)
        values = {name: part.reshape(v.shape) for (name, v), part in zip(values.items(), parts, strict=True)}
    return one(d, values, VARIADIC[d.op], at=list(values), free="bcd", by="torch")


@case("Where")
def where(d: Draw) -> Case:
    values = _operands(d, [d.any, d.any, d.any])
    values = {"c": np.asarray(values["c"] > 0), "x": values["x"], "b": values["b"]}
    return one(d, values, lambda c, x, b: torch.where(c, x, b), at="xb", free="cb")


@case("Dropout")
def dropout(d: Draw) -> Case:
    opset, values = d.opset(11, 12, 13, 22), {"x": d.any(*d.shape(1, 4))}
    attributes = {"ratio": 0.3} if opset < 12 and d.flag() else {}
    if opset >= 12 and d.flag():
        values |= {"r": np.float32(0.3)} | ({"t": np.asarray(False)} if d.flag() else {})
    return one(d, values, lambda x, *_: x, fixed="rt", opset=opset, **attributes)


@case("Cast", "CastLike")
def cast(d: Draw) -> Case:
    """Cast to a wide type and back, with a factor of the wide type in between."""
    x, wide = d.any(*d.shape(1, 3)), "Cast<to=11>(x)" if d.op == "Cast" else "CastLike(x, two)"
    back = "Cast<to=1>(b)" if d.op == "Cast" else "CastLike(b, x)"
    text = f"(float[{', '.join(map(str, x.shape))}] x) => (float[] y) {{ a = {wide} b = Mul(a, two) y = {back} }}"
    text = text.replace("float[] y", f"float[{', '.join(map(str, x.shape))}] y")
    model = written(text, d.opset(15, 18, 21, NEWEST), two=np.float64(2))
    return Case(model, {"x": x}, torch=lambda x: 2 * x, by="torch")


@case("Sign", "Floor", "Ceil", "Round", "Hardmax")
def flat(d: Draw) -> Case:
    """Add a path with a derivative."""
    shape = d.shape(1, 3)
    x = np.round(d.distinct(*shape)) + d.of(0.25, -0.25, 0.125)
    sizes = ", ".join(map(str, shape))
    along = f"<axis={d.axis(len(shape))}>" if d.op == "Hardmax" else ""
    text = f"(float[{sizes}] x) => (float[{sizes}] y) {{ f = {d.op}{along}(x) y = Add(f, x) }}"
    return Case(written(text, d.opset(13, 18, NEWEST)), {"x": np.asarray(x, np.float32)})


test_gradient = gradients(case)
test_other_precisions = in_other_precisions(case)


def test_every_rule_has_cases() -> None:
    assert case.operators == rules_of("elementwise")


EDGES: Edges = {
    "Abs at 0": ("Abs", {"x": [-1.0, 0, 1]}, {}, [-1, 0, 1]),
    "Max of equals": ("Max", {"x": [1.0, 2, 3], "b": [1.0, 1, 4]}, {}, [0.5, 1, 0]),
    "the square at 0": ("Pow", {"x": [0.0, 2], "b": 2.0}, {}, [0, 4]),
    "the first power at 0": ("Pow", {"x": [0.0, 2], "b": 1.0}, {}, [1, 1]),
    "the power 0": ("Pow", {"x": [0.0, 2], "b": 0.0}, {}, [0, 0]),
}

test_at_kinks_ties_and_far_out = at_edges(EDGES)
