"""Diagnosis by values alone: each cause is detected in values that it produced, and only there."""

from __future__ import annotations

import numpy as np
import torch

from xcam.comparison import value_checks
from xcam.comparison.diagnosis import half_precision

A = np.random.default_rng(0).normal(size=(1, 12, 60)).astype(np.float32)
SCALE, SHIFT = np.linspace(0.8, 1.3, 12)[:, None], np.linspace(-0.2, 0.3, 12)[:, None]
ORDER = np.random.default_rng(1).permutation(12)
NOISE = np.random.default_rng(2).normal(size=A.shape)


def f32(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)


def test_channels_in_another_order_with_a_scale_and_an_offset() -> None:
    order = value_checks.correlated_order(A, f32(A[:, ORDER] * SCALE + SHIFT))
    np.testing.assert_array_equal(order, np.argsort(ORDER))
    for b in (A, f32(A * SCALE + SHIFT), f32(A + 0.1 * NOISE), f32(A[:, ORDER] + 0.1 * NOISE)):
        assert value_checks.correlated_order(A, b) is None


def test_a_scale_and_an_offset_of_each_channel() -> None:
    scale, shift, left = value_checks.affine(A, f32(A * SCALE + SHIFT))
    np.testing.assert_allclose(scale, SCALE[:, 0], atol=1e-6)
    np.testing.assert_allclose(shift, SHIFT[:, 0], atol=1e-6)
    assert np.abs(left).max() < 1e-6
    clipped = [np.maximum(v, 0) for v in (A, f32(A * SCALE + SHIFT))]
    scale, shift, _ = value_checks.affine(clipped[0], clipped[1])
    np.testing.assert_allclose(scale, SCALE[:, 0], atol=1e-5)
    np.testing.assert_allclose(shift, SHIFT[:, 0], atol=1e-5)
    assert (value_checks.live(*clipped) == (clipped[0] > 0) & (clipped[1] > 0)).all()
    assert (value_checks.live(clipped[0], clipped[1], both=False) == (clipped[1] > 0)).all()
    assert value_checks.live(A, A).all()


def test_another_epsilon_of_a_layer_normalisation() -> None:
    x = A * np.linspace(0.1, 2, 60)
    gamma, beta = SCALE, SHIFT

    def normed(epsilon: float) -> np.ndarray:
        return f32((x - x.mean(1)) / np.sqrt(x.var(1) + epsilon) * gamma + beta)

    one, other = normed(1e-6), normed(1e-3)
    undone = value_checks.per_position(one, other)
    assert undone is not None
    assert np.abs(undone - one).max() < 0.05 * np.abs(other - one).max()
    noisy = f32(A + 0.01 * NOISE)
    undone = value_checks.per_position(A, noisy)
    assert undone is not None
    assert np.abs(undone - A).max() > 0.2 * np.abs(noisy - A).max()


def test_half_precision() -> None:
    half = A.astype(np.float16).astype(np.float32)
    assert (
        value_checks.half_on_one_side(A, half) == value_checks.half_on_one_side(half, A) == half_precision("float16")
    )
    assert value_checks.half_on_one_side(A, A + 1e-3) is value_checks.half_on_one_side(half, half) is None
    weights = np.random.default_rng(4).normal(size=(12, 40)).astype(np.float32)
    x = np.random.default_rng(5).normal(size=(1, 40, 60)).astype(np.float32)
    for dtype in ("float16", "bfloat16"):
        short = torch.from_numpy(weights).to(getattr(torch, dtype)).float().numpy()
        cause = value_checks.rounded(weights @ x, short @ x)
        assert cause is not None
        assert cause.code == "half-precision"
        assert f"rounded to {dtype}: the difference is" in cause.text
        assert 0.8 < float(cause.text.split(" is ")[1].split()[0]) < 1.25
    assert value_checks.rounded(A, f32(A + 2e-2 * NOISE)) is None  # too large
    assert value_checks.rounded(A, f32(A + 2e-6 * NOISE)) is None  # too small
    assert value_checks.rounded(A, f32(A * (1 - 1e-3 * SCALE))) is None  # with a structure
