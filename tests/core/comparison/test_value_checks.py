"""Diagnosis by values alone: each cause is detected in values that it produced, and only there."""

from __future__ import annotations

import numpy as np
import pytest

from xcam import Layer
from xcam.comparison import Diagnosis, value_checks
from xcam.comparison.alignment import LayerSample, sample
from xcam.comparison.diagnosis import FLATTENING, half_precision

A = np.random.default_rng(0).normal(size=(1, 12, 60)).astype(np.float32)
SCALE, SHIFT = np.linspace(0.8, 1.3, 12)[:, None], np.linspace(-0.2, 0.3, 12)[:, None]
ORDER = np.random.default_rng(1).permutation(12)
NOISE = np.random.default_rng(2).normal(size=A.shape)


REORDERED = Diagnosis("value-order", "its values are in another order")


def f32(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)


def sampled(values: np.ndarray) -> LayerSample:
    return sample(Layer("a", "Conv", values.shape[1:]), values)


def test_channels_in_another_order() -> None:
    for b in (A[:, ORDER], f32(A[:, ORDER] * SCALE + SHIFT)):
        assert value_checks.reordered(sampled(A), sampled(b), None) == Diagnosis(
            "channel-order", "its channels are in another order"
        )
    for b in (A, f32(A * SCALE + SHIFT), f32(A + 0.1 * NOISE), f32(A[:, ORDER] + 0.1 * NOISE)):
        assert value_checks.reordered(sampled(A), sampled(b), None) is None


def test_a_vector_in_another_order_may_be_flattened_in_another_order() -> None:
    maps = np.random.default_rng(3).normal(size=(1, 4, 3, 5)).astype(np.float32)
    first, last = (v.reshape(1, 60) for v in (maps, np.moveaxis(maps, 1, -1)))
    other = first[:, np.random.default_rng(4).permutation(60)]
    for a, b in ((first, last), (last, first)):
        assert value_checks.reordered(sampled(a), sampled(b), sampled(maps)) == FLATTENING
        assert value_checks.reordered(sampled(a), sampled(b), None) == REORDERED
    assert value_checks.reordered(sampled(first), sampled(other), sampled(maps)) == REORDERED


def test_scaled_channels() -> None:
    normalised = Diagnosis("batchnorm-statistics", value_checks.SCALED)
    scaled = Diagnosis("channel-scale", value_checks.SCALED)
    factor = Diagnosis("constant-factor", "all values are multiplied by 1.5")
    assert value_checks.per_channel(A, f32(A * SCALE + SHIFT), False) == scaled
    assert value_checks.per_channel(A, f32(A * SCALE + SHIFT), True) == normalised
    assert value_checks.per_channel(A, f32(1.5 * A), False) == factor
    assert value_checks.per_channel(A, f32(1.5 * A), True) == normalised
    assert value_checks.per_channel(A, f32(0.9995 * A), False) == scaled  # epsilon, where all variances are equal
    assert value_checks.per_channel(A, f32(A + 0.01 * NOISE), False) is None
    assert value_checks.per_channel(A, f32(A * (1 + 4e-4 * NOISE)), False) is None  # small as it is
    relu = [np.maximum(v, 0) for v in (A, f32(A * SCALE + SHIFT))]
    assert value_checks.per_channel(*relu, False) == scaled  # visible where neither is clipped


def test_another_epsilon_of_a_layer_normalisation() -> None:
    x = A * np.linspace(0.1, 2, 60)
    gamma, beta = SCALE, SHIFT

    def normed(epsilon: float) -> np.ndarray:
        return f32((x - x.mean(1)) / np.sqrt(x.var(1) + epsilon) * gamma + beta)

    assert value_checks.per_position(normed(1e-6), normed(1e-3)) == value_checks.LAYERNORM
    assert value_checks.per_position(A, f32(A + 0.01 * NOISE)) is None
    assert value_checks.per_position(A, f32(A * SCALE)) is None


def test_half_precision() -> None:
    half = A.astype(np.float16).astype(np.float32)
    assert (
        value_checks.half_on_one_side(A, half) == value_checks.half_on_one_side(half, A) == half_precision("float16")
    )
    assert value_checks.half_on_one_side(A, A + 1e-3) is value_checks.half_on_one_side(half, half) is None
    assert value_checks.rounded(A, f32(A + 1e-3 * NOISE), False) == half_precision("bfloat16")
    assert value_checks.rounded(A, f32(A + 5e-3 * NOISE), True) == half_precision("bfloat16")
    assert value_checks.rounded(A, f32(A + 5e-3 * NOISE), False) is None  # too large for a later layer
    assert value_checks.rounded(A, f32(A * (1 - 1e-3 * SCALE)), True) is None  # with a structure
    assert value_checks.rounded(A, f32(A * (1 + 5e-4 * (SCALE - 1))), True) == half_precision(
        "float16"
    )  # weights, rounded
    assert value_checks.rounded(A, f32(A * (1 + 1e-2 * (SCALE - 1))), True) is None


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
    y = f32(z + 1e-5 * NOISE)  # rounding before the layer: each side is compared with its own input
    a, b = f32(value_checks.ACTIVATIONS[one](z)), f32(value_checks.ACTIVATIONS[other](y))
    assert value_checks.activations((z, a), (y, b)) == Diagnosis(
        "activation", f"another activation: {one} against {other}"
    )
    assert value_checks.activations((z, a), (y, f32(value_checks.ACTIVATIONS[one](y)))) is None
    assert value_checks.activations((z, a), (y, f32(b + 0.01 * NOISE))) is None


def test_interpolation() -> None:
    small, large = (sampled(np.zeros((1, 3, n, n), np.float32)) for n in (4, 8))
    expected = Diagnosis(
        "interpolation", "another interpolation: nearest against linear, or another alignment of corners"
    )
    assert value_checks.interpolation(None, large, "upsampling2d conv2d") == expected
    assert value_checks.interpolation(small, large, "conv2d") == expected  # by a function, not a layer
    assert value_checks.interpolation(small, large, "convtranspose2d") is None
    assert value_checks.interpolation(large, small, "conv2d") is None
    assert value_checks.interpolation(small, small, "conv2d") is None
