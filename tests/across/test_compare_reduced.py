"""A float model against quantised and float16 files of it: planted mistakes are named, honest files have none."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType
from scipy import stats

import onnx_quantized
import xcam
from xcam.comparison.data import Divergence

IMAGES = onnx_quantized.images()
SEEN = onnx_quantized.images(8, seed=50)
FORMATS = [QuantFormat.QDQ, QuantFormat.QOperator]


@cache
def original(outlier: int | None = None) -> Any:
    return xcam.load(onnx_quantized.network(outlier=outlier), preprocess="tf")


@cache
def reduced(quant_format: Any, outlier: int | None = None) -> ModelProto:
    model = onnx_quantized.network(outlier=outlier)
    return onnx_quantized.quantized(model, onnx_quantized.batch(IMAGES), quant_format=quant_format, per_channel=True)


def divergence(first: Any, model: ModelProto, images: np.ndarray = IMAGES) -> Divergence:
    second = xcam.load(model, preprocess="tf")
    (result,) = xcam.compare([first, second], list(images), align=True).divergences
    assert result.notes == ()
    return result


MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    ({"factor": 0.5}, "narrow-range", r"reach (2|2.0\d|1.9\d) times as far"),
    ({"factor": 10}, "wide-range", "2[5-7] of 256 levels"),
    ({"factor": 2}, "wide-range", "12[5-9] of 256 levels"),
    ({"factor": 2, "where": "first"}, "wrong-scale", "multiplied by 0.5"),
    ({"factor": 2, "where": "second"}, "wrong-scale", "multiplied by 2"),
    ({"shift": 10}, "wrong-zero-point", "off by (9|10|11) levels"),
    ({"shift": 10, "where": "first"}, "wrong-zero-point", "off by 10 levels"),
    ({"shift": 10, "where": "second"}, "wrong-zero-point", "off by 10 levels"),
]


@pytest.mark.parametrize("quant_format", FORMATS, ids=["QDQ", "QOperator"])
@pytest.mark.parametrize("depth", [1 / 6, 1 / 2, 4 / 5])
@pytest.mark.parametrize(("mistake", "code", "text"), MISTAKES, ids=lambda v: str(v) if isinstance(v, dict) else "")
def test_a_planted_mistake_is_named(
    mistake: dict[str, Any], code: str, text: str, depth: float, quant_format: Any
) -> None:
    model = reduced(quant_format)
    nodes = onnx_quantized.producers(model)
    number = int(depth * len(nodes))
    node = nodes[number]
    name = node.input[0] if node.op_type == "QuantizeLinear" else node.output[0].removesuffix("_quantized")
    names = {name, {"conv1": "relu1", "conv2": "relu2", "conv4": "relu4", "conv6": "relu6"}.get(name)}
    result = divergence(original(), onnx_quantized.planted(model, number, **mistake))
    assert result.layer in names
    assert result.cause is not None
    assert result.cause.code == code
    assert re.search(text, result.cause.text), result.cause.text


@pytest.mark.parametrize("quant_format", FORMATS, ids=["QDQ", "QOperator"])
@pytest.mark.parametrize("depth", [2, 4, 6])
def test_weights_with_one_scale_are_named_where_a_channel_is_an_outlier(depth: int, quant_format: Any) -> None:
    first, model = original(depth), reduced(quant_format, depth)
    honest = divergence(first, model)
    assert honest.cause is not None
    assert (honest.layer, honest.cause.code) == (None, "quantized")
    result = divergence(first, onnx_quantized.per_tensor(model, f"w{depth}"))
    assert result.cause is not None
    assert result.layer in (f"conv{depth}", f"relu{depth}")
    assert result.cause.code == "per-tensor-weights"


HONEST: dict[str, dict[str, Any] | None] = {
    "QDQ, per channel": {"per_channel": True},
    "QDQ, per tensor": {},
    "QOperator, per channel": {"quant_format": QuantFormat.QOperator, "per_channel": True},
    "QOperator, per tensor": {"quant_format": QuantFormat.QOperator},
    "uint8": {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QUInt8},
    "uint8 values": {"activation_type": QuantType.QUInt8, "per_channel": True},
    "symmetric": {"per_channel": True, "extra_options": {"ActivationSymmetric": True}},
    "percentile": {"per_channel": True, "calibrate_method": CalibrationMethod.Percentile},
    "entropy": {"per_channel": True, "calibrate_method": CalibrationMethod.Entropy},
    "entropy, per tensor": {"calibrate_method": CalibrationMethod.Entropy},
    "int16": {"per_channel": True, "activation_type": QuantType.QInt16},
    "dynamic": None,
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_quantisation_differs_evenly(name: str) -> None:
    options = HONEST[name]
    seen = None if options is None else onnx_quantized.batch(SEEN)
    model = onnx_quantized.quantized(onnx_quantized.network(), seen, **(options or {}))
    for images in (SEEN[:2], IMAGES):  # of the calibration, and others
        result = divergence(original(), model, images)
        assert result.layer is None, (result.layer, result.cause)
        assert result.cause is not None
        assert result.cause.code == "quantized"
        ratios = [step.added / step.expected for step in result.steps if step.added and step.expected]
        assert 0.5 < np.median(ratios) < 2
        errors = [step.error for step in result.steps]
        for k, error in enumerate(errors):  # no pair is wrong
            assert error < 15 * np.median(errors[max(0, k - 3) : k] + errors[k + 1 : k + 4])


def test_the_int8_file_may_be_the_first() -> None:
    second = original()
    first = xcam.load(reduced(QuantFormat.QDQ), preprocess="tf")
    (result,) = xcam.compare([first, second], list(IMAGES), align=True).divergences
    assert (result.layer, result.cause and result.cause.code) == (None, "quantized")


def test_float16_differs_evenly() -> None:
    result = divergence(original(), onnx_quantized.half(onnx_quantized.network()))
    assert result.cause is not None
    assert (result.layer, result.cause.code) == (None, "half-precision")
    assert result.cause.text.startswith("evenly, as float16 does")


def test_values_below_the_range_of_float16() -> None:
    model = onnx_quantized.network(gain=(2, 1e-5))
    result = divergence(xcam.load(model, preprocess="tf"), onnx_quantized.half(model))
    assert result.cause is not None
    assert (result.layer in ("conv2", "relu2"), result.cause.code) == (True, "half-underflow")


def test_values_beyond_the_range_of_float16() -> None:
    model = onnx_quantized.network(gain=(2, 2e5))
    result = divergence(xcam.load(model, preprocess="tf"), onnx_quantized.half(model))
    assert result.cause is not None
    assert (result.layer in ("conv2", "relu2"), result.cause.code) == (True, "half-overflow")
    assert "too large for float16" in result.cause.text


def torch_twin() -> Any:
    """The same network in PyTorch, its parts in the order and with the names of `onnx_quantized.network`."""
    torch = pytest.importorskip("torch")
    from onnx import numpy_helper

    values = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in onnx_quantized.network().graph.initializer}

    class Twin(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            for k in range(1, 8):
                w = values[f"w{k}"]
                group = 16 if w.shape[1] == 1 else 1
                conv = torch.nn.Conv2d(w.shape[1] * group, 16, 3, padding=1, groups=group)
                conv.weight.data, conv.bias.data = w, values[f"b{k}"]
                self.add_module(f"conv{k}", conv)
                self.add_module(f"relu{k}", torch.nn.ReLU())
            self.fc = torch.nn.Linear(16, 5)
            self.fc.weight.data, self.fc.bias.data = values["wf"], values["bf"]

        def forward(self, x: Any) -> Any:
            x = self.relu1(self.conv1(x))
            for k in (2, 4, 6):
                inner = getattr(self, f"conv{k + 1}")(getattr(self, f"relu{k}")(getattr(self, f"conv{k}")(x)))
                x = getattr(self, f"relu{k + 1}")(inner + x)
            return self.fc(x.mean((2, 3)))

    return Twin().eval()


def keras_twin() -> Any:
    """The same network in Keras."""
    keras = pytest.importorskip("keras")
    from onnx import numpy_helper

    values = {t.name: numpy_helper.to_array(t) for t in onnx_quantized.network().graph.initializer}
    size = onnx_quantized.SIZE
    inputs = keras.Input((size, size, 3))

    def conv(k: int, x: Any) -> Any:
        kind = keras.layers.DepthwiseConv2D if values[f"w{k}"].shape[1] == 1 else keras.layers.Conv2D
        return kind(*([] if kind is keras.layers.DepthwiseConv2D else [16]), 3, padding="same", name=f"conv{k}")(x)

    x = keras.layers.ReLU(name="relu1")(conv(1, inputs))
    for block, k in enumerate((2, 4, 6), 1):
        inner = conv(k + 1, keras.layers.ReLU(name=f"relu{k}")(conv(k, x)))
        x = keras.layers.ReLU(name=f"relu{k + 1}")(keras.layers.Add(name=f"add{block}")([inner, x]))
    outputs = keras.layers.Dense(5, name="fc")(keras.layers.GlobalAveragePooling2D(name="pool")(x))
    model = keras.Model(inputs, outputs)
    for k in range(1, 8):
        kernel = (
            values[f"w{k}"].transpose(2, 3, 0, 1)
            if values[f"w{k}"].shape[1] == 1
            else values[f"w{k}"].transpose(2, 3, 1, 0)
        )
        model.get_layer(f"conv{k}").set_weights([kernel, values[f"b{k}"]])
    model.get_layer("fc").set_weights([values["wf"].T, values["bf"]])
    return model


@pytest.mark.parametrize("twin", [torch_twin, keras_twin])
def test_models_of_other_frameworks_against_int8(twin: Any) -> None:
    size = onnx_quantized.SIZE
    first = xcam.load(twin(), preprocess="tf", size=(size, size))
    model = reduced(QuantFormat.QDQ)
    honest = divergence(first, model)
    assert honest.cause is not None
    assert (honest.layer, honest.cause.code) == (None, "quantized")
    errors = [step.error for step in honest.steps]
    assert len(errors) > 9
    assert max(errors) < 0.05
    number = 4
    wrong = divergence(first, onnx_quantized.planted(model, number, factor=2, where="second"))
    assert wrong.cause is not None
    assert wrong.cause.code == "wrong-scale"
    name = onnx_quantized.producers(model)[number].input[0]
    assert wrong.index is not None
    assert name in (wrong.layer, wrong.steps[wrong.index].first, f"conv{name[4:]}")


@pytest.mark.parametrize("quant_format", FORMATS, ids=["QDQ", "QOperator"])
def test_blame_attributes_a_range_to_its_own_layer(quant_format: Any) -> None:
    """The quantised model would round the float values that it is given, and the next layer would bear it."""
    model = reduced(quant_format)
    number = len(onnx_quantized.producers(model)) // 2
    planted = onnx_quantized.planted(model, number, factor=0.5)
    models = [original(), xcam.load(planted, preprocess="tf")]
    exact, fast = (xcam.blame(models, list(IMAGES), fast=is_fast) for is_fast in (False, True))
    (named,) = exact.named
    assert named.cause is not None
    assert named.cause.code == "narrow-range"
    assert exact.in_first
    assert next(exact.ranked[0].culprits) == named
    assert exact.sums[0] == pytest.approx(exact.scores.mean, rel=1e-6)
    assert stats.spearmanr(*([abs(c.scores.mean) for c in each.stretches] for each in (exact, fast))).statistic > 0.8
