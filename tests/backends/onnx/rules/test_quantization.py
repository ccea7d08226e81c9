"""Quantisation: the rules of `xcam_onnx.autodiff.rules.quantization`, against torch.fake_quantize."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from onnx_gradients import by_graph, inferred, written
from onnx_rules import Case, Cases, Draw, gradients, in_other_precisions, rules_of

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


def test_every_rule_has_a_test() -> None:
    pairs = {(domain, op) for domain in ("", "com.microsoft") for op in ("QuantizeLinear", "DequantizeLinear")}
    assert rules_of("quantization") == pairs | {("", "DynamicQuantizeLinear")}
