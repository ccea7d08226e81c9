"""`python engine_values.py OUT.npz`: values of three networks with fixed weights, on the engine that Keras runs on.

For each: activations, logits and gradients at one layer, Grad-CAM's heatmap at the default one. Prints the engines of the
backend that were imported.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

import numpy as np

import xcam
from xcam.models import demo
from xcam.testing import NETWORKS
from xcam_keras.backend import keras

from keras_networks import build  # isort: skip  (Keras is imported by then)

CLASSES = 10


def mobile() -> keras.Model:
    """Return a small MobileNetV2 whose weights are seeded by their names, the same on every engine."""
    model = keras.applications.MobileNetV2((96, 96, 3), alpha=0.35, weights=None, classes=CLASSES)
    for variable in model.variables:
        rng = np.random.default_rng(zlib.crc32(variable.path.encode()))
        if len(variable.shape) > 1:
            value = rng.normal(size=variable.shape) * np.sqrt(2 / np.prod(variable.shape[:-1]))
        elif variable.path.endswith(("gamma", "variance")):
            value = rng.uniform(0.5, 1.5, variable.shape)
        else:
            value = rng.normal(size=variable.shape) * 0.1
        variable.assign(value)
    return model


def main() -> None:
    """Run the three networks and write their values."""
    values: dict[str, np.ndarray] = {}
    models = {
        "demo": (xcam.load("demo", "keras"), "conv5"),
        "residual": (xcam.load(build(NETWORKS["residual"]), preprocess="unit"), "conv2"),
        "mobile": (xcam.load(mobile()), "block_12_add"),
    }
    for name, (model, layer) in models.items():
        image = xcam.images.reading.read(demo.image_paths()[1])
        size = model.input.size
        x = np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)

        def cotangents(z: np.ndarray) -> list[np.ndarray]:
            return [np.eye(z.shape[1], dtype=np.float32)[[1, 2]]]

        trace = model.trace(x, layer, cotangents)
        again = model.resume(trace, trace.activations[[1, 0, 1]] / 2, [1, 0, 1], lambda z: [np.ones_like(z)])
        values[f"{name} activations"] = trace.activations
        values[f"{name} logits"] = trace.outputs
        values[f"{name} gradients"] = trace.gradients[0]
        values[f"{name} logits resumed"] = again.outputs
        values[f"{name} gradients resumed"] = again.gradients[0]
        values[f"{name} heatmap"] = xcam.explain(model, image).heatmap
    np.savez(Path(sys.argv[1]), **values)
    engines = [name for name in ("tensorflow", "torch", "jax") if f"xcam_keras.engines.{name}" in sys.modules]
    print(json.dumps({"engine": keras.backend.backend(), "engines": engines}))


if __name__ == "__main__":
    main()
