"""Grad-CAM compared with the compiled forward pass of the same Keras model, at the last layer with spatial axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xcam
from alternating import ratios
from xcam.methods.registry import get
from xcam_keras.backend import keras
from xcam_keras.engines.tensorflow import tf

BUILD = {
    "VGG16": keras.applications.VGG16,
    "ResNet50": keras.applications.ResNet50,
    "MobileNetV2": keras.applications.MobileNetV2,
}


@pytest.fixture(scope="module", params=BUILD)
def network(request: pytest.FixtureRequest) -> tuple[str, keras.Model]:
    return request.param, BUILD[request.param](weights=None)


def top(outputs: np.ndarray) -> list[np.ndarray]:
    """Return the cotangent of each row's top class."""
    cotangent = np.zeros_like(outputs)
    np.put_along_axis(cotangent, outputs.argmax(axis=1)[:, None], 1, axis=1)
    return [cotangent]


@pytest.mark.parametrize("batch", [1, 8])
def test_gradcam(network: tuple[str, keras.Model], batch: int, capsys: pytest.CaptureFixture[str]) -> None:
    name, model = network
    x = np.random.default_rng(0).normal(size=(batch, 224, 224, 3)).astype(np.float32)
    compiled = tf.function(lambda t: model(t, training=False))
    opened = xcam.load(model)
    layer = xcam.models.layers.default(opened).name
    method = get("gradcam").function

    def forward() -> Any:
        return compiled(tf.constant(x)).numpy()

    def gradcam() -> Any:
        trace = opened.trace(x, layer, top)
        return method(trace.activations, trace.gradients[0])

    title = f"Keras {name} at {layer}, batch {batch}"
    ratios(title, {"compiled forward pass": forward, "Grad-CAM": gradcam}, 60 if batch == 1 else 30, capsys)


def test_resume(capsys: pytest.CaptureFixture[str]) -> None:
    """Sixteen variants of a layer inside ResNet50's last block, which a skip connection passes by."""
    opened = xcam.load(keras.applications.ResNet50(weights=None))
    x = np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype(np.float32)
    trace = opened.trace(x, "conv5_block3_2_conv")
    variants = np.repeat(trace.activations, 16, axis=0)
    batch = np.repeat(x, 16, axis=0)
    functions = {"the whole model": lambda: opened.predict(batch), "resume": lambda: opened.resume(trace, variants)}
    ratios("Keras ResNet50, 16 variants at conv5_block3_2_conv", functions, 30, capsys)
