"""The layer at which two models begin to differ, and the likely cause.

Along corresponding layers the relative error grows as rounding accumulates. Where it jumps, there is another cause. The
cause is diagnosed by running the second model with a suspected mistake undone (`causes`): if the error disappears, the
mistake is proven.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from xcam.comparison import causes
from xcam.comparison.alignment import LayerSample, Match, error
from xcam.comparison.diagnosis import Diagnosis
from xcam.comparison.stretch import ComparedModel, NamePair
from xcam.errors import XcamError, first_line

ROUNDING = 1e-4
"""The tolerance for activations of equal weights, relative to their largest magnitude."""
SUSPECT = 1e-5
"""The threshold where the heatmaps or the class scores are known to differ."""
JUMP = 10.0
"""An error that grows by this factor at one layer does not come from the layers before it."""


def first_jump(errors: Sequence[float], threshold: float = ROUNDING) -> int | None:
    """Return the index at which the error jumps beyond rounding; None where it never does.

    A difference that disappears again in the following layers is ignored: for example, a vector in another order which
    the next layer's weights follow.

    Args:
        errors: The relative error of each layer.
        threshold: Errors up to this are rounding.
    """
    for index, now in enumerate(errors):
        before = max((_lasting(errors[k : min(k + 4, index)]) for k in range(index)), default=0.0)
        if now > threshold and now > JUMP * before:
            after = errors[index + 1 :]
            lasting = max(errors[-1], float(np.median(after)) if after else now)
            if lasting > JUMP * max(before, 1e-6):
                return index
    return None


def _lasting(errors: Sequence[float]) -> float:
    """Return the first of some consecutive errors, or the median of the others if it is smaller.

    An error that is large at a single layer (at a nearly saturated sigmoid, for example) does not last.
    """
    first, *others = errors
    return min(first, statistics.median_low(others)) if others else first


def diagnose(
    first: Sequence[LayerSample],
    second: Sequence[LayerSample],
    matches: Sequence[Match],
    index: int,
    models: tuple[ComparedModel, ComparedModel],
) -> tuple[Diagnosis | None, list[str]]:
    """Return the likely cause of the difference at a match, and a note for each check that failed."""
    pairs = [NamePair(first[m.first].layer.name, second[m.second].layer.name) for m in matches]
    reordered = [m.order is not None for m in matches]
    errors = [m.error for m in matches]
    errors[index] = error(first[matches[index].first].values, second[matches[index].second].values)
    try:
        scene = causes.scene_at(models, pairs, index, errors, reordered)
    except XcamError as failure:
        return None, [f"the models cannot be run again: {first_line(failure)}"]
    results, notes = causes.causes(scene)
    return (results[0] if results else None), notes
