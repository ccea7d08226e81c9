"""The scaling that a Keras model computes before its first layer with a kernel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import xcam
from xcam_keras.backend import keras

L, ops = keras.layers, keras.ops
APPLICATIONS = keras.applications
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
IMAGE = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)


def pixels(x: Any) -> Any:
    return x


def unit(x: Any) -> Any:
    return x / 255


def flipped(x: Any) -> Any:
    return ops.flip(x, -1) - np.array([103.939, 116.779, 123.68], "float32")


def network(first: Callable[[Any], Any]) -> keras.Model:
    """Build a network with `first` in front of its first convolution."""
    inputs = L.Input((None, None, 3))
    x = L.Conv2D(4, 3, activation="relu", name="conv")(first(inputs))
    return keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(x)), name="net")


def nested(first: Callable[[Any], Any], front: Callable[[Any], Any] = pixels) -> keras.Model:
    """Build the same, inside a model that applies `front`."""
    inputs = L.Input((32, 48, 3))
    return keras.Model(inputs, network(first)(front(inputs)), name="outer")


def preprocessed(x: Any) -> Any:
    return keras.Sequential([L.Input((None, None, 3)), L.Resizing(24, 24), L.Rescaling(1 / 127.5, -1)])(x)


def augmented(x: Any) -> Any:
    return L.RandomContrast(0.2)(L.RandomFlip()(L.ZeroPadding2D(2)(L.CenterCrop(28, 40)(x))))


def normalized(factor: float) -> Any:
    return L.Normalization(mean=MEAN * factor, variance=(STD * factor) ** 2)


PREFIXES: dict[str, tuple[Callable[[Any], Any], str | None]] = {
    "rescaling": (L.Rescaling(1 / 255), "raw"),
    "rescaling to −1…1": (L.Rescaling(1 / 127.5, -1), "raw"),
    "division": (unit, "raw"),
    "arithmetic": (lambda x: x / 127.5 - 1, "raw"),
    "normalization of pixels": (normalized(255), "raw"),
    "normalization of 0…1": (normalized(1), "unit"),
    "constants in 0…1": (lambda x: (x - MEAN.astype("float32")) / STD.astype("float32"), "unit"),
    "both": (lambda x: normalized(1)(L.Rescaling(1 / 255)(x)), "raw"),
    "from 0…1 to pixels": (lambda x: x * 255, "unit"),
    "from 0…1 to −1…1": (lambda x: x * 2 - 1, "unit"),
    "from −1…1 to 0…1": (lambda x: (x + 1) / 2, "tf"),
    "means and flip": (flipped, "raw"),
    "means, blue first": (lambda x: x - np.array([103.939, 116.779, 123.68], "float32"), "raw, BGR"),
    "caffe": (APPLICATIONS.vgg16.preprocess_input, "raw"),
    "tf": (APPLICATIONS.mobilenet_v2.preprocess_input, "raw"),
    "torch": (APPLICATIONS.densenet.preprocess_input, "raw"),
    "lambda": (L.Lambda(APPLICATIONS.densenet.preprocess_input), "raw"),
    "augmentation": (lambda x: L.Rescaling(1 / 255)(augmented(x)), "raw"),
    "sequential": (preprocessed, "raw"),
    "none": (pixels, None),
    "augmentation alone": (augmented, None),
    "each image standardised": (lambda x: (x - ops.mean(x, (1, 2, 3), keepdims=True)) / (1 + ops.std(x)), None),
    "clipped to 0…1": (lambda x: normalized(1)(ops.clip(x, 0, 1)), None),
}


@pytest.mark.parametrize("name", PREFIXES)
def test_the_scaling_in_front_of_the_first_kernel_decides(name: str) -> None:
    first, expected = PREFIXES[name]
    for model in (network(first), nested(first), nested(pixels, first)):
        spec = xcam.load(model).input
        assert spec.preprocessing == spec.needs
        assert (spec.needs and spec.needs.name) == expected


@pytest.mark.parametrize("name", ["rescaling", "arithmetic", "normalization of 0…1", "means and flip", "sequential"])
def test_explain_gives_the_model_the_input_that_keras_gives_it(name: str) -> None:
    first, expected = PREFIXES[name]
    model = nested(first)
    pixel = IMAGE[None].astype(np.float32)
    outputs = model.predict(pixel / 255 if expected == "unit" else pixel, verbose=0)[0]
    np.testing.assert_allclose(xcam.explain(model, IMAGE, target=0).outputs, outputs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["rescaling", "arithmetic", "normalization of 0…1", "caffe", "augmentation"])
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the exporter needs TensorFlow")
def test_the_exported_file_needs_the_same(name: str, tmp_path: Path) -> None:
    first, expected = PREFIXES[name]
    model, file = nested(first), tmp_path / "net.onnx"
    xcam.export(model, file)
    spec = xcam.load(file).input
    assert spec.needs is not None
    assert spec.needs.name == expected
    outputs = [xcam.explain(m, IMAGE, target=0).outputs for m in (model, file)]
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)


def test_a_subclassed_model_is_seen_in_its_first_call() -> None:
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.conv = L.Dense(3), L.Conv2D(4, 3)

        def call(self, x: Any) -> Any:
            return self.head(ops.mean(self.conv(x / 255), (1, 2)))

    model = Own()
    opened = xcam.load(model)
    assert opened.input.needs is None
    assert not model.built
    explanation = xcam.explain(opened, IMAGE, target=0)
    assert opened.input.needs == xcam.Preprocessing("raw")
    resized = cv2.resize(IMAGE, (224, 224))[None].astype(np.float32)
    np.testing.assert_allclose(explanation.outputs, ops.convert_to_numpy(model(resized))[0], rtol=1e-4, atol=1e-4)
    model(IMAGE[None].astype(np.float32))
    assert xcam.load(model).input.preprocessing == xcam.Preprocessing("raw")


def test_a_subclassed_model_with_a_rescaling_takes_pixels_before_it_was_called() -> None:
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.conv = L.Rescaling(1 / 255), L.Conv2D(4, 3)

    assert xcam.load(Own()).input.preprocessing == xcam.Preprocessing("raw")


def test_a_model_in_mixed_precision() -> None:
    inputs = L.Input((8, 8, 3))
    x = L.Conv2D(4, 3, dtype="mixed_bfloat16")(L.Rescaling(1 / 127.5, -1, dtype="mixed_bfloat16")(inputs))
    assert xcam.load(keras.Model(inputs, L.GlobalAveragePooling2D()(x))).input.needs == xcam.Preprocessing("raw")


def test_a_model_with_a_fixed_batch() -> None:
    inputs = L.Input(batch_shape=(2, 8, 8, 3))
    model = keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(L.Conv2D(4, 3)(inputs / 255))))
    assert xcam.load(model).input.needs == xcam.Preprocessing("raw")


def test_a_dense_network_of_grey_pixels() -> None:
    model = keras.Sequential([L.Input((8, 8, 1)), L.Rescaling(1 / 255), L.Flatten(), L.Dense(3)])
    assert xcam.load(model).input.preprocessing == xcam.Preprocessing("raw")


def test_a_preprocessing_in_front_of_the_models_own_is_warned_of() -> None:
    model = network(L.Rescaling(1 / 255))
    message = "net scales its input itself and takes pixels in 0…255, and 'torch' scales .*; use preprocess='raw'"
    with pytest.warns(xcam.XcamWarning, match=message):
        assert xcam.load(model, preprocess="torch").input.preprocessing.name == "torch"
    assert xcam.load(model, preprocess="raw").input.needs == xcam.Preprocessing("raw")
    assert xcam.load(network(pixels), preprocess="torch").input.needs is None


@pytest.mark.parametrize("builder", [APPLICATIONS.MobileNetV3Small, APPLICATIONS.EfficientNetV2B0])
def test_an_application_built_without_its_preprocessing_does_not_take_pixels(builder: Any) -> None:
    model = builder(weights=None, input_shape=(32, 32, 3))
    assert xcam.load(model).input.preprocessing == xcam.Preprocessing("raw")
    model = builder(weights=None, input_shape=(32, 32, 3), include_preprocessing=False)
    assert xcam.load(model).input.preprocessing is None


def test_the_layers_call_is_restored() -> None:
    before = L.Layer.__call__
    xcam.load(network(unit))
    assert L.Layer.__call__ is before
