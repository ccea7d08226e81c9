"""The conformance suite's networks in Keras, as a user would write them."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import keras
import numpy as np

from xcam.testing import Network, Step

L = keras.layers


class Tokens(L.Layer):
    """[N, H, W, C] → [N, 1 + H·W, C], the class token first."""

    def build(self, shape: Any) -> None:
        self.first = self.add_weight(shape=(shape[-1],), name="first")

    def call(self, x: Any) -> Any:
        positions = keras.ops.reshape(x, (-1, x.shape[1] * x.shape[2], x.shape[3]))
        first = keras.ops.broadcast_to(self.first, (keras.ops.shape(x)[0], 1, x.shape[3]))
        return keras.ops.concatenate([first, positions], axis=1)


class Attend(L.Layer):
    """x + softmax(q·kᵀ/√C)·v."""

    def build(self, shape: Any) -> None:
        self.w = [self.add_weight(shape=(shape[-1], shape[-1]), name=name) for name in "qkv"]

    def call(self, x: Any) -> Any:
        q, k, v = (keras.ops.matmul(x, keras.ops.transpose(w)) for w in self.w)
        share = keras.ops.softmax(keras.ops.matmul(q, keras.ops.transpose(k, (0, 2, 1))) / np.sqrt(x.shape[-1]))
        return x + keras.ops.matmul(share, v)


class First(L.Layer):
    def call(self, x: Any) -> Any:
        return x[:, 0]


def layer(step: Step) -> L.Layer:
    name = step.name.rpartition("/")[2]
    match step.op:
        case "conv":
            return L.Conv2D(len(step.weights[1]), step.weights[0].shape[-1], padding="same", name=name)
        case "relu" | "tanh":
            return L.Activation(step.op, name=name)
        case "dense":
            return L.Dense(len(step.weights[1]), name=name)
        case "norm":
            return L.LayerNormalization(epsilon=1e-6, name=name)
    kinds = {
        "pool": L.MaxPooling2D,
        "mean": L.GlobalAveragePooling2D,
        "add": L.Add,
        "concat": L.Concatenate,
        "softmax": L.Softmax,
        "tokens": Tokens,
        "attend": Attend,
        "first": First,
    }
    return kinds[step.op](name=name)


def apply(steps: Any, values: dict[str, Any]) -> None:
    """Call each step's layer, set its weights and store its value in `values`."""
    for step in steps:
        keras_layer = layer(step)
        sources = [values[name] for name in step.inputs]
        values[step.name] = keras_layer(sources if len(sources) > 1 else sources[0])
        if step.op in ("conv", "dense"):
            kernel, bias = step.weights
            keras_layer.set_weights([kernel.transpose(*range(2, kernel.ndim), 1, 0), bias])
        elif step.weights:
            keras_layer.set_weights(list(step.weights))


def build(network: Network) -> keras.Model:
    """Return the network as a functional model, with nested models for names with a scope."""
    channels, *size = network.input
    values = {"x": L.Input((*size, channels))}
    inputs = values["x"]
    for scope, group in groupby(network.steps, lambda step: step.name.rpartition("/")[0]):
        steps = list(group)
        if scope:
            source = values[steps[0].inputs[0]]
            inner = {steps[0].inputs[0]: L.Input(source.shape[1:])}
            start = inner[steps[0].inputs[0]]
            apply(steps, inner)
            values[steps[-1].name] = keras.Model(start, inner[steps[-1].name], name=scope)(source)
        else:
            apply(steps, values)
    outputs = {name: values[name] for name in network.outputs}
    return keras.Model(inputs, outputs if len(outputs) > 1 else next(iter(outputs.values())), name=network.name)
