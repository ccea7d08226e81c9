"""A blame as text, for readers who do not train models."""

from __future__ import annotations

import math

from xcam.comparison.blame.data import BlameData, Interval, usable
from xcam.report.formatting import NONE, count, number, percent


def headline(blame: BlameData) -> str:
    """Return what was found, as a headline."""
    named = len(blame.named)
    if named:
        verb = "has an error of its own" if named == 1 else "have errors of their own"
        return f"{count(named, 'location')} of {blame.names[1]} {verb}"
    if blame.verdict == "identical":
        return "No difference"
    return "No location stands out" if not blame.is_fast else "Estimated contributions"


def sentences(blame: BlameData) -> list[str]:
    """Return what was found in sentences, the most important first."""
    where = {1: "on the one image", 2: "on both images"}.get(len(blame.images), f"on all {len(blame.images)} images")
    named = blame.named
    if blame.verdict == "identical" and not named:
        return [f"Class scores and heatmaps of both models agree within rounding {where}."]
    results = []
    if blame.verdict == "identical":
        results.append(
            f"Class scores and heatmaps agree within rounding {where}, although values inside differ by more."
        )
    if named:
        shares = [f"{c.second} ({share(c.scores, blame.scores)})" for c in named]
        results.append(f"Share of the difference of the class scores: {', '.join(shares)}.")
    elif not blame.is_fast:
        results.append("The difference is the sum of many small errors: the local error of no location stands out.")
    if not named and blame.verdict != "identical":
        first = blame.ranked[0]
        results.append(
            f"The largest {'estimated ' if blame.is_fast else ''}contribution is that of {first.second}: "
            f"{share(first.scores, blame.scores)} of the difference of the class scores."
        )
    both = [next(c.culprits, c).second for c in blame.ranked if c.interacts]
    if both:
        results.append(
            f"The faults interact at {', '.join(both)}: the gain there depends on which other locations are mended (both "
            "directions disagree)."
        )
    if blame.in_first and not blame.is_fast:
        results.append(
            f"{blame.names[1]} rounds its values: they are put into {blame.names[0]}, as it would round those that it is given."
        )
    if blame.is_fast:
        results.append(
            "All contributions are estimates from gradients, for the class scores only; no value was swapped, and no cause sought."
        )
    if blame.failed:
        results.append(f"{count(len(blame.failed), 'more image')} could not be examined.")
    return results


def share(part: Interval, whole: Interval) -> str:
    """Return a part in percent of the whole, `–` where it is not known."""
    return percent(part.mean / whole.mean) if usable(part, whole) else NONE


def spread(part: Interval, whole: Interval) -> str:
    """Return the interval of a part in percent of the whole; "" for one image."""
    if not usable(part, whole) or math.isnan(part.low):
        return ""
    return f"{percent(part.low / whole.mean)} … {percent(part.high / whole.mean)}"


def mean(interval: Interval) -> str:
    """Return the mean of an interval."""
    return number(interval.mean)
