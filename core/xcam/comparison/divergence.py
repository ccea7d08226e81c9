"""Where two models begin to differ, and why.

Along aligned layers the relative error grows as rounding adds up. Where it jumps, something else is the cause; what that
is likely to be is told from the values themselves (`evidence`), or by running the second model as the suspected mistake
would have it (`trials`): if the error goes away, that was it.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterator, Sequence

import numpy as np

from xcam.comparison import rerun_checks, value_checks
from xcam.comparison.alignment import LayerSample, Match, handing_on
from xcam.contract import Array, Model
from xcam.errors import XcamWarning

ROUNDING = 1e-4
"""Activations of the same weights agree to this share of their largest magnitude (the design's tolerance)."""
SUSPECT = 1e-5
"""What is looked at where the heatmaps or the class scores are known to differ."""
JUMP = 10.0
"""A difference that grows by this factor at one layer did not come from the layers before it."""


def first_jump(errors: Sequence[float], least: float = ROUNDING) -> int | None:
    """The place where the error jumps beyond what rounding explains; None where it never does.

    least: errors up to this are rounding.

    A difference that is gone again in what follows (a vector in another order, which the next layer goes along with) is
    none.
    """
    for place, now in enumerate(errors):
        before = max((_settled(errors[k : min(k + 4, place)]) for k in range(place)), default=0.0)
        if now > least and now > JUMP * before:
            after = errors[place + 1 :]
            lasting = max(errors[-1], float(np.median(after)) if after else now)
            if lasting > JUMP * max(before, 1e-6):
                return place
    return None


def _settled(errors: Sequence[float]) -> float:
    """The error of the first of some neighbouring layers, as far as the others keep it: nearly closed sigmoids raise it
    to many times itself, for one layer."""
    first, *others = errors
    return min(first, statistics.median_low(others)) if others else first


def causes(
    first: Sequence[LayerSample],
    second: Sequence[LayerSample],
    matches: Sequence[Match],
    place: int,
    models: tuple[Model, Model],
    x: tuple[Array, Array],
) -> Iterator[str]:
    """Likely causes of the difference at one of the matches, in words, the surest first; an empty string wherever the
    evidence fits none."""
    here, before = matches[place], matches[place - 1] if place else None
    a, b = first[here.first], second[here.second]
    z, y = (first[before.first], second[before.second]) if before else (None, None)
    between = [*first[before.first + 1 if before else 0 : here.first], *handing_on(first, here.first)]
    between += [*second[before.second + 1 if before else 0 : here.second], *handing_on(second, here.second)]
    kinds = " ".join(sketch.layer.kind for sketch in between).lower()
    spread = next((m for m in reversed(matches[:place]) if first[m.first].is_spread), None)

    yield value_checks.reordered(a, b, first[spread.first] if spread else None)
    if z is not None and y is not None:
        yield value_checks.activations((z.values, a.values), (y.values, b.values))
    yield value_checks.halved(a.values, b.values)
    site = rerun_checks.LayerMismatch(a, b, z, models, x)
    start = all(first[m.first].shape[0] == models[0].input.channels for m in matches[:place])
    yield _tried(rerun_checks.picture, site) if start else ""
    yield value_checks.interpolation(z, a, kinds)
    yield _tried(rerun_checks.shift, site)
    by_layer = "norm" in kinds and "batchnorm" not in kinds
    yield value_checks.per_position(a.values, b.values) if by_layer else ""
    yield value_checks.rounded(a.values, b.values, start)
    yield value_checks.per_channel(a.values, b.values, "batchnorm" in kinds)
    if spread is not None and len(a.shape) == 1:
        yield _tried(rerun_checks.flattening, site, second[spread.second].layer)


def _tried(trial: rerun_checks.Trial, *args: object) -> str:
    """What a trial finds; nothing where the model cannot be run so, whatever it raises: the answer stands without it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", XcamWarning)
            return trial(*args)
    except Exception:
        return ""
