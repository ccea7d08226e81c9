"""Layers of a quantised model, computed from given values; and the noise that rounding its weights must add."""

from __future__ import annotations

import numpy as np

import xcam
from openvino_small import quantised
from xcam_openvino.demo import build

NAMES = ["conv1/relu", "pool", "conv2/relu", "add", "mean"]


def images() -> np.ndarray:
    return np.random.default_rng(1).uniform(-2, 2, (3, 3, 12, 16)).astype(np.float32)


def test_the_precision_is_that_of_most_values() -> None:
    assert xcam.load(quantised()).precision == "uint8"
    assert xcam.load(build()).precision is None


def test_from_the_models_own_values_each_layer_has_its_own() -> None:
    model, x = xcam.load(quantised()), images()
    values = model.activations(x, NAMES)
    assert list(model.stretch_sources(["add"], NAMES)) == ["pool", "conv2/relu"]
    results = model.stretches(x, values, NAMES)
    for name in NAMES:
        step = {"conv1/relu": 15 / 255, "conv2/relu": 150 / 255}.get(name, 1e-4)
        assert np.abs(results[name].value - values[name]).max() <= 1.01 * step, (
            name
        )  # a value in the middle of two steps
        assert np.mean(results[name].value != values[name]) < 0.01 or step == 1e-4
    moved = model.stretches(x, {**values, "pool": 2 * values["pool"]}, ["add"])["add"].value
    np.testing.assert_allclose(moved - results["add"].value, values["pool"], atol=1e-4)


def test_a_value_before_its_rounding() -> None:
    model, x = xcam.load(quantised()), images()
    stretch = model.stretches(x, {}, ["conv1/relu"])["conv1/relu"]
    rounding = stretch.quantization
    assert rounding is not None
    assert stretch.unrounded is not None
    assert rounding.dtype == "uint8"
    np.testing.assert_allclose(rounding.scale, 15 / 255, rtol=1e-6)
    integers = np.clip(np.rint(stretch.unrounded / rounding.scale) + rounding.zero_point, 0, 255)
    np.testing.assert_allclose(stretch.value, (integers - rounding.zero_point) * rounding.scale, atol=1e-4)
    assert stretch.unrounded.max() > 15  # it is not clipped


def test_the_noise_of_rounded_weights() -> None:
    """Each weight has an error of step²/12, which its input scales."""
    model, x = xcam.load(quantised()), images()
    stretch = model.stretches(x, {}, ["conv1"])["conv1"]
    kernel = next(
        np.array(node.data)
        for node in quantised().get_ordered_ops()
        if node.get_type_name() == "Constant" and list(node.shape) == [6, 3, 3, 3]
    )
    limit = next(
        np.array(node.data) * 127
        for node in quantised().get_ordered_ops()
        if node.get_type_name() == "Constant" and list(node.shape) == [6, 1, 1, 1] and np.array(node.data).min() > 0
    )
    assert np.abs(kernel).max() == 127
    step = limit * 2 / 255
    padded = np.pad(x**2, ((0, 0), (0, 0), (1, 1), (1, 1))).sum(1)
    inputs = sum(padded[:, i : i + 12, j : j + 16] for i in range(3) for j in range(3))
    expected = float(np.mean(step**2) / 12 * np.mean(inputs))
    assert stretch.noise is not None
    assert 0.6 < stretch.noise / expected < 1.6
    assert model.stretches(x, model.activations(x, ["conv2/relu", "pool"]), ["add"])["add"].noise is None
