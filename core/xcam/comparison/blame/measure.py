"""The arithmetic of contributions: pure functions of class scores, maps and series of differences."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Sequence

import numpy as np

from xcam.comparison.blame.data import Interval
from xcam.contract import Array

DISAGREES = 0.25
"""Both directions disagree where they differ by this share of the whole difference."""


class ScoreDifference:
    """The difference of class scores from those of the first model, along one direction.

    The direction is that of the second model's own difference. The difference is linear in the scores along it: contributions
    add up, and a gradient estimates them.
    """

    def __init__(self, reference: Array, scores: Array) -> None:
        """Fix the direction.

        Args:
            reference: The scores of the first model, of any shape.
            scores: Those of the second model, of the same shape.
        """
        self._reference = np.ravel(reference).astype(np.float64)
        difference = np.ravel(scores) - self._reference
        norm = float(np.linalg.norm(difference))
        largest = float(np.abs(self._reference).max(initial=0)) or 1.0
        direction = difference / norm if norm > 0 else np.zeros_like(difference)
        self._weights = direction / (np.sqrt(len(direction)) * largest)

    def __call__(self, scores: Array) -> float:
        """Return the difference; of the second model's scores: the root of the mean square, relative to the largest score."""
        return float((np.ravel(scores) - self._reference) @ self._weights)

    @property
    def gradient(self) -> Array:
        """The derivative with respect to the scores, float32 [K]."""
        return self._weights.astype(np.float32)


def contributions(remaining: Sequence[float]) -> list[float]:
    """Return the drop from each difference that is left to the next.

    Args:
        remaining: The difference at the end, for the first model's value at the input, at each location, and at the output.

    Returns:
        One number for each stretch; their sum is the first difference minus the last. NaN next to a NaN.
    """
    return [float(before - after) for before, after in itertools.pairwise(remaining)]


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return the mean of the finite values, with Student's t interval."""
    known = np.asarray([value for value in values if np.isfinite(value)])
    if not len(known):
        return Interval(float("nan"))
    mean = float(known.mean())
    if len(known) < 2:
        return Interval(mean)
    t = float(importlib.import_module("scipy.special").stdtrit(len(known) - 1, (1 + level) / 2))
    half = t * float(known.std(ddof=1)) / math.sqrt(len(known))
    return Interval(mean, mean - half, mean + half)


def median(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return the median of the values, with the range from the smallest to the largest."""
    known = [value for value in values if not np.isnan(value)]
    if not known:
        return Interval(float("nan"))
    return Interval(float(np.median(known)), *((float(min(known)), float(max(known))) if len(known) > 1 else ()))


def disagrees(forward: float, reverse: float, whole: float) -> bool:
    """Return whether the contribution in one direction is not that in the other: False where either is NaN."""
    return abs(whole) > 0 and abs(forward - reverse) > DISAGREES * abs(whole)
