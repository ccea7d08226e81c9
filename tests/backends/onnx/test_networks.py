"""Whole networks against their own framework's autograd, at three depths: torchvision's by torch.onnx, Keras' by tf2onnx.

Where a ReLU's input is nearly zero or two values of a pool nearly equal, rounding decides which branch float32 takes:
single entries then differ from the truth by all they are worth, in torch's own float32 as much as in any. So the error
is the one in the L2 norm, and the bar 1e-3, or twice what torch's float32 is off, where that is more.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xcam
from onnx_exports import NETWORKS, write

SMOOTH = ("convnext_tiny", "vit_b_16", "swin_t")
"""Without kinks: every single entry agrees."""


def error(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def worst(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.abs(found - exact).max() / np.abs(exact).max())


@pytest.fixture(scope="module", autouse=True)
def torchvision_goes_again() -> Iterator[None]:
    """Others test what happens without it."""
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_torchvision(name: str, tmp_path: Path) -> None:
    held = write(NETWORKS[name], tmp_path)
    model = xcam.load(tmp_path / f"{name}.onnx")
    for k, layer in enumerate(held["layers"]):
        a, exact, rounded = (held[f"{key}_{k}"] for key in ("a", "g", "g32"))
        trace = model.trace(held["x"], layer, lambda _: [held["v"]])
        assert worst(trace.outputs, held["outputs"]) < 1e-4
        if a.shape != trace.activations.shape:  # torch keeps these channels last
            a, exact, rounded = (np.moveaxis(value, -1, 1) for value in (a, exact, rounded))
        assert worst(trace.activations, a) < 1e-4, layer
        assert error(trace.gradients[0], exact) < max(1e-3, 2 * error(rounded, exact)), layer
        if name in SMOOTH or (k == 2 and name != "squeezenet1_1"):
            assert worst(trace.gradients[0], exact) < 1e-4, layer


@pytest.fixture(scope="module")
def keras() -> Any:
    from xcam_keras.backend import keras

    return keras


def randomised(keras: Any, build: Any) -> Any:
    """Weights and statistics at which values neither vanish nor explode."""
    keras.utils.set_random_seed(7)
    model = build(weights=None)
    rng = np.random.default_rng(7)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            draws = {
                "gamma": lambda c: rng.uniform(0.5, 1.5, c),
                "beta": lambda c: rng.normal(0, 0.3, c),
                "moving_mean": lambda c: rng.normal(0, 0.1, c),
                "moving_variance": lambda c: rng.uniform(0.5, 2, c),
            }
            layer.set_weights([draws[weight.name](weight.shape[0]) for weight in layer.weights])
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("VGG16", ("block1_conv2", "block3_conv3", "block5_conv3")),
        ("ResNet50V2", ("conv2_block1_out", "conv4_block1_out", "post_relu")),
        ("MobileNetV2", ("block_1_project_BN", "block_6_expand_relu", "out_relu")),
        ("EfficientNetV2B0", ("block1a_project_activation", "block4a_expand_activation", "top_activation")),
    ],
)
def test_keras_applications(keras: Any, name: str, layers: tuple[str, ...], tmp_path: Path) -> None:
    """Keras' own gradients are those of the Keras backend, which has tests of its own."""
    source = xcam.load(randomised(keras, getattr(keras.applications, name)))
    source.to_onnx(tmp_path / "model.onnx")
    model = xcam.load(tmp_path / "model.onnx")
    assert model.output_activation == source.output_activation == "softmax"
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2, *(source.input.size or ()), 3)).astype(np.float32)
    v = rng.normal(size=(2, 1000)).astype(np.float32)
    for layer in layers:
        theirs, ours = (m.trace(x, layer, lambda _: [v]) for m in (source, model))
        assert worst(ours.outputs, theirs.outputs) < 1e-4
        assert worst(ours.activations, theirs.activations) < 1e-4, layer
        assert error(ours.gradients[0], theirs.gradients[0]) < (3e-2 if name == "VGG16" else 1e-3), layer
