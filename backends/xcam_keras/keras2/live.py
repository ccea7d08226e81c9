"""Live models of Keras 2 (the package tf_keras), rebuilt in Keras 3."""

from __future__ import annotations

import json
from typing import Any

import keras
import numpy as np

from xcam_keras.keras2.build import build
from xcam_keras.keras2.weights import assign

TOLERANCE = 1e-3
"""Relative to the largest output."""


def is_keras2(model: object) -> bool:
    """Return whether an object is a model of tf_keras. Nothing is imported."""
    return any(cls.__module__.startswith("tf_keras.") for cls in type(model).__mro__)


def rebuilt(model: Any) -> keras.Model | None:
    """Return a model of Keras 3 that predicts the same; None where that is not possible. `model` is not changed."""
    try:
        serialized = json.loads(model.to_json())
        result = build(serialized)
        assign(result, serialized, _weights(model))
        x = np.random.default_rng(0).random(
            [2, *(n or 64 for n in model.input_shape[1:-1]), model.input_shape[-1] or 3]
        )
        x = (255 * x).astype(keras.backend.standardize_dtype(result.inputs[0].dtype))
        pairs = zip(
            keras.tree.flatten(model(x, training=False)), keras.tree.flatten(result(x, training=False)), strict=True
        )
        arrays = [(np.asarray(old), keras.ops.convert_to_numpy(new)) for old, new in pairs]
    except MemoryError:
        raise
    except Exception:  # a layer of its own, or Python code: the model runs on TensorFlow all the same
        return None
    same = all(np.abs(old - new).max() <= TOLERANCE * max(np.abs(old).max(), 1e-6) for old, new in arrays)
    return result if same else None


def _weights(model: Any) -> dict[str, list[tuple[str, Any]]]:
    return {
        layer.name: [(w.name, w.numpy()) for w in (*layer.trainable_weights, *layer.non_trainable_weights)]
        for layer in model.layers
    }
