"""Means with confidence intervals from one number per image, and ranks of methods.

Bootstrap over images (Efron and Tibshirani 1993, chapter 13), percentile intervals. Every method is resampled with the
same images, so that differences are paired.
"""

from __future__ import annotations

import numpy as np

from xcam.methods.inputs import generator
from xcam.methods.maps import Array

RESAMPLES = 2000
CELLS = 4_000_000
"""Numbers drawn at once, over all resamples: a limit on memory."""


def interval(values: Array, level: float = 0.95, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Return the percentile interval of the mean.

    Args:
        values: One number per image, [n]; NaN values are left out.
        level: The confidence level, between 0 and 1.
        seed: The seed of the resampling.
        resamples: The number of resamples.

    Returns:
        The lower and upper end; NaN where fewer than two values are left.
    """
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return float("nan"), float("nan")
    random, n = generator(seed), len(known)
    size = max(1, CELLS // n)
    means = [
        known[random.integers(n, size=(min(size, resamples - start), n))].mean(axis=1)
        for start in range(0, resamples, size)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean(values: Array) -> float:
    """Return the mean of the finite values; NaN where there are none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def ranks(means: Array, better: str) -> Array:
    """Return the rank of each mean, 1 for the best; equal means share their mean rank. NaN stays NaN."""
    signed = -means if better == "higher" else means
    result = np.full(len(means), np.nan)
    for k, value in enumerate(signed):
        if np.isfinite(value):
            result[k] = (signed < value).sum() + ((signed == value).sum() + 1) / 2
    return result
