"""The model-parameter randomisation test: a map that stays the same with shuffled weights does not explain the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xcam.evaluation.registry import measure
from xcam.methods.maps import Array

BINS = 100
"""Bins of the histogram whose entropy is the complexity of a map, as in the paper's experiments."""


@measure(
    "randomization",
    better="lower",
    source="Adebayo et al. 2018 (cascading randomisation)",
    passes="stages explanations, of networks with shuffled weights",
    bounds=(-1.0, 1.0),
    default=False,
    ranks=False,
)
def randomization(cams: Array, shuffled: Sequence[Array]) -> Array:
    """Spearman's rank correlation of the map with the map of the shuffled network, the mean over the stages.

    The weights of the last layer are shuffled first, then those of the layers before it too, down to the first. 1 means
    that the map does not depend on the weights. Maps are taken before ReLU. NaN for a constant map; a map that becomes
    constant counts as 0.
    """
    if not len(shuffled):
        return np.full(len(cams), np.nan)
    correlation = np.mean([_spearman(cams, stage) for stage in shuffled], axis=0)
    flat = np.ptp(cams.reshape(len(cams), -1), axis=1) == 0
    return np.where(flat, np.nan, correlation)


@measure(
    "efficient-randomization",
    better="higher",
    source="Hedström et al. 2024 (eMPRT)",
    passes="stages explanations, of networks with shuffled weights",
    bounds=(-np.inf, np.inf),
    default=False,
    ranks=False,
)
def efficient_randomization(cams: Array, shuffled: Sequence[Array]) -> Array:
    """(H(map of the fully shuffled network) − H(map)) / H(map): how much more complex the map becomes; H is the entropy.

    It depends neither on the order of the layers nor on a similarity of two maps, which noise lowers. NaN where H(map) is 0.
    """
    before, after = _entropy(cams), _entropy(shuffled[-1]) if len(shuffled) else np.full(len(cams), np.nan)
    return np.divide(after - before, before, out=np.full(len(cams), np.nan), where=before > 0)


def ranks(values: Array) -> Array:
    """Return the ranks within each row; equal values share their mean rank."""
    result = np.empty(values.shape)
    for row, numbers in zip(result, values, strict=True):
        _, index, counts = np.unique(numbers, return_inverse=True, return_counts=True)
        row[:] = (np.cumsum(counts) - (counts - 1) / 2)[index]
    return result


def _spearman(first: Array, second: Array) -> Array:
    a, b = (ranks(m.reshape(len(m), -1)) for m in (first, second))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(axis=1), norm, out=np.zeros(len(a)), where=norm > 0)


def _entropy(maps: Array) -> Array:
    """Return −Σ p·ln p of each map's histogram."""
    result = np.zeros(len(maps))
    for k, values in enumerate(maps):
        p = np.histogram(values, BINS)[0] / values.size
        result[k] = -(p[p > 0] * np.log(p[p > 0])).sum()
    return result
