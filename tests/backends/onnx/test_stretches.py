"""Layers of quantised files, computed from given values: against the same in NumPy and onnx's reference."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization import QuantFormat

import onnx_quantized
import xcam
from xcam.contract.quantization import Stretch
from xcam_onnx.model import OnnxModel

X = onnx_quantized.batch(onnx_quantized.images())
FORMATS = [QuantFormat.QDQ, QuantFormat.QOperator]


def opened(model: onnx.ModelProto) -> OnnxModel:
    result = xcam.load(model, preprocess="tf")
    assert isinstance(result, OnnxModel)
    return result


@cache
def original() -> OnnxModel:
    return opened(onnx_quantized.network())


@cache
def reduced(quant_format: Any, per_channel: bool = True) -> OnnxModel:
    model = onnx_quantized.quantized(onnx_quantized.network(), X, quant_format=quant_format, per_channel=per_channel)
    return opened(model)


def stretch(model: OnnxModel, source: str, value: np.ndarray, target: str) -> Stretch:
    """Return the stretch from one layer to another; an absorbed activation gives a layer its name."""
    source, target, *others = (xcam.models.layers.find(model, name).name for name in (source, target, "add1", "add2"))
    assert list(model.stretch_sources([target], [source, *others])) == [source]
    return model.stretches(X, {source: value}, [target])[target]


@pytest.mark.parametrize("quant_format", FORMATS, ids=["QDQ", "QOperator"])
def test_a_stretch_begins_at_the_given_value(quant_format: Any) -> None:
    start = original().activations(X, ["relu1"])["relu1"]
    result = stretch(reduced(quant_format), "conv1", start, "conv2")
    model = onnx_quantized.network()
    w, b = (onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name in ("w2", "b2"))
    step = np.abs(w).max((1, 2, 3), keepdims=True) / 127
    conv = onnx.helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1] * 4)
    expected = np.asarray(
        ReferenceEvaluator(conv).run(None, {"x": start, "w": np.round(w / step) * step, "b": b})[0]  # type: ignore[index]
    )
    size = np.abs(expected).max()
    assert result.unrounded is not None
    np.testing.assert_allclose(result.unrounded, expected, atol=1e-4 * size)
    assert result.quantization is not None
    assert result.quantization.dtype == "int8"
    assert result.quantization.low == 0  # an absorbed ReLU
    scale = result.quantization.scale
    steps = np.clip(np.round(expected / scale), 0, 255)
    assert np.isclose(result.value / scale, steps, atol=0.01).mean() > 0.999


@pytest.mark.parametrize("quant_format", FORMATS, ids=["QDQ", "QOperator"])
def test_noise_and_weights(quant_format: Any) -> None:
    start = original().activations(X, ["relu1"])["relu1"]
    result = stretch(reduced(quant_format), "conv1", start, "conv2")
    model = onnx_quantized.network()
    w = next(onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "w2")
    largest = np.abs(w).max((1, 2, 3))
    kernel, *others = [weights for weights in result.weights if not weights.is_bias]
    assert not others
    np.testing.assert_allclose(kernel.largest, largest, rtol=1e-3)
    np.testing.assert_allclose(np.ravel(kernel.scale), largest / 127, rtol=1e-3)
    assert kernel.dtype == "int8"
    assert not kernel.per_tensor
    squares = np.pad(start**2, ((0, 0), (0, 0), (1, 1), (1, 1))).astype(np.float64)
    n = onnx_quantized.SIZE
    sums = sum(squares[:, :, i : i + n, j : j + n].sum(1) for i in range(3) for j in range(3))
    expected = float(np.mean((largest / 127) ** 2) / 12 * np.mean(sums))
    assert result.noise == pytest.approx(expected, rel=0.4)  # one sample of the noise


def test_the_noise_of_values_within_a_stretch() -> None:
    """From conv1 to add1 there are two quantised values, of which neither is given."""
    start = original().activations(X, ["relu1"])["relu1"]
    model = reduced(QuantFormat.QDQ)
    whole = stretch(model, "conv1", start, "add1")
    later = model.stretches(X, {"conv1": start, **original().activations(X, ["conv3"])}, ["add1"])["add1"]
    assert later.noise is None  # an Add adds no noise to the given values
    assert whole.noise is not None
    assert whole.unrounded is not None
    reference = original().activations(X, ["add1"])["add1"]
    assert np.mean((whole.unrounded - reference) ** 2) == pytest.approx(whole.noise, rel=0.3)


def test_weights_with_one_scale() -> None:
    start = original().activations(X, ["relu1"])["relu1"]
    model = reduced(QuantFormat.QDQ, per_channel=False)
    (kernel,) = [each for each in stretch(model, "conv1", start, "conv2").weights if not each.is_bias]
    assert kernel.per_tensor
    assert float(kernel.scale) == pytest.approx(kernel.largest.max() / 127, rel=1e-2)


def test_dynamic_quantisation() -> None:
    model = opened(onnx_quantized.quantized(onnx_quantized.network(), None))
    assert model.precision == "int8"
    start, reference = (original().activations(X, [name])[name] for name in ("relu1", "relu2"))
    result = model.stretches(X, {"relu1": start}, ["relu2"])["relu2"]
    assert result.quantization is None
    assert result.noise is not None
    live = float((reference > 0).mean())
    assert np.mean((result.value - reference) ** 2) == pytest.approx(result.noise, rel=0.5)
    assert live > 0.3


def test_the_precision_of_a_float_model_is_none() -> None:
    assert original().precision is None
    assert reduced(QuantFormat.QDQ).precision == "int8"
