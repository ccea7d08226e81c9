"""The conformance suite for Keras, on the engine in use."""

from __future__ import annotations

from typing import Any

from xcam.testing import Conformance, Network
from xcam_keras.backend import keras

from keras_networks import build  # isort: skip  (Keras is imported by then)


class TestKeras(Conformance):
    def build(self, network: Network) -> keras.Model:
        return build(network)

    def snapshot(self, native: keras.Model) -> Any:
        layers = native._flatten_layers()
        weights = [w.tobytes() for w in native.get_weights()]
        attributes = [(sorted(vars(layer)), layer.trainable) for layer in layers]
        return weights, attributes, keras.layers.Layer.__call__
