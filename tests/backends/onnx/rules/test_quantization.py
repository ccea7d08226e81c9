"""Quantisation: the rules of `xcam_onnx.autodiff.rules.quantization`, against torch.fake_quantize."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnx_gradients import by_graph, inferred, session, written
from onnx_rules import SETTINGS, Case, Cases, Draw, gradients, in_other_precisions, rules_of

case = Cases()


@case("QuantizeLinear", "DequantizeLinear")
def quantised(d: Draw) -> Case:
    """Use values on the grid of the quantised numbers, which rounding does not change: the gradient is the identity's."""
    shape = d.shape(1, 4)
    axis = d.axis(len(shape))
    channels = d.of((), (shape[axis],))
    scale = d.of(0.5, 0.25) * np.ones(channels, np.float32)
    zero = np.asarray(d.rng.integers(-3, 3, channels) + d.of(0, 8), np.int8 if (signed := d.flag()) else np.uint8)
    zero = zero if signed else np.maximum(zero, 5).astype(np.uint8) % 32
    along = [-1 if i == axis % len(shape) else 1 for i in range(len(shape))]
    x = d.rng.integers(-4, 20, shape) * (scale.reshape(along) if channels else scale)
    sizes = ", ".join(map(str, shape))
    options = f"<axis={axis}>"
    text = (
        f"(float[{sizes}] x) => (float[{sizes}] y) "
        f"{{ q = QuantizeLinear{options}(x, s, z) y = DequantizeLinear{options}(q, s, z) }}"
    )
    model = written(text, d.opset(13, 19, 21, 25), s=np.asarray(scale), z=zero)
    return Case(model, {"x": np.asarray(x, np.float32)}, torch=lambda x: x, by="torch")


test_gradient = gradients(case)
test_other_precisions = in_other_precisions(case)

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(2, 3, 5)) * 40).astype(np.float32)
V = RNG.normal(size=X.shape).astype(np.float32)


def pair(scale: Any, zero: Any, x: np.ndarray = X, domain: str = "", **attributes: Any) -> onnx.ModelProto:
    """Return a model that quantises its input and converts it back."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], domain=domain, **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], domain=domain, **attributes),
    ]
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    values = [helper.make_tensor_value_info(name, kind, x.shape) for name in "xy"]
    weights = [numpy_helper.from_array(np.asarray(scale, x.dtype), "s"), numpy_helper.from_array(zero, "z")]
    graph = helper.make_graph(nodes, "pair", values[:1], values[1:], weights)
    opsets = [helper.make_opsetid("", 21), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    if domain:
        kind = helper.np_dtype_to_tensor_dtype(zero.dtype)
        model.graph.value_info.append(helper.make_tensor_value_info("q", kind, x.shape))
    return inferred(model)


def fake(function: Any, *arguments: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the value and the gradient of a torch.fake_quantize function."""
    x = torch.from_numpy(X).requires_grad_()
    y = function(x, *arguments)
    y.backward(torch.from_numpy(V))
    assert x.grad is not None
    return y.detach().numpy(), x.grad.numpy()


@pytest.mark.parametrize(
    ("dtype", "zero", "scale"),
    [
        (np.uint8, 0, 0.25),
        (np.uint8, 128, 0.4),
        (np.int8, -128, 0.25),
        (np.int8, 5, 0.3),
        (np.uint16, 30000, 0.001),
        (np.int16, -32768, 0.001),
        (ml_dtypes.uint4, 3, 4.0),
        (ml_dtypes.int4, 0, 5.0),
    ],
)
def test_one_scale(dtype: Any, zero: int, scale: float) -> None:
    limits = ml_dtypes.iinfo(dtype)
    value, gradient = fake(torch.fake_quantize_per_tensor_affine, scale, zero, int(limits.min), int(limits.max))
    clipped = gradient == 0
    assert 0.05 < clipped.mean() < 0.95
    y, _, g = by_graph(pair(scale, np.asarray(zero, dtype)), {"x": X}, V)
    np.testing.assert_allclose(y, value, atol=1e-4)
    np.testing.assert_array_equal(g, gradient)


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_scale_for_each_channel(axis: int, domain: str) -> None:
    n = X.shape[axis]
    scale, zero = np.linspace(0.1, 0.6, n, dtype=np.float32), np.arange(-n, 0).astype(np.int8) * 20
    arguments = torch.from_numpy(scale), torch.from_numpy(zero.astype(np.int32)), axis % 3, -128, 127
    value, gradient = fake(torch.fake_quantize_per_channel_affine, *arguments)
    assert 0.1 < (gradient == 0).mean() < 0.95
    y, _, g = by_graph(pair(scale, zero, axis=axis, domain=domain), {"x": X}, V)
    np.testing.assert_allclose(y, value, atol=1e-4)
    np.testing.assert_array_equal(g, gradient)


