"""Shared parts of the tests of ONNX rules.

A case is one node, drawn by hypothesis, and the source of its true gradient.
`tests/backends/onnx/rules/test_pooling.py` contains the cases of `backends/xcam_onnx/autodiff/rules/pooling.py`, and so on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnx_gradients import NEWEST, Function, by_graph, by_reference, by_runtime, error, session, single, slopes
from xcam_onnx.autodiff import RULES, rules
from xcam_onnx.graph import inferred

SETTINGS = settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    database=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
TOLERANCE = 1e-4

SINCE: dict[str, int] = {}
"""The first version of the operator set that has an operator."""
for _schema in onnx.defs.get_all_schemas_with_history():
    SINCE[_schema.name] = min(_schema.since_version, SINCE.get(_schema.name, NEWEST))

Values = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A model, and the source of its correct gradient."""

    model: onnx.ModelProto
    values: Values
    """Values of all inputs, including initialisers."""
    at: str = "x"
    torch: Callable[..., torch.Tensor] | None = None
    """The same operator in torch, called with the values in order."""
    by: str = "reference"
    """The implementation that is differentiated: ONNX's reference, torch where the reference is wrong or lacks the operator,
    or ONNX Runtime where the operator is linear between points `step` apart."""
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
        """Draw different numbers below n, some counted from the end."""
        numbers = self.data.draw(st.lists(st.integers(0, n - 1), min_size=least, max_size=n, unique=True))
        return [k - n if self.flag() else k for k in numbers]

    def each(self, n: int, low: int, high: int) -> list[int]:
        return [self.whole(low, high) for _ in range(n)]

    def axis(self, rank: int) -> int:
        return self.whole(-rank, rank - 1)

    def shape(self, low: int, high: int, side: int = 4) -> tuple[int, ...]:
        return tuple(self.whole(1, side) for _ in range(self.whole(low, high)))

    def opset(self, *among: int) -> int:
        """Draw a version that has the operator; versions differ in definition or in the runtime's implementation."""
        return self.of(*(v for v in among or (11, 13, 18, 21, NEWEST) if v >= SINCE.get(self.op, 1)))

    def any(self, *shape: int) -> np.ndarray:
        return np.asarray(self.rng.normal(size=shape), np.float32)

    def positive(self, *shape: int) -> np.ndarray:
        return np.asarray(self.rng.uniform(0.5, 2, shape), np.float32)

    def inside(self, *shape: int) -> np.ndarray:
        return np.asarray(self.rng.uniform(-0.9, 0.9, shape), np.float32)

    def off(self, *kinks: float) -> Callable[..., np.ndarray]:
        """Draw values that are at least 0.05 away from the kinks."""

        def drawn(*shape: int) -> np.ndarray:
            x = self.rng.normal(size=shape) * 1.5
            for kink in kinks:
                x = np.where(np.abs(x - kink) < 0.05, x + 0.1, x)
            return np.asarray(x, np.float32)

        return drawn

    def distinct(self, *shape: int) -> np.ndarray:
        """Draw distinct integers around zero."""
        n = math.prod(shape)
        return (self.rng.permutation(n) - n // 2).reshape(shape).astype(np.float32)

    def broadcast(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Draw a shape that can be broadcast to this one."""
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
    """Draw a case of one node. `fixed` inputs are always initialisers, `free` ones sometimes."""
    where = d.of(*at)
    fixed = [name for name in values if name in fixed or (name in free and name != where and d.flag())]
    live = [name for name in values if name not in fixed and not name.startswith("_")]
    named = d.of((), ("x",), [name for name in live if name in (*at, "x")])
    rest = {"opset": opset or d.opset(), "domain": d.domain, "symbolic": named} | rest
    model = single(d.op, values, fixed=fixed, **rest)
    if not model.graph.output[0].type.tensor_type.HasField("shape"):  # exporters declare it
        y = session(model).run(["y"], {name: np.asarray(values[name]) for name in live})[0]
        model = single(d.op, values, fixed=fixed, shape=[f"y{i}" for i in range(y.ndim)], **rest)
    return Case(model, values, where, torch, by, step, tolerance)


class Cases(dict[str, tuple[tuple[str, str], Callable[[Draw], Case]]]):
    """The cases of one family of rules, by name: the operator, and the function that draws an example."""

    def __call__(self, *ops: str, kind: str = "", domain: str = "") -> Callable[[Any], Any]:
        """Register cases for operators, one set for each; `kind` distinguishes several sets of one operator."""

        def register(build: Any) -> Any:
            for op in ops:
                self[f"{domain and domain + '.'}{op}{kind and '-' + kind}"] = (domain, op), build
            return build

        return register

    @property
    def operators(self) -> set[tuple[str, str]]:
        return {op for op, _ in self.values()}


def tensors(case: Case) -> dict[str, torch.Tensor]:
    """Return the values in double precision."""
    arrays = {name: np.asarray(v) for name, v in case.values.items() if not name.startswith("_")}
    return {n: torch.from_numpy(v.astype(np.float64) if v.dtype.kind == "f" else v) for n, v in arrays.items()}


def by_torch(case: Case) -> Function:
    assert case.torch is not None
    inputs = tensors(case)
    return lambda x: case.torch(*(inputs | {case.at: torch.from_numpy(np.asarray(x))}).values()).numpy()  # type: ignore[misc]


def autograd(case: Case, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the output and the gradient, by torch."""
    assert case.torch is not None
    inputs = tensors(case)
    x = inputs[case.at].requires_grad_()
    y = case.torch(*inputs.values())
    (gradient,) = torch.autograd.grad(y, x, torch.from_numpy(np.asarray(v, np.float64)).reshape(y.shape))
    return y.detach().numpy(), gradient.numpy()


def differences(case: Case, feeds: Values) -> Function:
    if case.by == "torch":
        return by_torch(case)
    return {"reference": by_reference, "runtime": by_runtime}[case.by](case.model, feeds, case.at)


def judged(case: Case) -> float:
    """Return the largest relative error; fail where it is too large."""
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
    actual = np.array([float((g.astype(np.float64) * direction).sum()) for direction in directions])
    wrong = [np.abs(actual - expected).max() / max(np.abs(g).max(initial=0), 1e-3)]
    assert wrong[0] < case.tolerance, f"differences give {expected}, not {actual}"

    if case.torch is not None:
        theirs, gradient = autograd(case, v)
        assert error(y, theirs) < case.tolerance * 10
        wrong.append(error(g, gradient))
        assert wrong[1] < case.tolerance, f"torch gives {gradient}, not {g}"
    return max(wrong)


def gradients(cases: Cases) -> Callable[..., None]:
    """Return the test of all cases."""

    @pytest.mark.parametrize("name", cases)
    @SETTINGS
    @given(data=st.data())
    def test_gradient(name: str, data: st.DataObject) -> None:
        op, build = cases[name]
        case = build(Draw(data, op))
        assert op in {(node.domain, node.op_type) for node in case.model.graph.node}
        judged(case)

    return test_gradient


def rules_of(family: str) -> set[tuple[str, str]]:
    """Return the operators whose rules are in the module `family` of `xcam_onnx.autodiff.rules`."""
    return {op for op, entry in RULES.items() if entry.rule.__module__ == f"{rules.__name__}.{family}"}


Half = Mapping[str, tuple[list[tuple[int, ...]], dict[str, Any], Callable[..., torch.Tensor]]]
"""By operator: the shapes of its inputs, its attributes, and its equivalent in torch."""


def in_float16(half: Half) -> Callable[[str], None]:
    """Return the test that gradients in half precision are correct and have that type."""

    @pytest.mark.parametrize("op", half)
    def test_float16(op: str) -> None:
        shapes, attributes, function = half[op]
        rng = np.random.default_rng(2)
        values = {n: rng.normal(size=shape).astype(np.float16) for n, shape in zip("xwb", shapes, strict=False)}
        model = single(op, values, fixed=[name for name in values if name != "x"], **{"opset": 18} | attributes)
        _, v, g = by_graph(model, {"x": values["x"]})
        assert g.dtype == np.float16
        assert error(g, autograd(Case(model, values, torch=function), v)[1]) < 5e-3

    return test_float16


Edges = Mapping[str, tuple[str, dict[str, Any], dict[str, Any], Any]]
"""By name: operator, inputs, attributes, and the gradient of the output's sum, computed by hand."""


def at_edges(edges: Edges) -> Callable[[str], None]:
    """Return the test of kinks, ties, and extreme values."""

    @pytest.mark.parametrize("name", edges)
    def test_at_kinks_ties_and_far_out(name: str) -> None:
        """Compare the gradient of the output's sum with values computed by hand."""
        op, inputs, attributes, expected = edges[name]
        values = {n: np.asarray(v, np.float32) for n, v in inputs.items()}
        model = single(op, values, fixed=[n for n in values if n != "x"], **{"opset": 18} | attributes)
        y = session(model).run(["y"], {"x": values["x"]})[0]
        np.testing.assert_allclose(by_graph(model, {"x": values["x"]}, np.ones_like(y))[2], expected, atol=1e-6)

    return test_at_kinks_ties_and_far_out


PRECISIONS = {"float16": np.dtype(np.float16), "float64": np.dtype(np.float64)}


def in_other_precisions(cases: Cases) -> Callable[..., None]:
    """Return the test that gradients run in every precision in which ONNX Runtime's CPU provider runs the operator."""

    @pytest.mark.parametrize("precision", PRECISIONS)
    @pytest.mark.parametrize("name", cases)
    @settings(SETTINGS, max_examples=3)
    @given(data=st.data())
    def test_other_precisions(name: str, precision: str, data: st.DataObject) -> None:
        op, build = cases[name]
        case, dtype = build(Draw(data, op)), PRECISIONS[precision]
        model = _converted(case.model, dtype)
        listed = {value.name for value in model.graph.input}
        feeds = {n: v for n, v in ((n, _value(n, v, dtype)) for n, v in case.values.items()) if n in listed}
        try:
            session(model).run(None, feeds)
        except Exception:  # the runtime lacks the operator
            return
        _, _, g = by_graph(model, feeds, at=case.at)
        assert g.dtype == dtype
        assert g.shape == feeds[case.at].shape

    return test_other_precisions


def _value(name: str, value: Any, dtype: np.dtype[Any]) -> np.ndarray:
    """Convert values in float32; the scales of a Resize keep their type."""
    array = np.asarray(value)
    return array.astype(dtype) if array.dtype == np.float32 and name != "scales" else array


def _converted(model: onnx.ModelProto, dtype: np.dtype[Any]) -> onnx.ModelProto:
    """Return a model in another precision."""
    result, kind = onnx.ModelProto(), helper.np_dtype_to_tensor_dtype(dtype)
    result.CopyFrom(model)
    del result.graph.value_info[:]
    for value in (*result.graph.input, *result.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT and value.name != "scales":
            value.type.tensor_type.elem_type = kind
    for entry in (entry for node in result.graph.node for entry in node.attribute):
        if entry.name == "to" and entry.i == TensorProto.FLOAT:
            entry.i = kind
    for tensor in result.graph.initializer:
        array = _value(tensor.name, numpy_helper.to_array(tensor), dtype)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return inferred(result)
