"""A fast first look: contributions estimated from gradients, without swapping values.

Attribution patching (Nanda 2023): to first order, the value at a location changes the scores at the end by ⟨gradient, change of the
value⟩. From one forward pass of each model, and one backward pass of the second, or of both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xcam.comparison.blame.locations import Location
from xcam.comparison.blame.measure import contributions
from xcam.comparison.blame.swaps import Run


def remaining(first: Run, second: Run, locations: Sequence[Location], whole: float) -> list[float]:
    """Return estimates of the difference of class scores that is left, for the first model's value at each location.

    Args:
        first: The first model.
        second: The second model; one of the two has gradients at the locations.
        locations: The locations.
        whole: The whole difference.

    Returns:
        One number for the input, each location and the output.
    """
    results = [whole]
    for location in locations:
        a, b = first.traces[location.first.name], second.traces[location.second.name]
        gradients = [trace.gradients[0] for trace in (a, b) if trace.gradients]
        gradient = np.mean([each.astype(np.float64) for each in gradients], axis=0)
        carried = float((gradient * (b.activations.astype(np.float64) - a.activations)).sum())
        results.append(whole - carried)
    return [*results, 0.0]


def estimated(first: Run, second: Run, locations: Sequence[Location], whole: float) -> list[float]:
    """Return the estimated contribution of each stretch; see `remaining`."""
    return contributions(remaining(first, second, locations, whole))
