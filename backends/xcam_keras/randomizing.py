"""A copy of a Keras model with the weights of some layers shuffled: for the model-parameter randomisation test.

Values are exchanged within each weight, so that its distribution stays. What was counted and not learnt (the statistics
of a batch norm) stays too.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from xcam.errors import InputError, ModelError, first_line, nearest


def parameter_layers(model: keras.Model) -> list[str]:
    """The layers that have weights of their own, in the model's order; the parts of nested models by `outer/inner`."""
    return list(_layers(model))


def shuffled(model: keras.Model, parts: Sequence[str], seed: int) -> keras.Model:
    """A copy in which the weights of `parts` are shuffled: each by its own seed, whatever else is shuffled.

    Raises InputError for a part that has none, ModelError for a model that cannot be copied.
    """
    try:
        made = keras.models.clone_model(model)
        if not made.built:
            made.build(model.input_shape)
        made.set_weights(model.get_weights())
    except Exception as error:
        raise ModelError(
            f"{model.name} cannot be copied ({first_line(error)}), and its own weights are not to be touched; give a "
            "functional model, or leave the randomisation test out"
        ) from error
    layers = _layers(made)
    for name in parts:
        if name not in layers:
            raise InputError(f"no part {name!r} with weights in {model.name}; {nearest(name, layers)}")
        random = np.random.default_rng([seed, zlib.crc32(name.encode())])
        for weight in _learnt(layers[name]):
            value = np.asarray(keras.ops.convert_to_numpy(weight))
            weight.assign(value.ravel()[random.permutation(value.size)].reshape(value.shape))
    return made


def _layers(model: keras.Model, above: str = "") -> dict[str, Any]:
    """By name the layers that hold learnt weights and no layers; a layer that stands twice, once."""
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for layer in model._layers if above else model.layers:
        name = f"{above}{layer.name}"
        if getattr(layer, "_layers", None):
            found |= {n: one for n, one in _layers(layer, f"{name}/").items() if id(one) not in seen}
        elif _learnt(layer):
            found[name] = layer
        seen |= {id(one) for one in found.values()}
    return found


def _learnt(layer: Any) -> list[Any]:
    """The weights that training changes, frozen ones too."""
    return list(layer._trainable_variables)
