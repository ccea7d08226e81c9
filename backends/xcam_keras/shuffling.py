"""Copies of a Keras model with shuffled weights: see xcam.contract.shuffling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from xcam.contract.shuffling import cannot_copy, shuffled, to_shuffle


def parameter_layers(model: keras.Model) -> dict[str, list[Any]]:
    """Return the learnt weights of each layer that has some, in the model's order; parts of nested models as `outer/inner`.

    Frozen weights count as learnt; statistics of a batch norm do not.
    """
    return {name: list(layer._trainable_variables) for name, layer in _layers(model).items()}


def with_shuffled_weights(model: keras.Model, parts: Sequence[str], seed: int) -> keras.Model:
    """Return a copy in which the weights of `parts` are shuffled.

    Raises:
        InputError: a part has no weights.
        ModelError: the model cannot be copied.
    """
    try:
        copy = keras.models.clone_model(model)
        if not copy.built:
            copy.build(model.input_shape)
        copy.set_weights(model.get_weights())
    except Exception as error:
        raise cannot_copy(model.name, error, "give a functional model") from error
    for weight, generator in to_shuffle(parameter_layers(copy), parts, seed, model.name):
        weight.assign(shuffled(np.asarray(keras.ops.convert_to_numpy(weight)), generator))
    return copy


def _layers(model: keras.Model, scope: str = "") -> dict[str, Any]:
    """Return by name the layers that have learnt weights and no layers inside; a shared layer once."""
    result: dict[str, Any] = {}
    for layer in model._layers if scope else model.layers:
        name = f"{scope}{layer.name}"
        inner = {name: layer} if layer._trainable_variables else {}
        if getattr(layer, "_layers", None):
            inner = _layers(layer, f"{name}/")
        known = {id(other) for other in result.values()}
        result |= {key: part for key, part in inner.items() if id(part) not in known}
    return result
