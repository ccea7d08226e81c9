"""Ablation-CAM and Recipro-CAM, compared with the loops of their papers."""

from __future__ import annotations

import numpy as np

from quadratic import Quadratic
from quadratic_cams import batch, cam


def test_ablationcam_sets_channels_to_zero_and_divides_by_the_magnitude() -> None:
    """Also for a negative score, where division by y itself would invert the map."""
    model, x = Quadratic(), batch(4, 6)
    for index in range(2):
        y = model.outputs(x)[:, index]
        weights = np.zeros(x.shape[:2])
        for c in range(3):
            without = x.copy()
            without[:, c] = 0
            weights[:, c] = (y - model.outputs(without)[:, index]) / np.abs(y)
        expected = np.einsum("nc,nchw->nhw", weights, x)
        np.testing.assert_allclose(cam("ablationcam", model, x, index), expected, rtol=1e-4, atol=1e-5)
    assert (model.outputs(x) < 0).any(), "a negative score is among the cases"


def test_reciprocam_keeps_one_position_at_a_time() -> None:
    model, x = Quadratic(), batch(4, 6)
    expected = np.zeros((2, 4, 6))
    for i, j in np.ndindex(4, 6):
        alone = np.zeros_like(x)
        alone[:, :, i, j] = x[:, :, i, j]
        expected[:, i, j] = model.outputs(alone)[:, 0]
    expected -= expected.min(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(cam("reciprocam", model, x), expected, rtol=1e-4, atol=1e-6)
