"""The demo network in Keras."""

from __future__ import annotations

from typing import Any

import keras

from xcam.contract.messages import own_weights
from xcam.models import demo


def layers(network: demo.Network) -> keras.Sequential:
    """Return the network's architecture, with Keras' random weights."""
    height, width = network.size
    model = keras.Sequential(name="demo")
    model.add(keras.Input((height, width, 3)))
    for step in network.steps:
        match step:
            case demo.Conv(name, filters, kernel):
                model.add(keras.layers.Conv2D(filters, kernel, padding="same", activation="relu", name=name))
            case demo.Pool(name):
                model.add(keras.layers.MaxPooling2D(name=name))
            case demo.Mean(name):
                model.add(keras.layers.GlobalAveragePooling2D(name=name))
            case demo.Dense(name, units):
                model.add(keras.layers.Dense(units, activation="softmax", name=name))
    return model


def build(
    source: str = "demo", *, size: tuple[int | None, int | None] | None = None, weights: str | None = None
) -> tuple[keras.Model, dict[str, Any]]:
    """Return the trained demo network, and its preprocessing and labels.

    Args:
        source: its name.
        size: not used: the network has one size.
        weights: must be None.

    Raises:
        InputError: weights are given.
    """
    network = demo.network()
    if weights is not None:
        raise own_weights("the demo network", weights)
    model = layers(network)
    for name, (kernel, bias) in network.weights.items():
        # The file has kernels as [out, in, *space], Keras as [*space, in, out].
        model.get_layer(name).set_weights([kernel.transpose(*range(2, kernel.ndim), 1, 0), bias])
    return model, {"preprocessing": network.preprocessing, "labels": network.labels}
