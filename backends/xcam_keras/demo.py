"""The demo network in Keras."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from xcam.contract.messages import own_weights
from xcam.models import demo
from xcam.models.demo import detector


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


def _detector(network: demo.Network) -> keras.Model:
    """Return the architecture of the detector: see xcam.models.demo.detector."""
    backbone = layers(network)
    value = backbone.outputs[0]
    boxes, classes = (
        keras.layers.Conv2D(len(network.weights[name][1]), 1, name=name)(value)
        for name in (detector.BOXES, detector.CLASSES)
    )
    cells = np.arange(network.size[0] // detector.STRIDE, dtype=np.float32) + 0.5
    middles = np.stack(np.meshgrid(cells, cells), axis=-1)
    centres = detector.STRIDE * (boxes[..., :2] + middles)
    sides = detector.SIDE * keras.ops.exp(boxes[..., 2:])
    joined = keras.ops.concatenate([centres, sides, keras.ops.sigmoid(classes)], axis=-1)
    rows = keras.layers.Reshape((-1, joined.shape[-1]))(joined)
    return keras.Model(backbone.inputs, keras.layers.Permute((2, 1))(rows), name=detector.NAME)


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
    network = demo.network() if source == "demo" else detector.network()
    if weights is not None:
        raise own_weights("the demo network", weights)
    model = layers(network) if source == "demo" else _detector(network)
    for name, (kernel, bias) in network.weights.items():
        # The file has kernels as [out, in, *space], Keras as [*space, in, out].
        model.get_layer(name).set_weights([kernel.transpose(*range(2, kernel.ndim), 1, 0), bias])
    return model, {"preprocessing": network.preprocessing, "labels": network.labels}