def test_a_scale_for_each_block() -> None:
    scale = RNG.uniform(0.1, 0.5, (2, 3, 3)).astype(np.float32)
    zero = RNG.integers(-128, 100, scale.shape).astype(np.int8)
    wide, shift = (np.repeat(value, 2, axis=2)[..., :5].astype(np.float64) for value in (scale, zero))
    steps = np.round(X / wide) + shift
    model = pair(scale, zero, axis=2, block_size=2)
    y, _, g = by_graph(model, {"x": X}, V)
    np.testing.assert_allclose(y, (np.clip(steps, -128, 127) - shift) * wide, rtol=1e-5)
    np.testing.assert_array_equal(g, V * ((steps >= -128) & (steps <= 127)))


def test_floating_point_types_clip_at_their_largest_value() -> None:
    y, _, g = by_graph(pair(0.1, np.asarray(0, ml_dtypes.float8_e4m3fn)), {"x": X}, V)
    np.testing.assert_allclose(np.abs(y).max(), 44.8, rtol=1e-6)
    np.testing.assert_array_equal(g, V * (np.abs(X / np.float32(0.1)) <= 448))


def test_without_a_zero_point_and_in_half_precision() -> None:
    text = "(float16[2, 3, 5] x) => (float16[2, 3, 5] y) { q = QuantizeLinear(x, s) y = DequantizeLinear(q, s) }"
    x = X.astype(np.float16)
    _, _, g = by_graph(written(text, s=np.float16(0.25)), {"x": x}, V.astype(np.float16))
    steps = np.round(x / np.float16(0.25))
    np.testing.assert_array_equal(g, V.astype(np.float16) * ((steps >= 0) & (steps <= 255)))


def test_a_scale_that_is_computed_counts_as_a_constant() -> None:
    """DynamicQuantizeLinear chooses the scale so that no value is clipped."""
    text = """(float[2, 3, 5] x) => (float[2, 3, 5] y) {
        q, s, z = DynamicQuantizeLinear(x)
        y = DequantizeLinear(q, s, z) }"""
    y, _, g = by_graph(written(text), {"x": X}, V)
    np.testing.assert_allclose(y, X, atol=1)
    np.testing.assert_array_equal(g, V)


KINDS = [np.uint8, np.int8, np.uint16, np.int16, ml_dtypes.uint4, ml_dtypes.int4, ml_dtypes.uint2, ml_dtypes.int2]
"""The types of quantised values."""
MANUAL = {
    "operator": "y = DequantizeLinear(q, t, z)",
    "cast": "f = Cast<to=1>(q) o = Cast<to=1>(z) d = Sub(f, o) y = Mul(d, t)",
    "integers": "f = Cast<to=6>(q) o = Cast<to=6>(z) d = Sub(f, o) e = Cast<to=1>(d) y = Mul(e, t)",
    "moved": "f = Concat<axis=1>(q) y = DequantizeLinear(f, t, z)",
}
"""Ways to convert integers back; `t` is another scale than that of the quantisation."""


def oldest(kind: Any, block: int) -> int:
    """Return the first operator set that quantises to a type."""
    return 25 if kind in KINDS[6:] else 21 if block or kind not in KINDS[:2] else 13


