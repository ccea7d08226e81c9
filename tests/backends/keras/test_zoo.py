"""keras.applications by name: sizes, preprocessing, class names, weights."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xcam
from xcam import InputError, ModelError
from xcam.contract.messages import RANDOM_WEIGHTS
from xcam.contract.preprocessing import PRESETS
from xcam_keras import zoo
from xcam_keras.backend import keras


def test_every_name_has_the_preprocessing_of_keras() -> None:
    builders = zoo.names()
    assert {"vgg16", "resnet50", "mobilenetv2", "efficientnetv2b0", "convnexttiny", "nasnetlarge"} <= set(builders)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 4, 5, 3)).astype(np.float32)
    import sys

    for name, builder in builders.items():
        function = sys.modules[builder.__module__].preprocess_input
        preprocessing = zoo.preprocessing_of(function)
        assert preprocessing.name in PRESETS, name
        np.testing.assert_allclose(preprocessing(pixels), function(pixels.copy()), atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("name", "preset", "size"), [("MobileNet_V2", "tf", (224, 224)), ("mobilenetv3small", "raw", (224, 224))]
)
def test_a_name_determines_size_preprocessing_and_labels(name: str, preset: str, size: tuple[int, int]) -> None:
    model = xcam.load(name, backend="keras", weights="none")
    assert model.input.size == size
    assert model.input.preprocessing is PRESETS[preset]
    assert model.labels is not None
    assert (model.labels[292], len(model.labels)) == ("tiger", 1000)
    assert model.notes == (RANDOM_WEIGHTS,)
    assert model.output_activation == "softmax"


def test_random_weights_are_reproducible_and_do_not_use_the_global_generator() -> None:
    random.seed(5)
    expected = random.random()
    random.seed(5)
    x = np.ones((1, 224, 224, 3), np.float32)
    first, second = (xcam.load("mobilenet", backend="keras", weights="none").predict(x) for _ in range(2))
    assert random.random() == expected
    np.testing.assert_array_equal(first, second)


def test_a_live_model_of_the_zoo_is_recognised() -> None:
    model = xcam.load(keras.applications.MobileNetV2(weights=None))
    assert model.input.preprocessing is PRESETS["tf"]
    assert model.labels is not None
    other = xcam.load(keras.applications.MobileNetV2(weights=None, classes=5))
    assert other.input.preprocessing is None
    assert other.labels is None


def test_another_size() -> None:
    model = xcam.load("mobilenetv2", backend="keras", weights="none", size=(96, 128))
    assert model.input.size == (96, 128)
    assert xcam.models.layers.default(model).shape == (1280, 3, 4)


def test_unavailable_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: Any, **__: Any) -> Any:
        raise Exception("URL fetch failure on https://host/path/vgg16_weights.h5: None -- [Errno -3] no name")

    monkeypatch.setattr(keras.applications, "VGG16", offline)
    with pytest.raises(ModelError, match=r"put vgg16_weights\.h5 into .*models by hand, or use --weights FILE"):
        xcam.load("vgg16", backend="keras")
    with pytest.raises(InputError, match=r"cannot read weights from .*absent\.h5: no such file"):
        xcam.load("mobilenet", backend="keras", weights=str(tmp_path / "absent.h5"))
    with pytest.raises(InputError, match=r"unknown model 'resnet51' in keras\.applications; nearest: resnet"):
        xcam.load("resnet51", backend="keras")


def test_weights_from_a_file(tmp_path: Path) -> None:
    keras.utils.set_random_seed(3)
    trained = keras.applications.MobileNet(weights=None)
    path = tmp_path / "mine.weights.h5"
    trained.save_weights(path)
    x = np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype(np.float32)
    model = xcam.load("mobilenet", backend="keras", weights=str(path))
    assert model.notes == ()
    p = np.exp(model.predict(x))
    np.testing.assert_allclose(p / p.sum(), keras.ops.convert_to_numpy(trained(x)), atol=1e-6)
    path.write_bytes(b"not weights")
    with pytest.raises(ModelError, match=r"cannot load .*mine"):
        xcam.load("mobilenet", backend="keras", weights=str(path))
