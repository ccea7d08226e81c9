"""From a number for each picture to a mean with its confidence interval, and to an order of methods.

Bootstrap over pictures (Efron and Tibshirani 1993, chapter 13): percentile intervals. Every method is resampled with
the same pictures, so that differences are those of pairs.
"""

from __future__ import annotations

import numpy as np

from xcam.methods.inputs import generator
from xcam.methods.maps import Array

RESAMPLES = 2000
CELLS = 4_000_000
"""Places in the resamples that are drawn at once."""


def interval(values: Array, level: float = 0.95, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The percentile interval of the mean of [n] values; NaN values are left out. NaN where fewer than two are left."""
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return float("nan"), float("nan")
    random, n = generator(seed), len(known)
    together = max(1, CELLS // n)
    means = [
        known[random.integers(n, size=(min(together, resamples - start), n))].mean(axis=1)
        for start in range(0, resamples, together)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean(values: Array) -> float:
    """Of those that are numbers; NaN where none is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def places(means: Array, better: str) -> Array:
    """[methods] means → places from 1 on, the best first; equal ones share the mean of theirs. NaN stays NaN."""
    signed = -means if better == "higher" else means
    found = np.full(len(means), np.nan)
    for k, value in enumerate(signed):
        if np.isfinite(value):
            found[k] = (signed < value).sum() + ((signed == value).sum() + 1) / 2
    return found
