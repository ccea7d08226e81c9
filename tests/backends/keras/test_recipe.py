"""The classic Keras recipe, step by step in plain TensorFlow, compared with `score="probability", normalize="max"`."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow as tf

import xcam
from xcam_keras.backend import keras

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the recipe is written in TensorFlow"),
]


def recipe(model: keras.Model, image: np.ndarray, layer: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the heatmap at the layer's size, the heatmap at the image's size and the class, by the recipe's steps."""
    x = cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA)
    x = keras.applications.vgg16.preprocess_input(x[None].astype(np.float32))
    both = keras.Model(model.input, [model.get_layer(layer).output, model.output])
    with tf.GradientTape() as tape:
        activations, predictions = both(x)
        best = int(np.argmax(predictions[0]))
        output = predictions[:, best]
    gradients = tape.gradient(output, activations)
    pooled = tf.reduce_mean(gradients, axis=(0, 1, 2)).numpy()
    values = activations[0].numpy()
    for i in range(values.shape[-1]):
        values[:, :, i] *= pooled[i]
    heatmap = np.mean(values, axis=-1)
    heatmap = np.maximum(heatmap, 0)
    heatmap /= np.max(heatmap)
    return heatmap, cv2.resize(heatmap, (image.shape[1], image.shape[0])), best


def test_vgg16(image_path: Path, tmp_path: Path) -> None:
    keras.utils.set_random_seed(11)
    vgg = keras.applications.VGG16(weights=None)
    head = vgg.get_layer("predictions")
    head.set_weights([w * 40 for w in head.get_weights()])  # so that the softmax is not flat
    image = xcam.images.reading.read(image_path)
    small, heatmap, best = recipe(vgg, image, "block5_conv3")

    e = xcam.explain(vgg, image_path, layer="block5_conv3", score="probability", normalize="max")
    assert (e.index, e.label) == (best, xcam.models.labels.imagenet()[best])
    assert 0.002 < e.score < 1
    np.testing.assert_allclose(
        e.score,
        vgg(
            keras.applications.vgg16.preprocess_input(
                cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA)[None].astype(np.float32)
            )
        ).numpy()[0, best],
        rtol=1e-3,
    )
    np.testing.assert_allclose(e.positive / e.positive.max(), small, atol=1e-3)
    np.testing.assert_allclose(e.heatmap, heatmap, atol=1e-3)
    assert np.std(heatmap) > 0.05  # there is something to compare

    # The overlay: cv2.applyColorMap, times 0.5, plus the image, clipped.
    bgr = image[..., ::-1]
    colours = cv2.applyColorMap(np.uint8(255 * e.heatmap), cv2.COLORMAP_JET)
    superimposed = np.clip(colours * 0.5 + bgr, 0, 255)
    assert np.abs(e.overlay(0.5, "jet", "add")[..., ::-1] - superimposed).max() <= 0.5
    e.save(tmp_path / "cam.png", blend="add")
    assert np.abs(cv2.imread(str(tmp_path / "cam.png")) - superimposed).max() <= 0.5
