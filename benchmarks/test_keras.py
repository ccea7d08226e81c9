"""Grad-CAM against the compiled forward pass of the same Keras model, at the last layer with space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xcam
from xcam.methods import get
from xcam_keras.backend import keras, tf

BUILD = {
    "VGG16": keras.applications.VGG16,
    "ResNet50": keras.applications.ResNet50,
    "MobileNetV2": keras.applications.MobileNetV2,
}


@pytest.fixture(scope="module", params=BUILD)
def network(request: pytest.FixtureRequest) -> tuple[str, keras.Model]:
    return request.param, BUILD[request.param](weights=None)


def top(outputs: np.ndarray) -> list[np.ndarray]:
    """The cotangent of each row's top class."""
    found = np.zeros_like(outputs)
    np.put_along_axis(found, outputs.argmax(axis=1)[:, None], 1, axis=1)
    return [found]


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("what", ["forward", "gradcam"])
def test_gradcam(benchmark: Any, network: tuple[str, keras.Model], batch: int, what: str) -> None:
    name, model = network
    benchmark.group = f"Keras {name}, batch {batch}"
    x = np.random.default_rng(0).normal(size=(batch, 224, 224, 3)).astype(np.float32)
    run: Callable[[], Any]
    if what == "forward":
        compiled = tf.function(lambda t: model(t, training=False))

        def run() -> Any:
            return compiled(tf.constant(x)).numpy()
    else:
        opened = xcam.load(model)
        layer = xcam.layers.default(opened).name
        gradcam = get("gradcam").function

        def run() -> Any:
            trace = opened.trace(x, layer, top)
            return gradcam(trace.activations, trace.gradients[0])

    benchmark.pedantic(run, rounds=30 if batch == 8 else 60, warmup_rounds=3)


@pytest.mark.parametrize("what", ["whole model", "resume"])
def test_resume(benchmark: Any, what: str) -> None:
    """Sixteen variants of a layer inside ResNet50's last block, past which a skip connection goes."""
    benchmark.group = "Keras ResNet50, 16 variants at conv5_block3_2_conv"
    opened = xcam.load(keras.applications.ResNet50(weights=None))
    x = np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype(np.float32)
    trace = opened.trace(x, "conv5_block3_2_conv")
    variants = np.repeat(trace.activations, 16, axis=0)
    batch = np.repeat(x, 16, axis=0)
    run = (lambda: opened.resume(trace, variants)) if what == "resume" else (lambda: opened.predict(batch))
    benchmark.pedantic(run, rounds=20, warmup_rounds=2)
