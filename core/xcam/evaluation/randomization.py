"""The model-parameter randomisation test: a map that stays when the weights are shuffled does not explain the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xcam.evaluation.registry import measure
from xcam.methods.maps import Array

BINS = 100
"""Of the histogram whose entropy is a map's complexity, as in the paper's experiments."""


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
    """The rank correlation (Spearman) of the map with that of the network shuffled from its end, mean over the stages.

    The weights of the last layer are shuffled, then those of the one before it too, down to the first. 1: the map does
    not depend on the weights. Maps are taken before ReLU. NaN where the map is the same everywhere; a map that becomes so counts as 0.
    """
    if not len(shuffled):
        return np.full(len(cams), np.nan)
    found = np.mean([_spearman(cams, stage) for stage in shuffled], axis=0)
    flat = np.ptp(cams.reshape(len(cams), -1), axis=1) == 0
    return np.where(flat, np.nan, found)


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
    """(H(map of the wholly shuffled network) − H(map)) / H(map): how much more complex the map becomes; H is entropy.

    No layer's order counts, and no similarity of two maps, which noise lowers. NaN where H(map) is 0.
    """
    before, after = _entropy(cams), _entropy(shuffled[-1]) if len(shuffled) else np.full(len(cams), np.nan)
    return np.divide(after - before, before, out=np.full(len(cams), np.nan), where=before > 0)


def ranks(values: Array) -> Array:
    """Each row's ranks; equal values share the mean of theirs."""
    found = np.empty(values.shape)
    for row, given in zip(found, values, strict=True):
        _, which, counts = np.unique(given, return_inverse=True, return_counts=True)
        row[:] = (np.cumsum(counts) - (counts - 1) / 2)[which]
    return found


def _spearman(first: Array, second: Array) -> Array:
    a, b = (ranks(m.reshape(len(m), -1)) for m in (first, second))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(axis=1), norm, out=np.zeros(len(a)), where=norm > 0)


def _entropy(maps: Array) -> Array:
    """−Σ p·ln p of each map's histogram."""
    found = np.zeros(len(maps))
    for k, given in enumerate(maps):
        p = np.histogram(given, BINS)[0] / given.size
        found[k] = -(p[p > 0] * np.log(p[p > 0])).sum()
    return found
