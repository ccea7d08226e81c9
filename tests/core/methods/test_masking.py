"""Methods that mask the image, compared with the loops of their papers."""

from __future__ import annotations

from typing import Any

import numpy as np

from quadratic import Quadratic
from quadratic_cams import batch, cam


def masked_scores(model: Quadratic, x: Any, factor: float = 1.0, noise: Any = None) -> tuple[Any, Any]:
    """Return score(x·H_c) for each channel, and score(0), by the loop of the paper."""
    scores = np.zeros(x.shape[:2])
    for n in range(len(x)):
        for c in range(x.shape[1]):
            low, high = x[n, c].min(), x[n, c].max()
            mask = factor * (x[n, c] - low) / (high - low)
            mask = mask if noise is None else mask + noise
            scores[n, c] = model.outputs((x[n] * mask)[None])[0, 0]
    return scores, model.outputs(np.zeros_like(x))[:, :1]


def test_scorecam_and_its_variants() -> None:
    model, x = Quadratic(), batch(4, 6)
    scores, zero = masked_scores(model, x)
    for options, weights in (
        ({}, scores - zero),
        ({"baseline": "none"}, scores),
        ({"softmax": True}, np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)),
    ):
        expected = np.einsum("nc,nchw->nhw", weights, x)
        np.testing.assert_allclose(cam("scorecam", model, x, **options), expected, rtol=1e-4, atol=1e-5)
    energy = (x**2).sum(axis=(2, 3))
    kept = np.where(energy == energy.max(axis=1, keepdims=True), scores - zero, 0)
    expected = np.einsum("nc,nchw->nhw", kept, x)
    np.testing.assert_allclose(cam("scorecam", model, x, max_channels=1), expected, rtol=1e-4, atol=1e-5)


def test_scorecam_gives_a_constant_channel_no_weight() -> None:
    """In some implementations the scaling of a constant channel is 0/0."""
    x = batch(4, 6, n=1)
    x[0, 1] = 3.0
    model = Quadratic()
    result = cam("scorecam", model, x)
    weights = np.array([[model.outputs((x[0] * _mask(x[0, c]))[None])[0, 0] for c in range(3)]])
    weights = weights - model.outputs(np.zeros_like(x))[:, :1]
    weights[0, 1] = 0
    np.testing.assert_allclose(result, np.einsum("nc,nchw->nhw", weights, x), rtol=1e-4, atol=1e-5)


def _mask(channel: Any) -> Any:
    return (channel - channel.min()) / (np.ptp(channel) or 1.0)


def test_iscam_masks_grow_from_one_nth_to_one() -> None:
    """In torch-cam the factors accumulate, and reach 5.5 for n = 10."""
    model, x = Quadratic(), batch(4, 6)
    parts = [masked_scores(model, x, (i + 1) / 4) for i in range(4)]
    weights = np.mean([scores - zero for scores, zero in parts], axis=0)
    result = cam("iscam", model, x, n=4)
    np.testing.assert_allclose(result, np.einsum("nc,nchw->nhw", weights, x), rtol=1e-4, atol=1e-5)


def test_sscam_averages_over_noisy_masks() -> None:
    model, x = Quadratic(), batch(4, 6)
    noise = 0.5 * np.random.default_rng(7).normal(size=(3, 4, 6)).astype(np.float32)
    parts = [masked_scores(model, x, 1.0, delta) for delta in noise]
    weights = np.mean([scores - zero for scores, zero in parts], axis=0)
    result = cam("sscam", model, x, n=3, std=0.5, seed=7)
    np.testing.assert_allclose(result, np.einsum("nc,nchw->nhw", weights, x), rtol=1e-4, atol=1e-5)