@pytest.mark.parametrize("kind", KINDS)
@SETTINGS
@given(data=st.data())
def test_central_differences(kind: Any, data: st.DataObject) -> None:
    """Compare with differences of one step of each value's own scale, away from the limits; outside them it is zero."""
    d = Draw(data, ("", "QuantizeLinear"))
    rows, columns = d.whole(1, 4), d.whole(1, 7)
    axis, block = d.of((None, 0), (0, 0), (1, 0), (1, 3), (0, 2))
    way = d.of(*MANUAL) if axis is None and kind in KINDS[:4] else "operator"
    sizes = (rows, columns)
    several: tuple[int, ...] = () if axis is None else (sizes[axis],)
    if block:
        several = tuple(-(-n // block) if k == axis else n for k, n in enumerate(sizes))
    assume(not block or np.prod(several) > 1)  # ONNX Runtime takes a single scale for that of all values
    limits = ml_dtypes.iinfo(kind)
    low, high = int(limits.min), int(limits.max)
    scale, other = (d.rng.uniform(0.1, 2, several).astype(np.float32) for _ in range(2))
    zero = d.rng.integers(low, high + 1, several).astype(kind)

    def wide(value: np.ndarray) -> np.ndarray:
        if block:
            return np.take(np.repeat(value, block, axis), np.arange(sizes[axis or 0]), axis)
        return np.broadcast_to(value if axis is None else np.expand_dims(value, 1 - axis), sizes)

    steps = d.rng.integers(low - (high - low) // 2 - 2, high + (high - low) // 2 + 3, sizes)
    fractions = d.rng.uniform(-0.3, 0.3, sizes)
    x = ((steps - wide(zero).astype(float) + fractions) * wide(scale)).astype(np.float32)
    options = "" if axis is None else f"<axis={axis}{f', block_size={block}' if block else ''}>"
    back = MANUAL[way].replace("DequantizeLinear(q", f"DequantizeLinear{options}(q")
    text = f"(float[{rows}, {columns}] x) => (float[{rows}, {columns}] y) {{ q = QuantizeLinear{options}(x, s, z) {back} }}"
    opset = d.of(*(n for n in (13, 19, 21, 23, 25) if n >= oldest(kind, block)))
    model = written(text, opset, s=np.asarray(scale), t=np.asarray(other), z=np.asarray(zero))
    _, v, g = by_graph(model, {"x": x})

    run = session(model)
    up, down = (run.run(["y"], {"x": x + sign * wide(scale)})[0] for sign in (1, -1))
    inside, outside = (steps > low) & (steps < high), (steps < low - 1) | (steps > high + 1)
    differences = v * (up.astype(np.float64) - down) / (2 * wide(scale))
    rounding = np.abs(v) * np.spacing(max(np.abs(up).max(), np.abs(down).max())) / wide(scale)
    assert (np.abs(g - differences) <= 1e-4 * np.abs(differences) + rounding)[inside].all()
    np.testing.assert_array_equal(g[outside], 0)


@pytest.mark.parametrize("scales", ["0.25", "0.25, 0.5, 1.0, 2.0, 4.0"])
def test_scales_of_constant_nodes_whose_shape_is_not_declared(scales: str) -> None:
    several = "," in scales
    constants = f"s = Constant <value_float{'s' if several else ''} = {f'[{scales}]' if several else scales}> ()"
    text = f"""(float[2, 3, 5] x) => (float[2, 3, 5] y) {{
        {constants} q = QuantizeLinear <axis=2> (x, s) y = DequantizeLinear <axis=2> (q, s) }}"""
    model = written(text)
    del model.graph.value_info[:]
    model.graph.value_info.extend(
        [
            helper.make_tensor_value_info("q", TensorProto.UINT8, X.shape),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, None),
        ]
    )
    _, _, g = by_graph(model, {"x": X}, V)
    steps = np.round(X / np.array([float(part) for part in scales.split(",")], np.float32))
    np.testing.assert_allclose(g, V * ((steps >= 0) & (steps <= 255)), rtol=1e-6)


@pytest.mark.parametrize("kind", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_floating_point_types_with_another_scale(kind: Any) -> None:
    text = "(float[2, 3, 5] x) => (float[2, 3, 5] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, t, z) }"
    weights = {"s": np.float32(0.001), "t": np.float32(0.5), "z": np.zeros((), kind)}
    _, _, g = by_graph(written(text, **weights), {"x": X}, V)
    inside = np.abs(X / np.float32(0.001)) <= float(ml_dtypes.finfo(kind).max)
    np.testing.assert_allclose(g, V * 500 * inside, rtol=1e-6)


def test_a_cast_to_eight_bits_passes_the_gradient_where_it_does_not_clip() -> None:
    text = "(float[2, 3, 5] x) => (float[2, 3, 5] y) { a = Mul(x, s) q = Cast<to=17>(a) y = Cast<to=1>(q) }"
    _, _, g = by_graph(written(text, s=np.float32(10)), {"x": X}, V)
    inside = np.abs(X * np.float32(10)) <= 448
    assert 0.1 < inside.mean() < 0.9
    np.testing.assert_allclose(g, 10 * V * inside, rtol=1e-6)


@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32])
def test_integers_that_are_labels_or_masks_have_no_gradient(kind: int) -> None:
    """The product with a mask has the gradient of its other factor alone."""
    text = f"""(float[2, 3, 5] x) => (float[2, 3, 5] y) {{
        c = Greater(x, t) m = Cast<to={kind}>(c) f = Cast<to=1>(m) r = Cast<to={kind}>(x) k = Cast<to=1>(r)
        a = Mul(x, f) b = Mul(x, k) y = Add(a, b) }}"""
    x = np.abs(X) % 100
    _, _, g = by_graph(written(text, t=np.float32(20)), {"x": x}, V)
    np.testing.assert_allclose(g, V * ((x > 20) + np.trunc(x)), rtol=1e-6)


def test_scales_of_dynamic_quantisation_count_as_constants() -> None:
    text = """(float[2, 3, 5] x) => (float[2, 3, 5] y) {
        q, s, z = DynamicQuantizeLinear(x)
        f = Cast<to=1>(q) o = Cast<to=1>(z) d = Sub(f, o) y = Mul(d, s) }"""
    _, _, g = by_graph(written(text), {"x": X}, V)
    np.testing.assert_allclose(g, V, rtol=1e-5)


@pytest.mark.parametrize("zero", [0, 1, 127, 128, 255])
def test_the_middle_of_two_steps_is_rounded_to_the_even_one(zero: int) -> None:
    """A value half a step beyond the range is clipped where the last step is odd."""
    x = ((np.arange(-300, 300).reshape(2, 3, 100) + 0.5) * 0.25).astype(np.float32)
    v = np.ones_like(x)
    model = pair(0.25, np.asarray(zero, np.uint8), x)
    _, _, g = by_graph(model, {"x": x}, v)
    steps = np.round(x / np.float32(0.25)) + zero
    np.testing.assert_array_equal(g, v * ((steps >= 0) & (steps <= 255)))


def test_small_gradients_survive_half_precision() -> None:
    """The gradient of the integers is smaller than float16 can represent; it is in float32."""
    text = """(float16[2, 3, 5] x) => (float16[2, 3, 5] y) {
        q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, t, z) }"""
    weights = {"s": np.float16(0.0005), "t": np.float16(0.0006), "z": np.int16(0)}
    v = (V * 1e-4).astype(np.float16)
    x = (X / 100).astype(np.float16)
    _, _, g = by_graph(written(text, **{k: np.asarray(w) for k, w in weights.items()}), {"x": x}, v)
    expected = v.astype(np.float64) * float(weights["t"]) / float(weights["s"])
    np.testing.assert_allclose(g, expected, rtol=2e-2, atol=1e-7)


def test_every_rule_has_a_test() -> None:
    pairs = {(domain, op) for domain in ("", "com.microsoft") for op in ("QuantizeLinear", "DequantizeLinear")}
    assert rules_of("quantization") == pairs | {("", "DynamicQuantizeLinear")}
