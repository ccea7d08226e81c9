"""The scaling that a Keras model computes itself: seen at its first layer with a kernel, in a call that ends there."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from xcam.contract import scaling
from xcam.contract.preprocessing import PRESETS, Preprocessing
from xcam.contract.types import Array, InputSpec
from xcam_keras import seeds
from xcam_keras.calls import modes_restored, torch_modules, watching

STATISTICS = ("Normalization", "BatchNormalization", "LayerNormalization", "GroupNormalization")
"""Layers whose weights are means and factors, of several axes too."""
FIRST = 4
"""Layers among which one that scales is looked for where a model cannot be run yet."""


class _Reached(BaseException):
    """Ends a call at the first layer with a kernel. Keras and models catch `Exception`."""


def computed(model: keras.Model, spec: InputSpec) -> Preprocessing | None:
    """Return the preprocessing that the model's own scaling needs: see xcam.contract.scaling.computed.

    A model that cannot be run yet (a subclassed one has no weights before its first call) takes `raw` where one of its
    first layers scales.
    """
    layers = list(model._flatten_layers(include_self=False))
    if all(layer.built for layer in (model, *layers)):
        with contextlib.suppress(Exception):  # the model does not run on such an input, or not layer by layer
            inputs = getattr(model, "inputs", None)  # none in a subclassed model
            batch = (inputs[0].shape[0] if inputs else None) or 1
            return scaling.computed(spec, lambda x: _reaching(model, x.repeat(batch, 0)))
    first = [layer for layer in layers if not isinstance(layer, keras.Model | keras.layers.InputLayer)][:FIRST]
    scales = any(isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization) for layer in first)
    return PRESETS["raw"] if scales else None


def _reaching(model: keras.Model, x: Array) -> Array | None:
    """Return the value that the model's first layer with a kernel receives."""
    received: list[Any] = []

    def enter(layer: keras.layers.Layer, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if _has_kernel(layer):
            received.extend(keras.tree.flatten([*args, *kwargs.values()])[:1])
            raise _Reached

    try:
        with seeds.kept(model), modes_restored(torch_modules(model)), watching(lambda call: call.value, enter=enter):
            model(keras.ops.convert_to_tensor(x), training=False)
    except _Reached:
        value: Array = keras.ops.convert_to_numpy(keras.ops.cast(received[0], "float32"))
        return value
    return None


def _has_kernel(layer: keras.layers.Layer) -> bool:
    if getattr(layer, "kernel", None) is not None:
        return True
    if type(layer).__name__ in STATISTICS or next(iter(layer._flatten_layers(include_self=False)), None):
        return False
    return any(sum(n != 1 for n in weight.shape) > 1 for weight in layer.weights)
