"""Heatmaps while Keras trains a model: the training takes the same course, and the maps are of the new weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

import xcam
from xcam.callbacks import KerasHeatmaps

RNG = np.random.default_rng(0)
IMAGES = list(RNG.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8))
X = RNG.random((16, 16, 16, 3)).astype(np.float32)
Y = RNG.integers(0, 3, 16)
pytestmark = pytest.mark.filterwarnings("ignore::xcam.ZeroHeatmapWarning")
OPTIONS: dict[str, Any] = {"preprocess": "unit", "target": 1}


class Noisy(keras.layers.Layer):
    """Draws random numbers in inference too."""

    def __init__(self) -> None:
        super().__init__()
        self.seed = keras.random.SeedGenerator(3)

    def call(self, x: Any) -> Any:
        return x + 0.1 * keras.random.normal(keras.ops.shape(x), seed=self.seed)


def network(noisy: bool) -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((16, 16, 3)),
        keras.layers.Conv2D(4, 3, padding="same"),
        keras.layers.BatchNormalization(),
        *[Noisy()][: int(noisy)],
        keras.layers.ReLU(),
        keras.layers.Dropout(0.3),
        keras.layers.Conv2D(6, 3, padding="same", activation="relu"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(3, activation="softmax"),
    ]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    return model


def trained(*callbacks: Any, noisy: bool = True) -> list[Any]:
    """Train for two epochs, and return all weights and the next random numbers."""
    model = network(noisy)
    model.fit(X, Y, batch_size=8, epochs=2, verbose=0, callbacks=list(callbacks))
    draw = keras.ops.convert_to_numpy(keras.random.uniform((2,)))
    return [*model.get_weights(), draw, np.random.random()]


def test_the_training_is_the_same_with_and_without_heatmaps(tmp_path: Path) -> None:
    expected = trained()
    results = trained(KerasHeatmaps(IMAGES, tmp_path, **OPTIONS))
    for value, result in zip(expected, results, strict=True):
        np.testing.assert_array_equal(result, value)
    names = [f"epoch_00{epoch}/image_{k}.jpg" for epoch in range(3) for k in range(2)]
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jpg")) == names


def test_the_maps_are_of_the_new_weights(tmp_path: Path) -> None:
    """`ablationcam` runs a cut of the recorded pass, which must not keep old weights."""
    differences: list[float] = []

    class Checked(KerasHeatmaps):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            rows = self.heatmaps.on_epoch_end(self.model, epoch + 1)
            fresh = xcam.explain(
                xcam.load(self.model, preprocess="unit"), IMAGES, target=1, method="ablationcam", layer=rows[0].layer
            )
            for e, still in zip(rows, fresh, strict=True):
                np.testing.assert_array_equal(e.cam, still.cam)
            differences.append(rows[0].cam.sum())

    trained(Checked(IMAGES, tmp_path, method="ablationcam", **OPTIONS), noisy=False)
    assert len(set(differences)) == 2


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras 2 is on TensorFlow")
def test_a_model_of_keras_2_is_opened_again_after_each_epoch(tmp_path: Path) -> None:
    """xcam runs a copy of it, with the weights of the moment."""
    tf_keras = pytest.importorskip("tf_keras")
    tf_keras.utils.set_random_seed(0)
    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [
            tf_keras.Input((16, 16, 3)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    callback = KerasHeatmaps(IMAGES, tmp_path, **OPTIONS)
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[callback])
    opened = callback.heatmaps._opened
    rows = callback.heatmaps.on_epoch_end(model, 3)
    assert callback.heatmaps._opened is not opened
    fresh = xcam.explain(xcam.load(model, preprocess="unit"), IMAGES, target=1, layer=rows[0].layer)
    for e, still in zip(rows, fresh, strict=True):
        np.testing.assert_array_equal(e.cam, still.cam)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_training_that_is_continued_begins_at_its_epoch(tmp_path: Path) -> None:
    model = network(noisy=False)
    model.fit(X, Y, epochs=4, initial_epoch=3, verbose=0, callbacks=[KerasHeatmaps(IMAGES[:1], tmp_path, **OPTIONS)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch_003", "epoch_004"]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a writer of TensorFlow")
def test_a_writer_of_tensorflow_gets_images(monkeypatch: pytest.MonkeyPatch) -> None:
    import contextlib

    import tensorflow as tf

    images: list[tuple[str, tuple[int, ...], int]] = []
    monkeypatch.setattr(tf.summary, "image", lambda tag, image, step: images.append((tag, image.shape, step)))
    callback = KerasHeatmaps(IMAGES[:1], writer=SimpleNamespace(as_default=contextlib.nullcontext), **OPTIONS)
    callback.set_model(network(noisy=False))
    callback.on_epoch_end(0)
    assert images == [("heatmaps/image_0", (1, 16, 16, 3), 1)]
