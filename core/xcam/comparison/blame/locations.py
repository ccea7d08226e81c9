"""The locations of two models: pairs of corresponding layers through which everything passes, and what lies between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xcam.comparison import alignment
from xcam.comparison.alignment import LayerSample, Match
from xcam.contract import Layer


@dataclass(frozen=True)
class Location:
    """A pair of corresponding layers."""

    first: Layer
    second: Layer
    positions: tuple[int, int]
    """The positions of both among the layers of their models."""
    names: tuple[str, ...] = ()
    """All names of the value in the second model."""


def pairs(
    samples: tuple[Sequence[LayerSample], Sequence[LayerSample]],
    matches: Sequence[Match],
    explained: tuple[str, str] = ("", ""),
) -> list[Location]:
    """Return the corresponding layers at which values can be swapped, one for each value, in execution order.

    A match of channels in another order is left out: where it is a mistake, it lies within a longer stretch; where the
    following weights have that order too, the longer stretch has no error.

    Args:
        samples: The samples of both models.
        matches: Their matches, in the order of the first model.
        explained: The explained layers: of several layers of one value, they are the location.
    """
    results = []
    for match in matches:
        indices = _chosen(samples[0], match.firsts, explained[0]), _chosen(samples[1], match.seconds, explained[1])
        a, b = samples[0][indices[0]], samples[1][indices[1]]
        cannot = any(s.layer.is_output or s.layer.folds_batch for s in (a, b))
        if match.order is None and not cannot and a.shape == b.shape and _depends(a.layer, b.layer):
            results.append(Location(a.layer, b.layer, indices, alignment.names(samples[1], match.seconds)))
    return results


def cuts(locations: Sequence[Location]) -> list[Location]:
    """Return the locations through which everything passes in both models, in the order of both."""
    results: list[Location] = []
    for location in locations:
        is_cut = not location.first.bypassed and not location.second.bypassed
        if is_cut and (not results or location.positions[1] > results[-1].positions[1]):
            results.append(location)
    return results


def thinned(locations: Sequence[Location], scores: Sequence[float], most: int) -> list[Location]:
    """Return at most `most` locations: both ends of the stretches with the largest scores.

    Args:
        locations: The locations, in order.
        scores: The score of each stretch: one more than locations, as the last ends at the output.
        most: The number of locations.
    """
    if len(locations) <= most:
        return list(locations)
    kept: set[int] = set()
    for index in np.argsort(-np.abs(np.nan_to_num(np.asarray(scores))), kind="stable"):
        ends = {int(k) for k in (index - 1, index) if 0 <= k < len(locations)}
        if len(kept | ends) <= most:
            kept |= ends
    return [locations[k] for k in sorted(kept)]


def _depends(*layers: Layer) -> bool:
    return all(layer.depends_on_input is not False and layer.reaches_output for layer in layers)


def _chosen(samples: Sequence[LayerSample], indices: Sequence[int], explained: str) -> int:
    """Return the index of the explained layer, or of the first through which everything passes, or of the first."""

    def rank(k: int) -> tuple[bool, bool]:
        return samples[k].layer.bypassed, samples[k].layer.name != explained

    return min(indices, key=rank)
