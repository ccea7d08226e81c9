"""Every rule, over generated shapes and attributes: against float64 differences, and against torch where it has the operator.

A rule without cases fails `test_every_rule_has_cases`. Values stay away from kinks and ties, where no derivative exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (as everywhere)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from onnx_gradients import (
    NEWEST,
    Function,
    by_graph,
    by_reference,
    by_runtime,
    error,
    session,
    single,
    slopes,
    written,
)
from xcam_onnx.autodiff import RULES, rules  # noqa: F401

SETTINGS = settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    database=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
TOLERANCE = 1e-4
INLINED = {("", op) for op in ("Attention", "MeanVarianceNormalization", "Shrink")}
"""Operators that the standard defines by others; xcam has no rule for them."""
PROMISED = [
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Neg",
    "Abs",
    "Sqrt",
    "Reciprocal",
    "Exp",
    "Log",
    "Erf",
    "Sin",
    "Cos",
    "Tanh",
    "Sigmoid",
    "Relu",
    "LeakyRelu",
    "PRelu",
    "Elu",
    "Selu",
    "Celu",
    "ThresholdedRelu",
    "Clip",
    "HardSigmoid",
    "HardSwish",
    "Swish",
    "Mish",
    "Softplus",
    "Softsign",
    "Gelu",
    "Softmax",
    "LogSoftmax",
    "BatchNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "GroupNormalization",
    "RMSNormalization",
    "LpNormalization",
    "LRN",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSumExp",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Expand",
    "Tile",
    "Concat",
    "Split",
    "Slice",
    "Gather",
    "GatherElements",
    "GatherND",
    "ScatterElements",
    "ScatterND",
    "Pad",
    "Where",
    "Max",
    "Min",
    "Sum",
    "Mean",
    "Identity",
    "Dropout",
    "Cast",
    "Resize",
    "DepthToSpace",
    "SpaceToDepth",
    "Einsum",
    "TopK",
    "CumSum",
    "Attention",
    "DequantizeLinear",
    "QuantizeLinear",
]

SINCE: dict[str, int] = {}
"""The first version of the operator set that has an operator."""
for _schema in onnx.defs.get_all_schemas_with_history():
    SINCE[_schema.name] = min(_schema.since_version, SINCE.get(_schema.name, NEWEST))

Values = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A model, and where the truth about its gradient comes from."""

    model: onnx.ModelProto
    values: Values
    """Of all inputs, initialisers too."""
    at: str = "x"
    torch: Callable[..., torch.Tensor] | None = None
    """The same operator in torch; takes the values in order."""
    by: str = "reference"
    """Differences of: ONNX's reference; torch, where that is wrong or lacks the operator; ONNX Runtime, where the operator
    is linear between points `step` apart."""
    step: float = 1e-5
    tolerance: float = TOLERANCE


