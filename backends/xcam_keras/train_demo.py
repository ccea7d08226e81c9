"""Train the demo network: `python -m xcam_keras.train_demo OUT.npz`. Seeded; a few minutes on two cores.

One shape or two to a scene, so that the network learns that a class is a place and not the whole picture. Batch
normalisation is used for training alone, and folded into the kernels before they are saved.
"""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np

from xcam import demo
from xcam.demo import scenes

SEED = 2026
SCENES = 12000
EPOCHS = 14


def draw(seed: int, count: int, shapes: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` scenes with 1 … `shapes` shapes of different classes: pictures in 0…255, and equal shares [N, K]."""
    rng = np.random.default_rng(seed)
    pictures = np.empty((count, 128, 128, 3), np.uint8)
    shares = np.zeros((count, len(demo.CLASSES)), np.float32)
    for n in range(count):
        labels = rng.permutation(len(demo.CLASSES))[: rng.integers(1, shapes + 1)]
        pictures[n] = scenes.scene(rng, labels.tolist()).image
        shares[n, labels] = 1 / len(labels)
    return pictures, shares


def trainable() -> keras.Sequential:
    """The demo network with batch normalisation between each convolution and its ReLU."""
    model = keras.Sequential([keras.Input((128, 128, 3)), keras.layers.Rescaling(1 / 127.5, -1)])
    for step in demo.STEPS:
        match step:
            case demo.Conv(name, filters, kernel):
                model.add(keras.layers.Conv2D(filters, kernel, padding="same", name=name))
                model.add(keras.layers.BatchNormalization(name=f"{name}_bn"))
                model.add(keras.layers.ReLU())
            case demo.Pool(name):
                model.add(keras.layers.MaxPooling2D(name=name))
            case demo.Mean(name):
                model.add(keras.layers.GlobalAveragePooling2D(name=name))
            case demo.Dense(name, units):
                model.add(keras.layers.Dense(units, name=name))
    return model


def folded(model: keras.Sequential) -> dict[str, np.ndarray]:
    """Kernels [out, in, *space] and biases with batch normalisation folded in, as float16."""
    arrays = {}
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
    """Draw, train, fold, save."""
    keras.utils.set_random_seed(SEED)
    x, y = draw(SEED, SCENES, shapes=2)
    held_x, held_y = draw(SEED + 1, 1000, shapes=1)
    model = trainable()
    steps = EPOCHS * (SCENES // 64)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    model.compile(
        optimizer=keras.optimizers.AdamW(rate, weight_decay=1e-3),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(x, y, batch_size=64, epochs=EPOCHS, validation_data=(held_x, held_y), verbose=2)
    np.savez_compressed(Path(sys.argv[1]), **folded(model))


if __name__ == "__main__":
    main()
