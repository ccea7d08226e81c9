"""The same weights in two frameworks: networks built in Keras, and ported to torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from xcam_keras.backend import keras

L = keras.layers


def vgg16() -> tuple[keras.Model, nn.Module, list[tuple[str, str]]]:
    """VGG16 for 64×64 pixels with random weights in both, and three layers by their names in each."""
    keras.utils.set_random_seed(5)
    source = keras.applications.VGG16(weights=None, input_shape=(64, 64, 3))
    head = source.get_layer("predictions")
    head.set_weights([w * 30 for w in head.get_weights()])  # makes the scores of the classes differ
    parts: list[nn.Module] = []
    names: dict[str, str] = {}
    for layer in source.layers:
        if isinstance(layer, L.Conv2D):
            names[layer.name] = f"features.{len(parts) + 1}"
            parts += [conv(layer), nn.ReLU(inplace=True)]
        elif isinstance(layer, L.MaxPooling2D):
            parts.append(nn.MaxPool2d(2))
    dense = [source.get_layer(name) for name in ("fc1", "fc2", "predictions")]
    first = linear(dense[0])
    with torch.no_grad():  # Keras flattens [2, 2, 512], torch [512, 2, 2]
        weight = first.weight.reshape(4096, 2, 2, 512).permute(0, 3, 1, 2).reshape(4096, -1)
        first.weight.copy_(weight)
    classifier = nn.Sequential(first, nn.ReLU(True), nn.Dropout(), linear(dense[1]), nn.ReLU(True), linear(dense[2]))

    class VGG(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(*parts)
            self.classifier = classifier

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.classifier(self.features(x).flatten(1))

    return source, VGG(), [(n, names[n]) for n in ("block3_conv3", "block4_conv3", "block5_conv3")]


class Block(nn.Module):
    """Two convolutions with batch norm, and a skip connection."""

    def __init__(self, name: str, source: keras.Model) -> None:
        super().__init__()
        get = source.get_layer
        self.conv1, self.norm1 = conv(get(f"{name}_conv1")), norm(get(f"{name}_norm1"))
        self.conv2, self.norm2 = conv(get(f"{name}_conv2")), norm(get(f"{name}_norm2"))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        return self.relu(x + self.norm2(self.conv2(y)))


def residual() -> tuple[keras.Model, nn.Module, list[tuple[str, str]]]:
    """A residual network of three blocks, batch norm with non-trivial statistics, odd sizes, 64×48 pixels."""
    keras.utils.set_random_seed(6)
    rng = np.random.default_rng(6)
    x = inputs = L.Input((64, 48, 3))
    x = L.Conv2D(24, 5, padding="same", activation="relu", name="stem")(x)
    for name in ("a", "b", "c"):
        y = L.Activation("relu")(
            L.BatchNormalization(name=f"{name}_norm1")(L.Conv2D(24, 3, padding="same", name=f"{name}_conv1")(x))
        )
        y = L.BatchNormalization(name=f"{name}_norm2")(L.Conv2D(24, 3, padding="same", name=f"{name}_conv2")(y))
        x = L.Activation("relu", name=f"{name}_out")(L.Add()([x, y]))
        x = L.MaxPooling2D(name=f"{name}_pool")(x)
    source = keras.Model(
        inputs, L.Dense(7, activation="softmax", name="scores")(L.GlobalAveragePooling2D()(x)), name="residual"
    )
    for layer in source.layers:
        if isinstance(layer, L.BatchNormalization):
            c = layer.gamma.shape[0]
            layer.set_weights(
                [rng.uniform(0.5, 1.5, c), rng.normal(size=c), rng.normal(size=c), rng.uniform(0.5, 2, c)]
            )

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = conv(source.get_layer("stem"))
            self.a, self.b, self.c = (Block(name, source) for name in "abc")
            self.pool = nn.MaxPool2d(2)
            self.scores = linear(source.get_layer("scores"))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.stem(x))
            for block in (self.a, self.b, self.c):
                x = self.pool(block(x))
            return self.scores(x.mean(dim=(2, 3)))

    return source, Residual(), [("a_conv2", "a.conv2"), ("b_norm2", "b.norm2"), ("c_out", "c")]


def conv(layer: Any) -> nn.Conv2d:
    kernel, bias = layer.get_weights()
    module = nn.Conv2d(kernel.shape[2], kernel.shape[3], kernel.shape[0], padding=kernel.shape[0] // 2)
    return filled(module, kernel.transpose(3, 2, 0, 1), bias)


def linear(layer: Any) -> nn.Linear:
    kernel, bias = layer.get_weights()
    return filled(nn.Linear(*kernel.shape), kernel.T, bias)


def norm(layer: Any) -> nn.BatchNorm2d:
    gamma, beta, mean, variance = layer.get_weights()
    module = filled(nn.BatchNorm2d(len(gamma), eps=layer.epsilon), gamma, beta)
    module.running_mean.copy_(torch.from_numpy(mean))
    module.running_var.copy_(torch.from_numpy(variance))
    return module


def filled(module: Any, weight: np.ndarray, bias: np.ndarray) -> Any:
    module.to(getattr(torch, str(weight.dtype)))
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
        module.bias.copy_(torch.from_numpy(bias))
    return module
