"""The layer at which two models begin to differ, and the likely cause.

Along corresponding layers the relative error grows as rounding accumulates. Where it jumps, there is another cause. The
cause is diagnosed from the values themselves (`value_checks`), or by running the second model with the suspected mistake
undone (`rerun_checks`): if the error disappears, the mistake is confirmed.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from xcam.comparison import rerun_checks, value_checks
from xcam.comparison.alignment import LayerSample, Match, same_value_after
from xcam.comparison.diagnosis import Diagnosis
from xcam.comparison.rerun_checks import ComparedModel
from xcam.errors import XcamWarning, first_line

ROUNDING = 1e-4
"""The tolerance for activations of equal weights, relative to their largest magnitude."""
SUSPECT = 1e-5
"""The threshold where the heatmaps or the class scores are known to differ."""
JUMP = 10.0
"""An error that grows by this factor at one layer does not come from the layers before it."""

Check = Callable[[], Diagnosis | None]


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
    """Return the likely cause of the difference at a match, and a note for each check that failed.

    A check that raises an error does not hide the results of the others.
    """
    notes: list[str] = []
    for name, check in _checks(first, second, matches, index, models):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", XcamWarning)
                cause = check()
        except Exception as error:
            notes.append(f"the check for {name} failed: {first_line(error)}")
        else:
            if cause is not None:
                return cause, notes
    return None, notes


def _checks(
    first: Sequence[LayerSample],
    second: Sequence[LayerSample],
    matches: Sequence[Match],
    index: int,
    models: tuple[ComparedModel, ComparedModel],
) -> Iterator[tuple[str, Check]]:
    """Yield the checks that apply to a match, the most certain first, each with its name."""
    here, before = matches[index], matches[index - 1] if index else None
    a, b = first[here.first], second[here.second]
    a_before, b_before = (first[before.first], second[before.second]) if before else (None, None)
    between = [*first[before.first + 1 if before else 0 : here.first], *same_value_after(first, here.first)]
    between += [*second[before.second + 1 if before else 0 : here.second], *same_value_after(second, here.second)]
    kinds = " ".join(sample.layer.kind for sample in between).lower()
    spatial = next((m for m in reversed(matches[:index]) if first[m.first].is_spatial), None)
    mismatch = rerun_checks.LayerMismatch(a, b, a_before, models)
    is_start = all(first[m.first].shape[0] == (models[0].spec.channels or 1) for m in matches[:index])

    yield "another order", lambda: value_checks.reordered(a, b, first[spatial.first] if spatial else None)
    if a_before is not None and b_before is not None:
        pairs = (a_before.values, a.values), (b_before.values, b.values)
        yield "another activation", lambda: value_checks.activations(*pairs)
    yield "half precision", lambda: value_checks.half_on_one_side(a.values, b.values)
    if is_start:
        yield "another input", lambda: rerun_checks.input_changes(mismatch)
    yield "another interpolation", lambda: value_checks.interpolation(a_before, a, kinds)
    yield "another padding", lambda: rerun_checks.padding(mismatch)
    if "norm" in kinds and "batchnorm" not in kinds:
        yield "layer normalisation", lambda: value_checks.per_position(a.values, b.values)
    yield "rounding", lambda: value_checks.rounded(a.values, b.values, is_start)
    yield "scale and offset", lambda: value_checks.per_channel(a.values, b.values, "batchnorm" in kinds)
    if spatial is not None and len(a.shape) == 1:
        flattened = second[spatial.second].layer
        yield "another flattening", lambda: rerun_checks.flattening(mismatch, flattened)
