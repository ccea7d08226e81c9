"""Mistakes planted in a Keras network that is converted to ONNX: each is proven, and what no cause explains is not named."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import xcam

noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
IMAGE = np.asarray(cv2.GaussianBlur(noise, (5, 5), 1.2))


def build(
    scaling: tuple[float, float] = (1 / 255, 0.0),
    activation: str = "relu",
    approximate: bool = False,
    pooling: str = "MaxPooling2D",
    interpolation: str = "nearest",
    skip: bool = True,
    same: bool = True,
    epsilon: float = 1e-3,
    mirrored: bool = False,
) -> Any:
    from xcam_keras.backend import keras

    L = keras.layers
    x = inputs = keras.Input((32, 32, 3))
    x = L.Rescaling(*scaling, name="scaled")(x)
    x = x[:, :, ::-1] if mirrored else x
    x = L.Conv2D(8, 3, padding="same", activation=activation, name="conv1")(x)
    x = getattr(L, pooling)(2, name="pool1")(x)
    y = L.Conv2D(8, 3, padding="same", name="conv2", use_bias=False)(x)
    y = L.BatchNormalization(name="norm", epsilon=epsilon)(y)
    x = L.ReLU(name="relu")(L.Add(name="add")([x, y]) if skip else y)
    x = x if same else L.ZeroPadding2D(1, name="pad")(x)
    x = L.Conv2D(10, 3, strides=2, padding="same" if same else "valid", name="conv3")(x)
    x = L.Activation(lambda v: keras.activations.gelu(v, approximate=approximate), name="gelu")(x)
    x = L.UpSampling2D(2, interpolation=interpolation, name="up")(x)
    x = L.Conv2D(6, 3, padding="same", name="conv4")(x)
    x = L.AveragePooling2D(2, name="pool2")(x)
    x = L.Dense(4, name="dense")(L.Flatten(name="flat")(x))
    return keras.Model(inputs, x, name="net")


@cache
def weights() -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng(1)
    result = {}
    for layer in build().layers:
        arrays = [rng.normal(0, 0.25, w.shape).astype(np.float32) for w in layer.get_weights()]
        if layer.name == "norm":  # gamma, beta, mean, variance
            arrays[0], arrays[3] = np.abs(arrays[0]) + 0.5, np.abs(arrays[3]) + 0.2
        result[layer.name] = arrays
    return result


def network(changes: dict[tuple[str, int], Callable[[np.ndarray], np.ndarray]] | None = None, **options: Any) -> Any:
    """Return the network; `changes` maps (name of a layer, index of its array) to a change."""
    model = build(**options)
    for layer in model.layers:
        arrays = list(weights().get(layer.name, []))
        for (name, k), change in (changes or {}).items():
            if name == layer.name:
                arrays[k] = change(arrays[k])
        if arrays:
            layer.set_weights(arrays)
    return model


@cache
def first() -> Any:
    return xcam.load(network(), preprocess="raw")


def flat_order(kernel: np.ndarray) -> np.ndarray:
    return kernel.reshape(8, 8, 6, 4).transpose(2, 0, 1, 3).reshape(-1, 4)


MISTAKES: list[tuple[str, str, str, dict[str, Any]]] = [
    ("input-scale", "scaled", "multiplied by 0.5 and then 127.5 is added", {"scaling": (1 / 127.5, -1.0)}),
    ("input-scale", "scaled", "multiplied by 1.004 (256 / 255)", {"scaling": (1 / 256, 0.0)}),
    ("mirrored-input", "conv1", "mirrored", {"mirrored": True}),
    ("activation", "conv1", "ReLU against ELU", {"activation": "elu"}),
    ("activation", "gelu", "exact GELU against tanh GELU", {"approximate": True}),
    ("pooling", "pool1", "maximum of 2×2 against mean of 2×2", {"pooling": "AveragePooling2D"}),
    ("missing-skip", "relu", "from pool1 is missing in the second", {"skip": False}),
    ("uneven-padding", "", "shifted", {"same": False}),
    ("batchnorm-statistics", "norm", "scale and offset", {"epsilon": 0.1}),
    ("missing-bias", "conv1", "missing in the second", {"changes": {("conv1", 1): np.zeros_like}}),
    ("missing-bias", "dense", "missing in the second", {"changes": {("dense", 1): np.zeros_like}}),
    ("flipped-kernel", "conv4", "width and height", {"changes": {("conv4", 0): lambda k: k[::-1, ::-1]}}),
    ("flipped-kernel", "conv1", "exchanged", {"changes": {("conv1", 0): lambda k: k.transpose(1, 0, 2, 3)}}),
    ("channel-order", "conv2", "another order", {"changes": {("conv2", 0): lambda k: k[..., ::-1]}}),
    ("flattening-order", "dense", "flattening", {"changes": {("dense", 0): flat_order}}),
    ("rgb-bgr", "conv1", "RGB against BGR", {"changes": {("conv1", 0): lambda k: k[:, :, ::-1]}}),
    ("", "conv1", "", {"changes": {("conv1", 0): lambda k: k + 0.02 * np.sin(np.arange(k.size)).reshape(k.shape)}}),
    ("", "conv4", "", {"changes": {("conv4", 0): lambda k: k + 0.02 * np.sin(np.arange(k.size)).reshape(k.shape)}}),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*scales its input itself")  # some of the mistakes
@pytest.mark.parametrize(("code", "layer", "text", "options"), MISTAKES, ids=[f"{m[0]} {m[2]}" for m in MISTAKES])
def test_a_mistake_is_proven(code: str, layer: str, text: str, options: dict[str, Any], tmp_path: Path) -> None:
    xcam.load(network(**options), preprocess="raw").to_onnx(tmp_path / "second.onnx")
    second = xcam.load(tmp_path / "second.onnx", preprocess="raw")
    result = xcam.compare([first(), second], IMAGE, align=True).divergences[0]
    assert result.layer is not None
    assert result.notes == ()
    if not code:
        assert result.cause is None
        return
    assert layer in result.layer
    assert result.cause is not None
    assert (result.cause.code, result.cause.proof) == (code, "rerun"), result.cause
    assert text in result.cause.text