class Draw:
    """One example: hypothesis draws shapes and attributes; values come from a generator."""

    def __init__(self, data: st.DataObject, op: tuple[str, str]) -> None:
        self.data, (self.domain, self.op) = data, op
        self.rng = np.random.default_rng(self.whole(0, 999))

    def whole(self, low: int, high: int) -> int:
        return self.data.draw(st.integers(low, high))

    def of(self, *choices: Any) -> Any:
        return self.data.draw(st.sampled_from(choices))

    def flag(self) -> bool:
        return self.data.draw(st.booleans())

    def some(self, n: int, least: int = 0) -> list[int]:
        """Different numbers below n, some counted from the end."""
        found = self.data.draw(st.lists(st.integers(0, n - 1), min_size=least, max_size=n, unique=True))
        return [k - n if self.flag() else k for k in found]

    def axis(self, rank: int) -> int:
        return self.whole(-rank, rank - 1)

    def shape(self, low: int, high: int, side: int = 4) -> tuple[int, ...]:
        return tuple(self.whole(1, side) for _ in range(self.whole(low, high)))

    def opset(self, *among: int) -> int:
        """One of the versions that have the operator. Its meaning changes between them, or its place in the runtime."""
        return self.of(*(v for v in among or (11, 13, 18, 21, NEWEST) if v >= SINCE.get(self.op, 1)))

    def any(self, *shape: int) -> np.ndarray:
        return np.asarray(self.rng.normal(size=shape), np.float32)

    def positive(self, *shape: int) -> np.ndarray:
        return np.asarray(self.rng.uniform(0.5, 2, shape), np.float32)

    def inside(self, *shape: int) -> np.ndarray:
        return np.asarray(self.rng.uniform(-0.9, 0.9, shape), np.float32)

    def off(self, *kinks: float) -> Callable[..., np.ndarray]:
        """Values that are at least 0.05 away from the kinks."""

        def drawn(*shape: int) -> np.ndarray:
            x = self.rng.normal(size=shape) * 1.5
            for kink in kinks:
                x = np.where(np.abs(x - kink) < 0.05, x + 0.1, x)
            return np.asarray(x, np.float32)

        return drawn

    def distinct(self, *shape: int) -> np.ndarray:
        """Whole numbers, none twice, around zero."""
        n = math.prod(shape)
        return (self.rng.permutation(n) - n // 2).reshape(shape).astype(np.float32)

    def broadcast(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape that can be broadcast to this one."""
        kept = shape[self.whole(0, len(shape)) :]
        return tuple(1 if self.of(False, False, True) else n for n in kept)


def ints(*values: Any) -> np.ndarray:
    return np.array(values, np.int64)


def one(
    d: Draw,
    values: Values,
    torch: Callable[..., torch.Tensor] | None = None,
    *,
    at: Sequence[str] = ("x",),
    fixed: Sequence[str] = (),
    free: Sequence[str] = (),
    opset: int | None = None,
    by: str = "reference",
    step: float = 1e-5,
    tolerance: float = TOLERANCE,
    **rest: Any,
) -> Case:
    """A case of one node. `fixed` inputs are initialisers, `free` ones now and then."""
    where = d.of(*at)
    fixed = [name for name in values if name in fixed or (name in free and name != where and d.flag())]
    live = [name for name in values if name not in fixed and not name.startswith("_")]
    named = d.of((), ("x",), [name for name in live if name in (*at, "x")])
    rest = {"opset": opset or d.opset(), "domain": d.domain, "symbolic": named} | rest
    model = single(d.op, values, fixed=fixed, **rest)
    if not model.graph.output[0].type.tensor_type.HasField("shape"):  # an exporter would have declared it
        y = session(model).run(["y"], {name: np.asarray(values[name]) for name in live})[0]
        model = single(d.op, values, fixed=fixed, shape=[f"y{i}" for i in range(y.ndim)], **rest)
    return Case(model, values, where, torch, by, step, tolerance)


CASES: dict[str, tuple[tuple[str, str], Callable[[Draw], Case]]] = {}


def case(*ops: str, kind: str = "", domain: str = "") -> Callable[[Any], Any]:
    """Register cases for operators, one set for each; `kind` tells several sets of one operator apart."""

    def register(build: Any) -> Any:
        for op in ops:
            CASES[f"{domain and domain + '.'}{op}{kind and '-' + kind}"] = (domain, op), build
        return build

    return register


# Elementwise

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
    "Sigmoid": (torch.sigmoid, lambda d: d.any),
    "Relu": (torch.relu, lambda d: d.off(0)),
    "HardSwish": (F.hardswish, lambda d: d.off(-3, 3)),
    "Mish": (F.mish, lambda d: d.any),
    "Softplus": (F.softplus, lambda d: d.any),
    "Identity": (lambda x: x, lambda d: d.any),
}


@case(*UNARY)
def unary(d: Draw) -> Case:
    function, values = UNARY[d.op]
    return one(d, {"x": values(d)(*d.shape(0, 4))}, function)


@case("Erf", "Softsign")
def unlike(d: Draw) -> Case:
    """The reference approximates the one, and fails on a single value for the other."""
    return one(d, {"x": d.any(*d.shape(0, 4))}, {"Erf": torch.erf, "Softsign": F.softsign}[d.op], by="torch")


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
    given = {name: d.of(*values) for name, values in choices.items() if d.flag()}
    opset = 24 if d.op == "Swish" else None  # the only one in which the runtime has it
    return one(d, {"x": d.off(*kinks)(*d.shape(0, 4))}, lambda x: function(x, **given), opset=opset, **given)


@case("Gelu")
@case("Gelu", domain="com.microsoft")
def gelu(d: Draw) -> Case:
    how = d.of("none", "tanh") if not d.domain else "none"
    x = d.any(*d.shape(1, 4))
    given = {"approximate": how} if not d.domain else {"shape": x.shape, "symbolic": ()}
    return one(d, {"x": x}, lambda x: F.gelu(x, approximate=how), by="torch", **given)


@case("Softmax", "LogSoftmax")
def softmax(d: Draw) -> Case:
    x, opset = d.any(*d.shape(1, 4)), d.opset(11, 13, NEWEST)
    given = {"axis": d.axis(x.ndim)} if d.flag() or (x.ndim == 1 and opset == 11) else {}
    function = F.softmax if d.op == "Softmax" else F.log_softmax

    def flat(x: torch.Tensor) -> torch.Tensor:
        """Version 11: all axes from this one on count as one."""
        axis = given.get("axis", 1) % x.ndim
        return function(x.flatten(axis), axis).reshape(x.shape)

    new = lambda x: function(x, given.get("axis", -1))  # noqa: E731
    return one(d, {"x": x}, flat if opset == 11 else new, by="torch", opset=opset, **given)


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
    """A fixed exponent, whole or not, of the base's type or not; whole ones take negative bases too."""
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
    given = {"ratio": 0.3} if opset < 12 and d.flag() else {}
    if opset >= 12 and d.flag():
        values |= {"r": np.float32(0.3)} | ({"t": np.asarray(False)} if d.flag() else {})
    return one(d, values, lambda x, *_: x, fixed="rt", opset=opset, **given)


@case("Cast", "CastLike")
def cast(d: Draw) -> Case:
    """There and back, so that a factor of the wide type stands in between."""
    x, wide = d.any(*d.shape(1, 3)), "Cast<to=11>(x)" if d.op == "Cast" else "CastLike(x, two)"
    back = "Cast<to=1>(b)" if d.op == "Cast" else "CastLike(b, x)"
    text = f"(float[{', '.join(map(str, x.shape))}] x) => (float[] y) {{ a = {wide} b = Mul(a, two) y = {back} }}"
    text = text.replace("float[] y", f"float[{', '.join(map(str, x.shape))}] y")
    model = written(text, d.opset(15, 18, 21, NEWEST), two=np.float64(2))
    return Case(model, {"x": x}, torch=lambda x: 2 * x, by="torch")


@case("Sign", "Floor", "Ceil", "Round", "Hardmax")
def flat(d: Draw) -> Case:
    """Beside a path that has a slope."""
    shape = d.shape(1, 3)
    x = np.round(d.distinct(*shape)) + d.of(0.25, -0.25, 0.125)
    sizes = ", ".join(map(str, shape))
    along = f"<axis={d.axis(len(shape))}>" if d.op == "Hardmax" else ""
    text = f"(float[{sizes}] x) => (float[{sizes}] y) {{ f = {d.op}{along}(x) y = Add(f, x) }}"
    return Case(written(text, d.opset(13, 18, NEWEST)), {"x": np.asarray(x, np.float32)})


@case("QuantizeLinear", "DequantizeLinear")
def quantised(d: Draw) -> Case:
    """On the grid of the quantised numbers, where rounding changes nothing; the gradient is the identity's."""
    shape = d.shape(1, 4)
    axis = d.axis(len(shape))
    channels = d.of((), (shape[axis],))
    scale = d.of(0.5, 0.25) * np.ones(channels, np.float32)
    zero = np.asarray(d.rng.integers(-3, 3, channels) + d.of(0, 8), np.int8 if (signed := d.flag()) else np.uint8)
    zero = zero if signed else np.maximum(zero, 5).astype(np.uint8) % 32
    along = [-1 if i == axis % len(shape) else 1 for i in range(len(shape))]
    x = d.rng.integers(-4, 20, shape) * (scale.reshape(along) if channels else scale)
    sizes = ", ".join(map(str, shape))
    given = f"<axis={axis}>"
    text = (
        f"(float[{sizes}] x) => (float[{sizes}] y) "
        f"{{ q = QuantizeLinear{given}(x, s, z) y = DequantizeLinear{given}(q, s, z) }}"
    )
    model = written(text, d.opset(13, 19, 21, 25), s=np.asarray(scale), z=zero)
    return Case(model, {"x": np.asarray(x, np.float32)}, torch=lambda x: x, by="torch")


# Convolution


def _conv(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, pads: list[int], **given: Any) -> torch.Tensor:
    space = x.ndim - 2
    sides = [v for i in reversed(range(space)) for v in (pads[i], pads[space + i])]
    return (F.conv1d, F.conv2d, F.conv3d)[space - 1](F.pad(x, sides), w, b, **given)


def _convolution(
    d: Draw, space: int, kernel: list[int], strides: list[int], dilations: list[int], groups: int, width: int
) -> tuple[Values, dict[str, Any]]:
    reach = [t * (k - 1) + 1 for k, t in zip(kernel, dilations, strict=True)]
    sizes = [r + d.whole(0, 4) for r in reach]
    x = d.any(d.whole(1, 2), groups * d.whole(1, 2), *sizes)
    values = {"x": x, "w": d.any(groups * width, x.shape[1] // groups, *kernel)}
    if d.flag():
        values["b"] = d.any(groups * width)
    return values, {"strides": strides, "dilations": dilations, "group": groups}


KINDS: dict[str, Callable[[Draw, int], tuple[list[int], list[int], list[int], int, int]]] = {
    "stride1": lambda d, n: (_each(d, n, 1, 3), [1] * n, _each(d, n, 1, 2), d.of(1, 2), d.whole(1, 3)),
    "pointwise": lambda d, n: ([1] * n, _each(d, n, 1, 3), [1] * n, d.of(1, 2), d.whole(1, 3)),
    "dilated": lambda d, n: (_each(d, n, 1, 3), _each(d, n, 1, 3), _each(d, n, 1, 2), d.of(1, 2), d.whole(1, 3)),
    "phases": lambda d, n: (_each(d, n, 2, 4), _each(d, n, 1, 3), [1] * n, d.of(1, 2), d.whole(1, 2)),
    "square": lambda d, n: (_each(d, n, 2, 4), [d.of(2, 3)] * n, [1] * n, d.of(1, 2), d.whole(1, 2)),
}


def _each(d: Draw, n: int, low: int, high: int) -> list[int]:
    return [d.whole(low, high) for _ in range(n)]


def _convolutions(kind: str) -> None:
    @case("Conv", kind=kind)
    def conv(d: Draw) -> Case:
        space = d.of(2, 2, 1, 3)
        kernel, strides, dilations, groups, width = KINDS[kind](d, space)
        values, given = _convolution(d, space, kernel, strides, dilations, groups, width)
        pads = _each(d, 2 * space, 0, 3)
        function = lambda x, w, b=None: _conv(  # noqa: E731
            x, w, b, pads, stride=strides, dilation=dilations, groups=groups
        )
        return one(d, values, function, free="wb", by="runtime", step=1, pads=pads, **given)


for _kind in KINDS:
    _convolutions(_kind)


@case("Conv", kind="depthwise")
def depthwise(d: Draw) -> Case:
    space, channels, times = d.of(1, 2), d.whole(2, 4), d.whole(1, 2)
    kernel, strides, pads = _each(d, space, 1, 4), _each(d, space, 1, 3), _each(d, 2 * space, 0, 2)
    values = {"x": d.any(1, channels, *(k + d.whole(0, 4) for k in kernel)), "w": d.any(channels * times, 1, *kernel)}
    function = lambda x, w: _conv(x, w, None, pads, stride=strides, groups=channels)  # noqa: E731
    return one(d, values, function, free="w", by="runtime", step=1, pads=pads, strides=strides, group=channels)


def _auto(sizes: Sequence[int], kernel: list[int], strides: list[int], how: str) -> tuple[str, list[int]]:
    """What automatic padding comes to."""
    total = [max((math.ceil(n / s) - 1) * s + k - n, 0) for n, k, s in zip(sizes, kernel, strides, strict=True)]
    total = [0 for _ in total] if how == "VALID" else total
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return how, [*small, *large] if how == "SAME_UPPER" else [*large, *small]


@case("Conv", kind="auto_pad")
def conv_auto(d: Draw) -> Case:
    space = d.of(1, 2)
    kernel, strides = _each(d, space, 1, 4), _each(d, space, 1, 3)
    values, given = _convolution(d, space, kernel, strides, [1] * space, 1, 2)
    how, pads = _auto(values["x"].shape[2:], kernel, strides, d.of("SAME_UPPER", "SAME_LOWER", "VALID"))
    function = lambda x, w, b=None: _conv(x, w, b, pads, stride=strides)  # noqa: E731
    return one(d, values, function, free="wb", by="runtime", step=1, auto_pad=how, **given)


def _transposed(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, pads: list[int], extra: list[int], **given: Any
) -> torch.Tensor:
    """Torch's pads are the same on both sides: without any, then cut."""
    space = x.ndim - 2
    y = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[space - 1](x, w, **given)
    y = F.pad(y, [v for e in reversed(extra) for v in (0, e)])
    for i in range(space):
        y = y.narrow(2 + i, pads[i], y.shape[2 + i] - pads[i] - pads[space + i])
    return y if b is None else y + b.reshape(-1, *[1] * space)


@case("ConvTranspose")
def conv_transpose(d: Draw) -> Case:
    space, groups = d.of(1, 2, 2, 3), d.of(1, 2)
    kernel, strides, dilations = _each(d, space, 1, 3), _each(d, space, 1, 3), _each(d, space, 1, 2)
    x = d.any(d.whole(1, 2), 2 * groups, *_each(d, space, 2, 4))
    values = {"x": x, "w": d.any(2 * groups, d.whole(1, 2), *kernel)}
    values |= {"b": d.any(groups * values["w"].shape[1])} if d.flag() else {}
    reach = [t * (k - 1) for k, t in zip(kernel, dilations, strict=True)]
    pads = [d.whole(0, min(r, 2)) for r in reach * 2]
    longest = [s * (n - 1) + r for s, n, r in zip(strides, x.shape[2:], reach, strict=True)]
    if any(a + b > n for a, b, n in zip(pads[:space], pads[space:], longest, strict=True)):
        pads = [0] * 2 * space
    extra = [d.whole(0, s - 1) for s in strides]
    given = {"strides": strides, "dilations": dilations, "group": groups}
    function = lambda x, w, b=None: _transposed(  # noqa: E731
        x, w, b, pads, extra, stride=strides, dilation=dilations, groups=groups
    )
    return one(d, values, function, free="wb", by="runtime", step=1, pads=pads, output_padding=extra, **given)


@case("ConvTranspose", kind="size")
def conv_transpose_size(d: Draw) -> Case:
    """Padding that follows from the output's size."""
    kernel, strides = _each(d, 2, 2, 4), _each(d, 2, 1, 3)
    x = d.any(1, 2, *_each(d, 2, 2, 4))
    largest = [s * (n - 1) + k for s, n, k in zip(strides, x.shape[2:], kernel, strict=True)]
    given: dict[str, Any] = {"auto_pad": d.of("SAME_UPPER", "SAME_LOWER")}
    if d.flag():
        given |= {"output_shape": [max(m, n - d.whole(0, 2)) for m, n in zip(x.shape[2:], largest, strict=True)]}
        given |= {"auto_pad": d.of("NOTSET", "SAME_UPPER", "SAME_LOWER")}
    values = {"x": x, "w": d.any(2, 3, *kernel)}
    return one(d, values, free="w", by="runtime", step=1, symbolic=(), strides=strides, **given)


# Matrices


@case("Gemm")
def gemm(d: Draw) -> Case:
    m, k, n = d.whole(1, 4), d.whole(1, 4), d.whole(1, 4)
    ta, tb, alpha, beta = d.whole(0, 1), d.whole(0, 1), d.of(1.0, 0.5), d.of(1.0, 2.0)
    values = {"x": d.any(*((k, m) if ta else (m, k))), "b": d.any(*((n, k) if tb else (k, n)))}
    values |= {"c": d.any(*shape)} if (shape := d.of(None, (), (n,), (1, n), (m, 1), (m, n))) is not None else {}

    def product(x: torch.Tensor, b: torch.Tensor, c: torch.Tensor | float = 0.0) -> torch.Tensor:
        return alpha * (x.T if ta else x) @ (b.T if tb else b) + beta * c

    given = {"transA": ta, "transB": tb, "alpha": alpha, "beta": beta}
    return one(d, values, product, at=list(values), free="bc", **given)


@case("MatMul")
def matmul(d: Draw) -> Case:
    m, k, n, lead = d.whole(1, 4), d.whole(1, 4), d.whole(1, 4), d.shape(0, 2, 3)
    left = (k,) if (flat := d.of(0, 0, 0, 1)) else (*d.broadcast(lead), m, k)
    right = (k,) if d.of(0, 0, 0, 1) else (*(lead if flat or d.flag() else d.broadcast(lead)), k, n)
    return one(d, {"x": d.any(*left), "b": d.any(*right)}, torch.matmul, at="xb", free="b")


@case("MatMul", kind="weight")
def matmul_weight(d: Draw) -> Case:
    x, n = d.any(*d.shape(2, 4)), d.whole(1, 4)
    return one(d, {"x": x, "b": d.any(x.shape[-1], n)}, torch.matmul, fixed="b")


EQUATIONS = {
    "ij,jk->ik": ("ij", "jk"),
    "bhwc,hkc->bhwk": ("bhwc", "hkc"),
    "bij,bjk": ("bij", "bjk"),
    "ij,kl->ik": ("ij", "kl"),
    "nctkv,kvw->nctw": ("nctkv", "kvw"),
    "...ij,jk->...ik": ("abij", "jk"),
    "...ij,...jk->...ik": ("abij", "abjk"),
    "bi, bj -> bij": ("bi", "bj"),
    "ij->ji": ("ij",),
    "ij->": ("ij",),
    "i,i": ("i", "i"),
    "ab,bc,cd->ad": ("ab", "bc", "cd"),
}


@case("Einsum")
def einsum(d: Draw) -> Case:
    equation = d.of(*EQUATIONS)
    sizes = {label: d.whole(1, 3) + 1 for label in "".join(EQUATIONS[equation])}
    sizes = {label: n if d.of(1, 1, 0) else 2 for label, n in sizes.items()}
    shapes = [[sizes[label] for label in term] for term in EQUATIONS[equation]]
    values = {name: d.any(*shape) for name, shape in zip("xbc", shapes, strict=False)}
    function = lambda *xs: torch.einsum(equation, *xs)  # noqa: E731
    return one(d, values, function, at=list(values), free="bc", equation=equation)


@case("Attention")
def attention(d: Draw) -> Case:
    """Heads on an axis of their own; a mask, added or of truth values; fewer key heads; the causal mask."""
    n, heads, share, q, k, size = (
        d.whole(1, 2),
        d.whole(1, 2),
        d.of(1, 2),
        d.whole(1, 3),
        d.whole(1, 4),
        d.whole(1, 4),
    )
    values = {"x": d.any(n, heads * share, q, size)}
    values |= {"k": d.any(n, heads, k, size), "v": d.any(n, heads, k, d.whole(1, 4))}
    scale, causal = d.of(None, 0.3), d.flag()
    given = {"is_causal": int(causal)} | ({} if scale is None else {"scale": scale})
    at = ["x", "k", "v"]
    if not causal and (kind := d.of("", "truth", "added")):
        mask = d.any(q, k)
        values["m"] = mask if kind == "added" else (mask > 0) | (np.arange(k) == 0)
        at += ["m"] * (kind == "added")

    def function(x: torch.Tensor, k: torch.Tensor, v: torch.Tensor, m: torch.Tensor | None = None) -> torch.Tensor:
        more = {"attn_mask": m, "is_causal": causal, "scale": scale, "enable_gqa": share > 1}
        return F.scaled_dot_product_attention(x, k, v, **more)

    return one(d, values, function, at=at, free="m", by="torch", opset=d.opset(23, 24, NEWEST), **given)


@case("Attention", kind="packed")
def packed(d: Draw) -> Case:
    """Heads side by side in the last axis."""
    n, heads, q, k, size = d.whole(1, 2), d.whole(1, 3), d.whole(1, 3), d.whole(1, 4), d.whole(1, 3)
    values = {"x": d.any(n, q, heads * size), "k": d.any(n, k, heads * size), "v": d.any(n, k, heads * size)}

    def function(*given: torch.Tensor) -> torch.Tensor:
        apart = (t.reshape(n, -1, heads, size).transpose(1, 2) for t in given)
        return F.scaled_dot_product_attention(*apart).transpose(1, 2).flatten(2)

    opset = d.opset(23, 24, NEWEST)
    return one(
        d, values, function, at="xkv", by="torch", opset=opset, symbolic=(), q_num_heads=heads, kv_num_heads=heads
    )


@case("Shrink")
def shrink(d: Draw) -> Case:
    lambd, bias = d.of(0.5, 0.3), d.of(0.0, 0.2)
    given = {"lambd": lambd} if d.flag() or lambd != 0.5 else {}
    given |= {"bias": bias} if bias else {}
    return one(d, {"x": d.off(-lambd, lambd)(*d.shape(1, 3))}, opset=d.opset(18, 21, NEWEST), **given)


# Normalisation


@case("BatchNormalization")
def batch_norm(d: Draw) -> Case:
    shape = (d.whole(1, 3), channels := d.whole(1, 4), *d.shape(0, 3))
    values = {"x": d.any(*shape), "s": d.any(channels), "b": d.any(channels), "m": d.any(channels)}
    values["v"] = d.positive(channels)
    given = {"epsilon": 0.1} if d.flag() else {}
    function = lambda x, s, b, m, v: F.batch_norm(x, m, v, s, b, eps=given.get("epsilon", 1e-5))  # noqa: E731
    return one(d, values, function, fixed="m", free="sbv", by="torch", opset=d.opset(11, 14, 15, NEWEST), **given)


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

    given = {"num_groups": groups, "epsilon": epsilon, "shape": x.shape, "symbolic": ()}
    return one(d, values, function, free="sb", by="torch", opset=opset, **given)


def _scaled(d: Draw) -> tuple[np.ndarray, int]:
    shape = (*d.shape(0, 3), d.whole(4, 6))
    return d.any(*shape), d.axis(len(shape))


@case("LayerNormalization")
def layer_norm(d: Draw) -> Case:
    x, axis = _scaled(d)
    values = {"x": x, "s": d.any(*x.shape[axis:])} | ({"b": d.any(*x.shape[axis:])} if d.flag() else {})
    epsilon = d.of(1e-5, 0.1)
    function = lambda x, s, b=None: F.layer_norm(x, x.shape[axis:], s, b, epsilon)  # noqa: E731
    given = {} if axis == -1 and d.flag() else {"axis": axis}
    return one(d, values, function, free="sb", opset=d.opset(17, 21, NEWEST), epsilon=epsilon, **given)


@case("RMSNormalization", "SimplifiedLayerNormalization")
def rms_norm(d: Draw) -> Case:
    x, axis = _scaled(d)
    contributed = d.op == "SimplifiedLayerNormalization"  # an operator of the runtime's, that ONNX cannot infer
    axis = -1 if contributed else axis
    given = {"shape": x.shape, "symbolic": (), "opset": 18} if contributed else {"opset": d.opset(23, NEWEST)}
    epsilon = d.of(1e-5, 0.1)
    function = lambda x, s: F.rms_norm(x, x.shape[axis:], s, epsilon)  # noqa: E731
    values = {"x": x, "s": d.any(*x.shape[axis:])}
    return one(d, values, function, free="s", by="torch", axis=axis, epsilon=epsilon, **given)


@case("LpNormalization")
def lp_norm(d: Draw) -> Case:
    x, p = d.off(0)(*d.shape(1, 4)), d.of(1, 2)
    axis = d.axis(x.ndim)
    return one(d, {"x": x}, lambda x: F.normalize(x, p, axis), by="torch", opset=d.opset(11, 22), p=p, axis=axis)


@case("LRN")
def lrn(d: Draw) -> Case:
    """The runtime knows odd sizes of images only."""
    size, alpha, beta, bias = d.of(1, 3, 5), d.of(1e-4, 0.5), d.of(0.75, 0.6), d.of(1.0, 1.2)
    x = d.any(d.whole(1, 2), d.whole(1, 6), *_each(d, 2, 1, 3))
    given = {"size": size, "alpha": alpha, "beta": beta, "bias": bias}
    return one(d, {"x": x}, lambda x: F.local_response_norm(x, size, alpha, beta, bias), by="torch", **given)


@case("MeanVarianceNormalization")
def mean_variance(d: Draw) -> Case:
    """The standard adds 1e-9 to the deviation."""
    x = d.any(d.whole(2, 3), d.whole(1, 3), d.whole(4, 5), d.whole(1, 3))
    given = d.of({}, {"axes": [0, 2, 3]}, {"axes": [2, 3]}, {"axes": [0, 1, 2, 3]})
    axes = given.get("axes", [0, 2, 3])

    def function(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(axes, True)) / (x.var(axes, correction=0, keepdim=True).sqrt() + 1e-9)

    return one(d, {"x": x}, function, by="torch", opset=d.opset(13, 21, NEWEST), **given)


# Pooling


def _windows(d: Draw, kind: str) -> tuple[Values, dict[str, Any], bool]:
    """What a pooling takes, and whether torch has it.

    A last window that lies in the padding is left out, but ONNX infers a shape with it before version 22.
    """
    space = d.of(1, 2, 2, 3)
    kernel, strides = _each(d, space, 1, 3), _each(d, space, 1, 3)
    dilations = _each(d, space, 1, 2) if kind == "dilated" else [1] * space
    opset = d.of(*POOLINGS[kind])
    old = kind == "ceil" and opset < 22
    if old or kind == "auto_pad":  # the runtime refuses negative padding
        strides = [min(s, k) for s, k in zip(strides, kernel, strict=True)]
    reach = [t * (k - 1) + 1 for k, t in zip(kernel, dilations, strict=True)]
    x = d.distinct(d.whole(1, 2), d.whole(1, 2), *(r + d.whole(0, 3) for r in reach))
    given: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "opset": opset}
    if kind == "dilated":
        given["dilations"] = dilations
    if kind == "auto_pad":
        given["auto_pad"] = d.of("SAME_UPPER", "SAME_LOWER", "VALID")
        return {"x": x}, given, False
    pads = [0 if old else d.whole(0, k // 2) for k in kernel]
    other = pads if old or d.flag() else [d.whole(0, k - 1) for k in kernel]
    given |= {"pads": [*pads, *other]} if any((*pads, *other)) else {}
    given |= {"ceil_mode": 1} if kind == "ceil" else {}
    return {"x": x}, given, pads == other


POOLINGS = {"plain": (11, 22), "ceil": (11, 19, 22), "auto_pad": (11, 19, 22), "dilated": (19, 22)}


def _poolings(kind: str) -> None:
    @case("MaxPool", kind=kind)
    def max_pool(d: Draw) -> Case:
        values, given, has = _windows(d, kind)
        function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(given["kernel_shape"]) - 1]
        torchs = _torch_pool(function, given, dilation=given.get("dilations", 1)) if has else None
        return one(d, values, torchs, by="runtime", step=0.25, **given)

    @case("AveragePool", kind=kind)
    def average_pool(d: Draw) -> Case:
        values, given, has = _windows(d, kind)
        values, include = {"x": d.any(*values["x"].shape)}, d.whole(0, 1)
        function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(given["kernel_shape"]) - 1]
        torchs = _torch_pool(function, given, count_include_pad=bool(include)) if has and kind != "dilated" else None
        given |= {"count_include_pad": include}
        return one(d, values, torchs, by="runtime", step=1, **given)


def _torch_pool(function: Any, given: dict[str, Any], **more: Any) -> Callable[..., torch.Tensor]:
    kernel, strides, ceil = given["kernel_shape"], given["strides"], bool(given.get("ceil_mode"))
    pads = given.get("pads", [0] * 2 * len(kernel))[: len(kernel)]
    return lambda x: function(x, kernel, strides, pads, ceil_mode=ceil, **more)


for _kind in POOLINGS:
    _poolings(_kind)


@case("AveragePool", kind="blocks")
def blocks(d: Draw) -> Case:
    """Windows side by side."""
    kernel = _each(d, d.of(1, 2, 3), 1, 3)
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


# Reductions


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
    """The axes are an attribute up to version 11 of ReduceSum and 13 of the others, an input since."""
    shape, opset = d.shape(1, 4), d.opset(11, 13, 18, NEWEST)
    draws = {"ReduceMax": d.distinct, "ReduceMin": d.distinct, "ReduceLogSum": d.positive, "ReduceL1": d.off(0)}
    x = draws.get(d.op, d.any)(*shape)
    x = x / x.size if d.op in ("ReduceMax", "ReduceMin") else x
    axes = d.of(None, d.some(len(shape), 1))
    by_input = opset >= 18 or (opset == 13 and d.op == "ReduceSum")
    keep = d.flag()
    given: dict[str, Any] = {"keepdims": int(keep)} if not keep or d.flag() else {}
    values: Values = {"x": x}
    if by_input and axes is None and d.flag():
        axes = []
    if axes is not None:
        values |= {"a": ints(*axes)} if by_input else {}
        given |= {} if by_input else {"axes": axes}
    over = axes or list(range(x.ndim))
    return one(d, values, lambda x, a=None: REDUCTIONS[d.op](x, over, keep), fixed="a", opset=opset, **given)


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


@case("TopK")
def top_k(d: Draw) -> Case:
    x = d.distinct(*d.shape(1, 3))
    axis, largest = d.axis(x.ndim), d.flag()
    k = d.whole(1, x.shape[axis])
    given = {"axis": axis, "largest": int(largest), "sorted": 1, "outputs": 2}
    function = lambda x, k: x.topk(int(k), axis, largest).values  # noqa: E731
    return one(d, {"x": x, "k": ints(k)}, function, free="k", by="runtime", step=0.25, **given)


# Shapes


def _number(
    d: Draw, name: str, values: Values, attribute: str, given: list[int], since: int
) -> tuple[int, dict[str, Any]]:
    """A list of numbers, that is an attribute before a version of the operators and an input since."""
    opset = d.opset(11, 13, 18, 21, NEWEST)
    if opset < since:
        return opset, {attribute: given}
    values[name] = ints(*given)
    return opset, {}


@case("Reshape")
def reshape(d: Draw) -> Case:
    x = d.any(*d.shape(1, 4))
    to = d.of([-1], [0, -1], [x.size, 1], [1, -1, 1], list(x.shape[::-1]), [*x.shape[:-1], 1, -1])
    return one(d, {"x": x, "s": ints(*to)}, fixed="s")


@case("Flatten")
def flatten(d: Draw) -> Case:
    x = d.any(*d.shape(1, 4))
    axis = d.whole(-x.ndim, x.ndim)
    cut = axis % x.ndim if axis != x.ndim else axis
    return one(d, {"x": x}, lambda x: x.reshape(math.prod(x.shape[:cut]), -1), axis=axis)


@case("Squeeze")
def squeeze(d: Draw) -> Case:
    axes = d.some(rank := d.whole(1, 4), 1)
    values = {"x": d.any(*(1 if i in [a % rank for a in axes] else d.whole(2, 3) for i in range(rank)))}
    function = lambda x, a=None: x.squeeze(tuple(i for i, n in enumerate(x.shape) if n == 1))  # noqa: E731
    if d.flag():
        return one(d, values, function, symbolic=())
    opset, given = _number(d, "a", values, "axes", axes, 13)
    return one(d, values, function, fixed="a", by="torch", opset=opset, **given)


@case("Unsqueeze")
def unsqueeze(d: Draw) -> Case:
    rank = d.whole(1, 5)
    places = sorted(a % rank for a in d.some(rank, 1))
    values = {"x": d.any(*_each(d, rank - len(places), 1, 3))}
    opset, given = _number(d, "a", values, "axes", [a - rank if d.flag() else a for a in places], 13)

    def function(x: torch.Tensor, a: Any = None) -> torch.Tensor:
        for place in places:
            x = x.unsqueeze(place)
        return x

    return one(d, values, function, fixed="a", by="torch", opset=opset, **given)


@case("Transpose")
def transpose(d: Draw) -> Case:
    x = d.any(*d.shape(1, 5, 3))
    perm = d.data.draw(st.permutations(range(x.ndim)))
    given = {"perm": perm} if d.flag() else {}
    return one(d, {"x": x}, lambda x: x.permute(given.get("perm", list(range(x.ndim))[::-1])), **given)


@case("Expand")
def expand(d: Draw) -> Case:
    to = d.shape(1, 4)
    x = d.any(*d.broadcast(to))
    asked = ints(
        *(1 if i >= len(to) - x.ndim and d.flag() and n == x.shape[i - len(to)] else n for i, n in enumerate(to))
    )
    return one(d, {"x": x, "s": asked}, lambda x, s: x.expand(to), free="s")


@case("Tile")
def tile(d: Draw) -> Case:
    x = d.any(*d.shape(1, 4, 3))
    times = _each(d, x.ndim, 1, 3)
    return one(d, {"x": x, "t": ints(*times)}, lambda x, t: x.tile(times), free="t")


@case("Concat")
def concat(d: Draw) -> Case:
    shape = d.shape(1, 3)
    axis, values = d.axis(len(shape)), {}
    for name in "xbcd"[: d.whole(1, 4)]:
        values[name] = d.any(*(d.whole(1, 3) if i == axis % len(shape) else n for i, n in enumerate(shape)))
    function = lambda *xs: torch.cat(xs, axis)  # noqa: E731
    return one(d, values, function, at=list(values), free="bcd", axis=axis)


@case("Split")
def split(d: Draw) -> Case:
    """Of the first part; `test_autodiff` has gradients for several."""
    rank, count = d.whole(1, 3), d.whole(1, 3)
    axis, sizes = d.axis(rank), _each(d, count, 1, 3)
    equal = d.flag()
    sizes = sizes[:1] * count if equal else sizes
    values = {"x": d.any(*(sum(sizes) if i == axis % rank else d.whole(1, 3) for i in range(rank)))}
    if equal:
        opset = d.opset(11, 13, 18, NEWEST)
        given: dict[str, Any] = {"num_outputs": count} if opset >= 18 else {}
    else:
        opset, given = _number(d, "s", values, "split", sizes, 13)
    function = lambda x, s=None: x.split(sizes, axis)[0]  # noqa: E731
    return one(d, values, function, fixed="s", opset=opset, axis=axis, outputs=count, **given)


@case("Slice")
def slice_(d: Draw) -> Case:
    """Any ends, beyond the borders too, and any steps; fixed or worked out while the model runs."""
    x = d.any(*d.shape(1, 3, 7))
    axes = d.some(x.ndim, 1)
    steps = [d.of(1, 1, 2, 3, -1, -2) for _ in axes]
    starts, ends = [], []
    for axis, step in zip(axes, steps, strict=True):
        n = x.shape[axis]
        a, b = sorted((d.whole(0, n - 1), d.whole(0, n - 1)))
        first, last = (a, b + 1) if step > 0 else (b, a - 1)
        starts.append(first - n if d.flag() else first)
        ends.append(last - n if d.flag() or last < 0 else last if last < n else d.of(n, 2**31, n + 5))
    values = {"x": x, "s": ints(*starts), "e": ints(*ends), "a": ints(*axes), "t": ints(*steps)}
    if set(steps) == {1} and d.flag():
        del values["t"]
    if max(ends) < 2**31 and d.flag():
        values |= {name: v.astype(np.int32) for name, v in values.items() if name != "x"}
    where = tuple(slice(None) for _ in x.shape)

    def function(x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        for s, e, axis, step in zip(starts, ends, axes, steps, strict=True):
            picked = np.arange(x.shape[axis])[slice(s, e if e >= -x.shape[axis] else None, step)]
            x = x.index_select(axis, torch.from_numpy(picked.copy()))
        return x[where]

    return one(d, values, function, fixed="at", free="se")


@case("Gather")
def gather(d: Draw) -> Case:
    x = d.any(*d.shape(1, 4))
    axis = d.axis(x.ndim)
    indices = d.rng.integers(-x.shape[axis], x.shape[axis], d.of((), (1,), (3,), (2, 2), (1, 1)))

    def function(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        picked = x.index_select(axis, (i % x.shape[axis]).reshape(-1))
        return picked.reshape(x.shape[: axis % x.ndim] + i.shape + x.shape[axis % x.ndim + 1 :])

    return one(d, {"x": x, "i": np.asarray(indices, d.of(np.int64, np.int32))}, function, free="i", axis=axis)


@case("GatherElements")
def gather_elements(d: Draw) -> Case:
    x = d.any(*d.shape(1, 3))
    axis = d.axis(x.ndim)
    shape = [d.whole(1, 5) if k == axis % x.ndim else d.whole(1, n) for k, n in enumerate(x.shape)]
    indices = d.rng.integers(-x.shape[axis], x.shape[axis], shape)
    function = lambda x, i: x.gather(axis, i % x.shape[axis])  # noqa: E731
    return one(d, {"x": x, "i": indices}, function, free="i", by="torch", axis=axis)


@case("GatherND")
def gather_nd(d: Draw) -> Case:
    x = d.any(*d.shape(1, 4))
    opset = d.opset(11, 12, 13, NEWEST)
    lead = d.whole(0, x.ndim - 1) if opset > 11 else 0
    depth = d.whole(1, x.ndim - lead)
    shape = (*x.shape[:lead], *d.shape(0 if lead else 1, 2, 3))
    indices = np.stack([d.rng.integers(-n, n, shape) for n in x.shape[lead : lead + depth]], -1)
    given = {"batch_dims": lead} if lead else {}

    def function(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        grids = np.indices(shape)[:lead]
        return x[(*(torch.from_numpy(grid) for grid in grids), *i.unbind(-1))]

    return one(d, {"x": x, "i": indices}, function, free="i", by="torch", opset=opset, **given)


@case("ScatterElements")
def scatter_elements(d: Draw) -> Case:
    """Without a reduction no place may be written twice."""
    x = d.any(*d.shape(1, 3))
    axis, opset = d.axis(x.ndim), d.opset(11, 13, 16, 18, NEWEST)
    add = opset >= 16 and d.flag()
    n = x.shape[axis]
    shape = [d.whole(1, n + 2 * add) if k == axis % x.ndim else d.whole(1, m) for k, m in enumerate(x.shape)]
    indices = d.rng.integers(0, n, shape) if add else np.argsort(d.rng.random([n if k == axis % x.ndim else m for k, m in enumerate(shape)]), axis).take(range(shape[axis]), axis)  # fmt: skip
    indices = indices - n * d.rng.integers(0, 2, shape)
    given = {"reduction": "add" if add else "none"} if opset >= 16 else {}

    def function(x: torch.Tensor, i: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        i = i % n
        return x.scatter_add(axis, i, u) if add else x.scatter(axis, i, u)

    values = {"x": x, "i": indices, "u": d.any(*shape)}
    return one(d, values, function, at="xu", free="iu", by="torch", opset=opset, axis=axis, **given)


@case("ScatterND")
def scatter_nd(d: Draw) -> Case:
    x = d.any(*d.shape(1, 3))
    depth, opset = d.whole(1, x.ndim), d.opset(11, 13, 16, 18, NEWEST)
    add = opset >= 16 and d.flag()
    places = math.prod(x.shape[:depth])
    count = d.whole(1, places)
    picked = d.rng.integers(0, places, count) if add else d.rng.permutation(places)[:count]
    indices = np.stack(np.unravel_index(picked, x.shape[:depth]), -1).astype(np.int64)
    given = {"reduction": "add" if add else "none"} if opset >= 16 else {}
    function = lambda x, i, u: x.index_put(tuple(i.unbind(-1)), u, accumulate=add)  # noqa: E731
    values = {"x": x, "i": indices, "u": d.any(count, *x.shape[depth:])}
    return one(d, values, function, at="xu", free="iu", by="torch", opset=opset, **given)


@case("Pad")
def pad(d: Draw) -> Case:
    """Negative widths cut off. Wrapping is known since version 19."""
    opset = d.opset(11, 13, 18, 19, NEWEST)
    mode = d.of("constant", "reflect", "edge", *["wrap"] * (opset >= 19))
    x = d.any(*d.shape(1, 4))
    axes = d.some(x.ndim, 1) if opset >= 18 and d.flag() else list(range(x.ndim))
    low = (lambda n: -(n // 3)) if mode == "constant" else lambda n: 0
    high = {"reflect": lambda n: n - 1, "wrap": lambda n: n}.get(mode, lambda n: 3)
    widths = [[d.whole(low(x.shape[a]), high(x.shape[a])) for a in axes] for _ in range(2)]
    values: Values = {"x": x, "p": ints(*widths[0], *widths[1])}
    if len(axes) < x.ndim or (axes != list(range(x.ndim))):
        values |= {"_": 0, "a": ints(*axes)}
    elif d.flag():
        values["c"] = np.float32(1.5)
    return one(d, values, fixed="ac", free="p", by="runtime", step=1, opset=opset, mode=mode)


@case("Pad", kind="torch")
def pad_image(d: Draw) -> Case:
    mode, named = d.of(("constant", "constant"), ("reflect", "reflect"), ("edge", "replicate"), ("wrap", "circular"))
    x = d.any(d.whole(1, 2), d.whole(1, 2), *_each(d, 2, 2, 4))
    top, left, bottom, right = (d.whole(0, x.shape[2 + i % 2] - 1) for i in range(4))
    values = {"x": x, "p": ints(0, 0, top, left, 0, 0, bottom, right)}
    function = lambda x, p: F.pad(x, (left, right, top, bottom), mode=named)  # noqa: E731
    return one(d, values, function, free="p", by="torch", opset=d.opset(19, NEWEST), mode=mode)


@case("DepthToSpace", "SpaceToDepth")
def depth(d: Draw) -> Case:
    block, channels, height, width = d.whole(1, 3), d.whole(1, 2), d.whole(1, 3), d.whole(1, 3)
    if d.op == "SpaceToDepth":
        return one(d, {"x": d.any(2, channels, height * block, width * block)}, blocksize=block)
    mode = d.of("DCR", "CRD")
    x = d.any(2, channels * block**2, height, width)
    function = (lambda x: F.pixel_shuffle(x, block)) if mode == "CRD" else None
    return one(d, {"x": x}, function, opset=d.opset(11, 13, 21, NEWEST), blocksize=block, mode=mode)


@case("Trilu")
def trilu(d: Draw) -> Case:
    x, upper, k = d.any(*d.shape(2, 4)), d.whole(0, 1), d.of(None, -2, -1, 0, 1, 2)
    function = lambda x, k=0: (torch.triu if upper else torch.tril)(x, int(k))  # noqa: E731
    values = {"x": x} | ({} if k is None else {"k": np.array(k, np.int64)})
    return one(d, values, function, free="k", upper=upper)


# Resizing


def _resized(d: Draw, x: np.ndarray, opset: int, sizes: list[int] | None, scales: list[float] | None) -> Values:
    """Version 11 wants a region and scales, even empty ones."""
    empty = np.zeros(0, np.float32)
    values: Values = {"x": x, "roi" if opset < 13 else "_": empty}
    if scales is not None:
        return values | {"scales": np.array(scales, np.float32)}
    return values | {"scales" if opset < 13 else "_2": empty, "sizes": ints(*sizes)}


@case("Resize")
def resize(d: Draw) -> Case:
    """Every kind that the runtime has, by scales or sizes, larger and smaller."""
    opset = d.opset(11, 13, 18, 19, NEWEST)
    mode = d.of("nearest", "linear", "cubic")
    how = d.of(
        "half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", *["half_pixel_symmetric"] * (opset >= 19)
    )
    given: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": how}
    if mode == "nearest":
        given["nearest_mode"] = d.of("round_prefer_floor", "floor", "ceil", "round_prefer_ceil")
    if mode == "cubic":
        given |= {"exclude_outside": d.whole(0, 1), "cubic_coeff_a": d.of(-0.75, -0.5)}
    x = d.any(d.whole(1, 2), d.whole(1, 2), *_each(d, 2, 2, 5))
    if by_scale := d.flag():
        factors: list[Any] = [d.of(1.0, 2.0, 3.0, 1.7, 0.6, 0.5) for _ in range(2)]
    else:
        factors = _each(d, 2, 1, 8)
    if opset >= 18 and d.flag():
        given["axes"] = [2, 3]
    else:
        factors = [*((1.0, 1.0) if by_scale else x.shape[:2]), *factors]
    values = _resized(d, x, opset, None if by_scale else factors, factors if by_scale else None)
    free = ("scales",) if by_scale else ("sizes",)
    fixed = [name for name in values if name not in ("x", *free) and name[0] != "_"]
    return one(d, values, fixed=fixed, free=free, by="runtime", step=1, opset=opset, **given)


@case("Resize", kind="antialias")
def resize_antialias(d: Draw) -> Case:
    x = d.any(1, d.whole(1, 2), *_each(d, 2, 3, 6))
    values = _resized(d, x, 18, [*x.shape[:2], *_each(d, 2, 2, 7)], None)
    mode = d.of("linear", "cubic")
    return one(d, values, fixed=["sizes"], by="runtime", step=1, opset=d.opset(18, 19), mode=mode, antialias=1)


TORCH_RESIZES = {
    "nearest": ({"mode": "nearest"}, {"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}),
    "bilinear": ({"mode": "bilinear"}, {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}),
    "corners": (
        {"mode": "bilinear", "align_corners": True},
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
    "bicubic": ({"mode": "bicubic"}, {"mode": "cubic", "coordinate_transformation_mode": "half_pixel"}),
}


@case("Resize", kind="torch")
def resize_torch(d: Draw) -> Case:
    """Torch has no other nearest than asymmetric, rounded down."""
    theirs, given = TORCH_RESIZES[d.of(*TORCH_RESIZES)]
    x = d.any(d.whole(1, 2), d.whole(1, 2), *_each(d, 2, 2, 5))
    sizes = _each(d, 2, 2, 8)
    opset = d.opset(11, 13, 18, 19, NEWEST)
    values = _resized(d, x, opset, [*x.shape[:2], *sizes], None)
    fixed = [name for name in values if name != "x" and name[0] != "_"]
    function = lambda x, *_: F.interpolate(x, sizes, **theirs)  # noqa: E731
    return one(d, values, function, fixed=fixed, by="torch", opset=opset, **given)


@case("Resize", kind="blocks")
def resize_blocks(d: Draw) -> Case:
    """Nearest by whole factors, as decoders use it, along any number of axes."""
    x = d.any(1, 2, *_each(d, d.of(1, 2, 3), 1, 3))
    factors = [d.whole(1, 3) for _ in x.shape[2:]]
    values = _resized(d, x, 18, None, [1.0, 1.0, *map(float, factors)])
    how = d.of(("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("asymmetric", "round_prefer_floor"))
    given = dict(zip(("coordinate_transformation_mode", "nearest_mode"), how, strict=True))
    return one(d, values, fixed=["scales"], by="runtime", step=1, opset=d.opset(18, 19, NEWEST), **given)


# The tests


def tensors(case: Case) -> dict[str, torch.Tensor]:
    """The values, in double precision."""
    found = {name: np.asarray(v) for name, v in case.values.items() if not name.startswith("_")}
    return {n: torch.from_numpy(v.astype(np.float64) if v.dtype.kind == "f" else v) for n, v in found.items()}


def by_torch(case: Case) -> Function:
    assert case.torch is not None
    given = tensors(case)
    return lambda x: case.torch(*(given | {case.at: torch.from_numpy(np.asarray(x))}).values()).numpy()  # type: ignore[misc]


def autograd(case: Case, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The output and the gradient, by torch."""
    assert case.torch is not None
    given = tensors(case)
    x = given[case.at].requires_grad_()
    y = case.torch(*given.values())
    (gradient,) = torch.autograd.grad(y, x, torch.from_numpy(np.asarray(v, np.float64)).reshape(y.shape))
    return y.detach().numpy(), gradient.numpy()


def differences(case: Case, feeds: Values) -> Function:
    if case.by == "torch":
        return by_torch(case)
    return {"reference": by_reference, "runtime": by_runtime}[case.by](case.model, feeds, case.at)


def judged(case: Case) -> float:
    """The worst relative error; fails where it is too large."""
    feeds = {v.name: np.asarray(case.values[v.name]) for v in case.model.graph.input}
    y, v, g = by_graph(case.model, feeds, at=case.at)
    x = feeds[case.at]
    assert g.shape == x.shape
    assert g.dtype == x.dtype

    f = differences(case, feeds)
    assert f(x.astype(np.float64)).shape == y.shape
    assert error(y, f(x.astype(np.float64))) < case.tolerance * 10
    rng = np.random.default_rng(1)
    directions = [rng.choice([-1, 1], x.shape) * rng.integers(32, 97, x.shape) / 64 for _ in range(4)]
    expected = slopes(f, x, v, directions, case.step)
    found = np.array([float((g.astype(np.float64) * direction).sum()) for direction in directions])
    wrong = [np.abs(found - expected).max() / max(np.abs(g).max(initial=0), 1e-3)]
    assert wrong[0] < case.tolerance, f"{found} is not what differences give, {expected}"

    if case.torch is not None:
        theirs, gradient = autograd(case, v)
        assert error(y, theirs) < case.tolerance * 10
        wrong.append(error(g, gradient))
        assert wrong[1] < case.tolerance, f"{g} is not what torch gives, {gradient}"
    return max(wrong)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """For tensors this small, more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", CASES)
@SETTINGS
@given(data=st.data())
def test_gradient(name: str, data: st.DataObject) -> None:
    op, build = CASES[name]
    case = build(Draw(data, op))
    assert op in {(node.domain, node.op_type) for node in case.model.graph.node}
    judged(case)


def test_every_rule_has_cases() -> None:
    covered = {op for op, _ in CASES.values()}
    assert covered - INLINED == set(RULES)
    assert covered >= INLINED
    assert not INLINED & set(RULES)
    assert {("", op) for op in PROMISED} <= covered


DEFAULTS = {"opset": 18}
HALF: dict[str, tuple[list[tuple[int, ...]], dict[str, Any], Callable[..., torch.Tensor]]] = {
    "Conv": (
        [(1, 2, 7, 6), (4, 2, 3, 3), (4,)],
        {"pads": [1, 1, 1, 1], "strides": [2, 2]},
        lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1),
    ),
    "Gemm": ([(3, 5), (4, 5), (4,)], {"transB": 1}, F.linear),
    "LayerNormalization": ([(2, 3, 8), (8,), (8,)], {}, lambda x, s, b: F.layer_norm(x, (8,), s, b)),
    "GroupNormalization": (
        [(2, 4, 5), (4,), (4,)],
        {"num_groups": 2, "opset": 21, "shape": (2, 4, 5)},
        lambda x, s, b: F.group_norm(x, 2, s, b),
    ),
    "Softmax": ([(3, 6)], {"axis": 1}, lambda x: F.softmax(x, 1)),
}


@pytest.mark.parametrize("op", HALF)
def test_float16(op: str) -> None:
    shapes, given, function = HALF[op]
    rng = np.random.default_rng(2)
    values = {n: rng.normal(size=shape).astype(np.float16) for n, shape in zip("xwb", shapes, strict=False)}
    model = single(op, values, fixed=[name for name in values if name != "x"], **DEFAULTS | given)
    _, v, g = by_graph(model, {"x": values["x"]})
    assert g.dtype == np.float16
    assert error(g, autograd(Case(model, values, torch=function), v)[1]) < 5e-3


EDGES = {
    "Relu at 0": ("Relu", {"x": [-1.0, 0, 1]}, {}, [0, 0, 1]),
    "LeakyRelu at 0": ("LeakyRelu", {"x": [-1.0, 0, 1]}, {"alpha": 0.5}, [0.5, 0.5, 1]),
    "Abs at 0": ("Abs", {"x": [-1.0, 0, 1]}, {}, [-1, 0, 1]),
    "Clip at its bounds": ("Clip", {"x": [-1.0, 0, 3, 6, 7], "l": 0.0, "h": 6.0}, {}, [0, 0, 1, 0, 0]),
    "Max of equals": ("Max", {"x": [1.0, 2, 3], "b": [1.0, 1, 4]}, {}, [0.5, 1, 0]),
    "ReduceMax of equals": ("ReduceMax", {"x": [1.0, 3, 3, 0]}, {}, [0, 0.5, 0.5, 0]),
    "ReduceMin of equals": ("ReduceMin", {"x": [1.0, 1, 3, 1]}, {"keepdims": 0}, [1 / 3, 1 / 3, 0, 1 / 3]),
    "GlobalMaxPool of equals": ("GlobalMaxPool", {"x": [[[1.0, 3, 3, 0]]]}, {}, [[[0, 0.5, 0.5, 0]]]),
    "MaxPool of equals": ("MaxPool", {"x": [[[3.0, 3, 1]]]}, {"kernel_shape": [3]}, [[[1, 0, 0]]]),
    "the square at 0": ("Pow", {"x": [0.0, 2], "b": 2.0}, {}, [0, 4]),
    "the first power at 0": ("Pow", {"x": [0.0, 2], "b": 1.0}, {}, [1, 1]),
    "the power 0": ("Pow", {"x": [0.0, 2], "b": 0.0}, {}, [0, 0]),
    "ReduceL2 at 0": ("ReduceL2", {"x": [0.0, 0]}, {"keepdims": 0}, [0, 0]),
    "LpNormalization at 0": ("LpNormalization", {"x": [[0.0, 0], [3, 4]]}, {}, [[0, 0], [0.032, -0.024]]),
    "Softplus far out": ("Softplus", {"x": [-100.0, 100]}, {}, [0, 1]),
    "Sigmoid far out": ("Sigmoid", {"x": [-200.0, 200]}, {}, [0, 0]),
    "Mish far out": ("Mish", {"x": [-200.0, 100]}, {}, [0, 1]),
    "Gelu far out": ("Gelu", {"x": [-50.0, 50]}, {"opset": 20}, [0, 1]),
    "Softmax far out": ("Softmax", {"x": [1000.0, 0, -1000]}, {}, [0, 0, 0]),
}


@pytest.mark.parametrize("name", EDGES)
def test_at_kinks_ties_and_far_out(name: str) -> None:
    """Values worked out by hand, of the sum of the output."""
    op, given, attributes, expected = EDGES[name]
    values = {n: np.asarray(v, np.float32) for n, v in given.items()}
    model = single(op, values, fixed=[n for n in values if n != "x"], **DEFAULTS | attributes)
    y = session(model).run(["y"], {"x": values["x"]})[0]
    np.testing.assert_allclose(by_graph(model, {"x": values["x"]}, np.ones_like(y))[2], expected, atol=1e-6)
