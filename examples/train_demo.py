"""Train the demo network: `python examples/train_demo.py OUT.npz`. Seeded; about ten minutes on two cores.

The network is the project's ground truth. It learns the location of each shape in addition to its class: its last step
is linear, each class has a score at each position, and the mean of these is the score of the class. The means are
trained on the classes, the scores at positions on the outlines. A map with its peak elsewhere is then a fault of the
method. Batch normalisation is used for training only, and folded into the kernels before they are saved.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np

from xcam.contract.types import Array
from xcam.models import demo
from xcam.models.demo import scenes
from xcam.models.demo.scenes import CLASSES

SEED = 2026
SCENES = 8000
EPOCHS = 16
BATCH = 64
SHARPNESS = 8.0
"""Divisor of the scores at positions in the loss: a shape covers a tenth of the image."""


def draw(seed: int, count: int, shapes: int) -> tuple[Array, Array]:
    """Return `count` scenes with 1 … `shapes` shapes of different classes: images in 0…255, outlines [N, 16, 16, K]."""
    rng = np.random.default_rng(seed)
    images = np.empty((count, 128, 128, 3), np.uint8)
    outlines = np.zeros((count, 16, 16, len(CLASSES)), np.float32)
    for n in range(count):
        labels = rng.permutation(len(CLASSES))[: rng.integers(1, shapes + 1)]
        scene = scenes.scene(rng, labels.tolist())
        images[n] = scene.image
        for shape in scene.shapes:
            outlines[n, ..., shape.label] = shape.mask.reshape(16, 8, 16, 8).mean(axis=(1, 3)) > 0.5
    return images, outlines


class Augmented(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches, each rotated and mirrored at random: eight versions of each scene."""

    def __init__(self, x: Array, y: Array) -> None:
        super().__init__()
        self.x, self.y, self.rng = x, y, np.random.default_rng(SEED)
        self.on_epoch_end()

    def __len__(self) -> int:
        return len(self.x) // BATCH

    def __getitem__(self, index: int) -> tuple[Array, Array]:
        rows = self.order[index * BATCH : (index + 1) * BATCH]
        turns, mirror = int(self.rng.integers(4)), bool(self.rng.integers(2))
        pair = [np.rot90(part[rows], turns, axes=(1, 2)) for part in (self.x, self.y)]
        x, y = (part[:, ::-1] if mirror else part for part in pair)
        return np.ascontiguousarray(x), np.ascontiguousarray(y)

    def on_epoch_end(self) -> None:
        """Shuffle the scenes."""
        self.order = self.rng.permutation(len(self.x))


def shares(outlines: keras.KerasTensor) -> keras.KerasTensor:
    """Return equal shares for the classes that are in the image, [N, K]."""
    present = keras.ops.max(outlines, axis=(1, 2))
    return present / keras.ops.maximum(keras.ops.sum(present, axis=-1, keepdims=True), 1)


def loss(outlines: keras.KerasTensor, scores: keras.KerasTensor) -> keras.KerasTensor:
    """Return the cross-entropy of the class scores plus the weighted binary cross-entropy of the scores at positions."""
    class_scores = keras.ops.mean(scores, axis=(1, 2))
    by_class = keras.ops.categorical_crossentropy(shares(outlines), class_scores, from_logits=True)
    by_position = keras.ops.binary_crossentropy(outlines, scores / SHARPNESS, from_logits=True)
    return by_class + 4 * keras.ops.mean(by_position * (1 + 5 * outlines), axis=(1, 2, 3))


def right(outlines: keras.KerasTensor, scores: keras.KerasTensor) -> keras.KerasTensor:
    """Return 1 where the class with the highest score is in the image, else 0."""
    best = keras.ops.argmax(keras.ops.mean(scores, axis=(1, 2)), axis=-1)
    return keras.ops.sum(keras.ops.one_hot(best, 6) * keras.ops.max(outlines, axis=(1, 2)), axis=-1)


def trainable() -> keras.Sequential:
    """Return the demo network with batch normalisation, up to the class scores at positions."""
    model = keras.Sequential([keras.Input((128, 128, 3)), keras.layers.Rescaling(1 / 127.5, -1)])
    for step in demo.STEPS:
        match step:
            case demo.Conv(name, filters, kernel):
                model.add(keras.layers.Conv2D(filters, kernel, padding="same", name=name))
                model.add(keras.layers.BatchNormalization(name=f"{name}_bn"))
                model.add(keras.layers.ReLU())
            case demo.Pool(name):
                model.add(keras.layers.MaxPooling2D(name=name))
            case demo.Dense(name, units):
                model.add(keras.layers.Dense(units, name=name))
    return model


def folded(model: keras.Sequential) -> dict[str, Array]:
    """Return kernels [out, in, *space] and biases with batch normalisation folded in, as float16."""
    arrays: dict[str, Array] = {}
    for step in demo.STEPS:
        if not isinstance(step, demo.Conv | demo.Dense):
            continue
        kernel, bias = model.get_layer(step.name).get_weights()
        if isinstance(step, demo.Conv):
            layer = model.get_layer(f"{step.name}_bn")
            gamma, beta, mean, variance = layer.get_weights()
            factor = gamma / np.sqrt(variance + layer.epsilon)
            kernel, bias = kernel * factor, (bias - mean) * factor + beta
        axes = (kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2))
        arrays[f"{step.name}/kernel"] = kernel.transpose(axes).astype(np.float16)
        arrays[f"{step.name}/bias"] = bias.astype(np.float16)
    return arrays


def main() -> None:
    """Draw the scenes, train the network, fold and save its weights."""
    keras.utils.set_random_seed(SEED)
    data = Augmented(*draw(SEED, SCENES, shapes=2))
    model = trainable()
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, EPOCHS * len(data), warmup_target=4e-3, warmup_steps=len(data) // 2
    )
    model.compile(optimizer=keras.optimizers.AdamW(rate, weight_decay=1e-3), loss=loss, metrics=[right])
    model.fit(data, epochs=EPOCHS, validation_data=draw(SEED + 1, 500, shapes=1), verbose=2)
    arrays: dict[str, Any] = folded(model)
    np.savez_compressed(Path(sys.argv[1]), **arrays)


if __name__ == "__main__":
    main()
