"""Keras models exported to ONNX: ONNX Runtime computes the same numbers as Keras."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf

from xcam import BackendError, InputError, ModelError
from xcam_keras import export
from xcam_keras.backend import keras
from xcam_keras.export import to_onnx

pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf2onnx converts TensorFlow graphs")
L = keras.layers


def backbone() -> keras.Model:
    x = inputs = L.Input((16, 12, 3))
    x = L.Conv2D(6, 3, padding="same", activation="relu", name="first")(x)
    x = L.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False, name="depthwise")(x)
    x = L.BatchNormalization(name="norm")(x)
    x = L.Activation("silu", name="act")(x)
    return keras.Model(inputs, L.Conv2D(8, 3, strides=2, padding="same", name="last")(x), name="backbone")


def nested() -> keras.Model:
    inputs = L.Input((16, 12, 3), name="image")
    x = L.Dropout(0.5)(backbone()(L.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 2.0, 3.0])(inputs)))
    return keras.Model(inputs, L.Dense(4, activation="softmax", name="scores")(L.Flatten()(x)), name="nested")


def sequential() -> keras.Model:
    return keras.Sequential([L.Input((16, 12, 3)), backbone(), L.GlobalMaxPooling2D(), L.Dense(4), L.Softmax()])


class Subclassed(keras.Model):
    """Two outputs, in a dict whose keys are not in alphabetical order."""

    def __init__(self) -> None:
        super().__init__(name="subclassed")
        self.part, self.pool, self.out = backbone(), L.GlobalAveragePooling2D(), L.Dense(3)

    def call(self, x: Any) -> Any:
        features = self.part(x)
        return {"z": self.out(self.pool(features)), "features": features}


def subclassed() -> keras.Model:
    model = Subclassed()
    model(np.zeros((1, 16, 12, 3), np.float32))
    return model


def fully_convolutional() -> keras.Model:
    x = inputs = L.Input((None, None, 3))
    x = L.ZeroPadding2D(((0, 1), (2, 1)))(x)
    x = shared = L.Conv2D(4, 3, strides=2, padding="same", activation="gelu", name="shared")(x)
    x = L.LayerNormalization(name="norm")(x)
    x = L.UpSampling2D(name="up")(L.Conv2D(4, 3, groups=2, padding="same")(x))
    x = L.Conv2DTranspose(5, 3, strides=2, padding="same", name="transposed")(x)
    x = L.Conv2D(4, 1, activation="softmax", name="map")(x)
    return keras.Model(inputs, [x, L.GlobalAveragePooling2D(name="mean")(shared)])


def randomise(model: keras.Model) -> keras.Model:
    """Assign random weights: values such as 0 or 1 could be exchanged without effect."""
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if variable.dtype == "float32":
            variable.assign(rng.uniform(0.5, 1.5, variable.shape) * (1 if "variance" in variable.name else 0.3))
    return model


def run(path: Path, x: np.ndarray, more: list[str] | None = None) -> dict[str, np.ndarray]:
    """ONNX Runtime's outputs by name, and those of the tensors `more`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    model = onnx.load(path)
    known = [output.name for output in model.graph.output]
    names = known + [name for name in more or [] if name not in known]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names[len(known) :])
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: x}), strict=True))


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def agree(actual: np.ndarray, expected: Any) -> None:
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("build", "name", "outputs"),
    [
        (nested, "image", ["scores"]),
        (sequential, None, ["output_0"]),
        (subclassed, "input", ["z", "features"]),
        (fully_convolutional, None, ["map", "mean"]),
    ],
)
def test_numbers_names_and_any_batch(
    tmp_path: Path, build: Callable[[], keras.Model], name: str | None, outputs: list[str]
) -> None:
    model, path = randomise(build()), tmp_path / "modèle.onnx"
    to_onnx(model, path)
    written = onnx.load(path)
    onnx.checker.check_model(written, full_check=True)
    assert [value.name for value in written.graph.input] == [name or model.inputs[0].name]
    assert [value.name for value in written.graph.output] == outputs
    for value in [*written.graph.input, *written.graph.output]:
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert list(tmp_path.iterdir()) == [path]
    for x in (images(1, 16, 12, 3), images(3, 16, 12, 3)):
        expected = model(x, training=False)
        expected = list(expected.values()) if isinstance(expected, dict) else tf.nest.flatten(expected)
        for output, value in zip(run(path, x).values(), expected, strict=True):
            agree(output, value)


