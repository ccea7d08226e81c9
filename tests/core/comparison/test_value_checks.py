"""Causes told from values alone: each from values that were made by it, and none from values that were not."""

from __future__ import annotations

import numpy as np
import pytest

from xcam import Layer
from xcam.comparison import value_checks
from xcam.comparison.alignment import LayerSample, sketch

A = np.random.default_rng(0).normal(size=(1, 12, 60)).astype(np.float32)
SCALE, SHIFT = np.linspace(0.8, 1.3, 12)[:, None], np.linspace(-0.2, 0.3, 12)[:, None]
ORDER = np.random.default_rng(1).permutation(12)
NOISE = np.random.default_rng(2).normal(size=A.shape)


def f32(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)


def held(values: np.ndarray) -> LayerSample:
    return sketch(Layer("a", "Conv", values.shape[1:]), values)


def test_channels_in_another_order() -> None:
    for b in (A[:, ORDER], f32(A[:, ORDER] * SCALE + SHIFT)):
        assert value_checks.reordered(held(A), held(b), None) == "its channels stand in another order"
    for b in (A, f32(A * SCALE + SHIFT), f32(A + 0.1 * NOISE), f32(A[:, ORDER] + 0.1 * NOISE)):
        assert value_checks.reordered(held(A), held(b), None) == ""


def test_a_vector_in_another_order_was_flattened_so_or_not() -> None:
    maps = np.random.default_rng(3).normal(size=(1, 4, 3, 5)).astype(np.float32)
    first, last = (v.reshape(1, 60) for v in (maps, np.moveaxis(maps, 1, -1)))
    other = first[:, np.random.default_rng(4).permutation(60)]
    for a, b in ((first, last), (last, first)):
        assert value_checks.reordered(held(a), held(b), held(maps)) == value_checks.FLATTENED
        assert value_checks.reordered(held(a), held(b), None) == "its values stand in another order"
    assert value_checks.reordered(held(first), held(other), held(maps)) == "its values stand in another order"


def test_scaled_channels() -> None:
    normed = value_checks.NORMED
    assert value_checks.per_channel(A, f32(A * SCALE + SHIFT), False) == normed
    assert value_checks.per_channel(A, f32(1.5 * A), False) == "everything multiplied by 1.5"
    assert value_checks.per_channel(A, f32(1.5 * A), True) == normed
    assert value_checks.per_channel(A, f32(0.9995 * A), False) == normed  # epsilon, where all variances are alike
    assert value_checks.per_channel(A, f32(A + 0.01 * NOISE), False) == ""
    assert value_checks.per_channel(A, f32(A * (1 + 4e-4 * NOISE)), False) == ""  # small as it is
    relu = [np.maximum(v, 0) for v in (A, f32(A * SCALE + SHIFT))]
    assert value_checks.per_channel(*relu, False) == normed  # seen where neither is cut off


def test_another_epsilon_of_a_layer_normalisation() -> None:
    x = A * np.linspace(0.1, 2, 60)
    gamma, beta = SCALE, SHIFT

    def normed(epsilon: float) -> np.ndarray:
        return f32((x - x.mean(1)) / np.sqrt(x.var(1) + epsilon) * gamma + beta)

    found = value_checks.per_position(normed(1e-6), normed(1e-3))
    assert found == "each position scaled by itself: the epsilon of a layer normalisation"
    assert value_checks.per_position(A, f32(A + 0.01 * NOISE)) == ""
    assert value_checks.per_position(A, f32(A * SCALE)) == ""


def test_half_precision() -> None:
    half = A.astype(np.float16).astype(np.float32)
    assert value_checks.halved(A, half) == value_checks.halved(half, A) == value_checks.REDUCED
    assert value_checks.halved(A, A + 1e-3) == value_checks.halved(half, half) == ""
    assert value_checks.rounded(A, f32(A + 1e-3 * NOISE), False) == value_checks.REDUCED
    assert value_checks.rounded(A, f32(A + 5e-3 * NOISE), True) == value_checks.REDUCED
    assert value_checks.rounded(A, f32(A + 5e-3 * NOISE), False) == ""  # as large, it came from the start on
    assert value_checks.rounded(A, f32(A * (1 - 1e-3 * SCALE)), True) == ""  # with a structure
    assert (
        value_checks.rounded(A, f32(A * (1 + 5e-4 * (SCALE - 1))), True) == value_checks.REDUCED
    )  # weights, rounded
    assert value_checks.rounded(A, f32(A * (1 + 1e-2 * (SCALE - 1))), True) == ""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ReLU", "leaky ReLU 0.1"),
        ("exact GELU", "tanh GELU"),
        ("ReLU6", "ReLU"),
        ("SiLU", "hard swish"),
        ("none", "ReLU"),
    ],
)
def test_another_activation(one: str, other: str) -> None:
    z = 4 * A
    y = f32(z + 1e-5 * NOISE)  # rounding on the way here: each side is held against its own
    a, b = f32(value_checks.ACTIVATIONS[one](z)), f32(value_checks.ACTIVATIONS[other](y))
    assert value_checks.activations((z, a), (y, b)) == f"another activation: {one} against {other}"
    assert value_checks.activations((z, a), (y, f32(value_checks.ACTIVATIONS[one](y)))) == ""
    assert value_checks.activations((z, a), (y, f32(b + 0.01 * NOISE))) == ""


def test_interpolation() -> None:
    small, large = (held(np.zeros((1, 3, n, n), np.float32)) for n in (4, 8))
    assert value_checks.interpolation(None, large, "upsampling2d conv2d").startswith("another interpolation")
    assert value_checks.interpolation(small, large, "conv2d").startswith(
        "another interpolation"
    )  # by a function, not a layer
    assert value_checks.interpolation(small, large, "convtranspose2d") == ""
    assert (
        value_checks.interpolation(large, small, "conv2d") == value_checks.interpolation(small, small, "conv2d") == ""
    )