def test_an_open_size_stays_open_or_is_set(tmp_path: Path) -> None:
    model = randomise(fully_convolutional())
    to_onnx(model, tmp_path / "open.onnx")
    to_onnx(model, tmp_path / "given.onnx", (17, 22))
    x = images(2, 17, 22, 3)
    for name in ("open.onnx", "given.onnx"):
        outputs = run(tmp_path / name, x)
        for output, expected in zip(("map", "mean"), model(x, training=False), strict=True):
            agree(outputs[output], expected)
    dims = onnx.load(tmp_path / "given.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims[1:]] == [17, 22, 3]
    with pytest.raises(
        InputError, match=r"cannot use size=\(8, 8\): backbone takes images of \(16, 12\); leave size out"
    ):
        to_onnx(backbone(), tmp_path / "no.onnx", (8, 8))


def test_weights_are_transposed_when_written_and_named_as_in_keras(tmp_path: Path) -> None:
    model = randomise(nested())
    to_onnx(model, tmp_path / "a.onnx")
    graph = onnx.load(tmp_path / "a.onnx").graph
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    part = model.get_layer("backbone")
    kernel = part.get_layer("first").kernel.numpy()
    np.testing.assert_array_equal(weights["first/kernel"], kernel.transpose(3, 2, 0, 1))
    depthwise = part.get_layer("depthwise").kernel.numpy()  # [3, 3, channels, 1]
    np.testing.assert_array_equal(weights["depthwise/kernel"], depthwise.transpose(2, 3, 0, 1))
    np.testing.assert_array_equal(weights["scores/kernel"], model.get_layer("scores").kernel.numpy())
    assert not [node.name for node in graph.node if node.op_type == "Transpose" and node.input[0] in weights]


def test_metadata_maps_layers_to_tensors(tmp_path: Path) -> None:
    model = randomise(nested())
    to_onnx(model, tmp_path / "a.onnx")
    entries = {entry.key: entry.value for entry in onnx.load(tmp_path / "a.onnx").metadata_props}
    layers = json.loads(entries["xcam.layers"])
    assert {"backbone/first", "backbone/depthwise", "backbone/norm", "backbone/act", "backbone/last"} <= {*layers}
    x = images(2, 16, 12, 3)
    values = run(tmp_path / "a.onnx", x, list(layers.values()))
    part = model.get_layer("backbone")
    inside = keras.Model(part.input, [layer.output for layer in part.layers[1:]])
    expected = inside(model.layers[1](x), training=False)
    for layer, value in zip(part.layers[1:], expected, strict=True):
        agree(np.moveaxis(values[layers[f"backbone/{layer.name}"]], 1, -1), value)
    agree(values[layers["scores"]], model(x, training=False))


def test_weights_beyond_the_limit_are_in_a_second_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path, x = randomise(nested()), tmp_path / "a.onnx", images(2, 16, 12, 3)
    monkeypatch.setattr(export, "LIMIT", 100)
    to_onnx(model, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.onnx", "a.onnx.data"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    agree(session.run(None, {"image": x})[0], model(x, training=False))


def test_model_and_logging_do_not_change(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def state() -> list[Any]:
        loggers = [logging.getLogger(name) for name in ("", "tf2onnx", "tensorflow")]
        return [(list(log.handlers), log.propagate, log.level) for log in loggers]

    model, before = randomise(nested()), state()
    weights = [variable.numpy() for variable in model.variables]
    to_onnx(model, tmp_path / "a.onnx")
    assert state() == before
    assert not tf.config.functions_run_eagerly()
    for variable, weight in zip(model.variables, weights, strict=True):
        np.testing.assert_array_equal(variable.numpy(), weight)
    assert capfd.readouterr() == ("", "")


class Strange(L.Layer):
    def call(self, x: Any) -> Any:
        return tf.math.lgamma(x)


def test_a_failed_export_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strange = keras.Sequential([L.Input((8, 8, 3)), Strange(name="strange")], name="odd")
    with pytest.raises(
        ModelError, match=r"cannot convert odd with tf2onnx: .*Lgamma.* is not supported; change that part"
    ):
        to_onnx(strange, tmp_path / "a.onnx")
    with pytest.raises(InputError, match=r"cannot write .*; give an existing folder with enough free space"):
        to_onnx(backbone(), tmp_path / "absent" / "a.onnx")
    assert list(tmp_path.iterdir()) == []
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tf2onnx" else find(name))
    with pytest.raises(
        BackendError, match="cannot export Keras models to ONNX: tf2onnx is not installed; pip install tf2onnx"
    ):
        to_onnx(backbone(), tmp_path / "a.onnx")
