"""From contributions to named locations: which stand out, their parts, the other direction, and causes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from xcam import progress
from xcam.comparison import precision
from xcam.comparison.blame import locations, naming
from xcam.comparison.blame.causes import Cause, Causes
from xcam.comparison.blame.data import BlameData, Contribution, usable
from xcam.comparison.blame.examine import Closer, Part, Stretch
from xcam.comparison.blame.locations import Location
from xcam.comparison.blame.measure import disagrees, interval, median
from xcam.comparison.blame.walks import Walks, names, output
from xcam.comparison.correspondence import Correspondence

MATTERS = 0.1
"""Stretches that contribute this share of the difference are examined in the other direction too."""
MOST_REVERSED = 4
"""The largest number of stretches that are examined in the other direction."""

B = TypeVar("B", bound=BlameData)


def drawn(blame: B, walks: Walks, closer: Closer, correspondence: Correspondence, with_causes: bool = True) -> B:
    """Return a blame with its named locations.

    Args:
        blame: The contributions.
        walks: Their origin.
        closer: The models on a few images.
        correspondence: The corresponding layers, on these images.
        with_causes: Whether causes are sought by reruns.
    """
    findings: list[str] = []
    spans, stretches = walks.spans, list(blame.stretches)
    errors = [contribution.error.mean for contribution in stretches]
    limit = naming.threshold(errors, blame.verdict != "identical")
    reduced = _standing_out(correspondence, spans, blame.layers, findings)
    if reduced is None and naming.is_even(errors):
        findings.append("almost every stretch adds more than rounding: only much larger errors are named")
    sides = walks.subject.sides
    causes = Causes(
        (correspondence.models[0], correspondence.models[1]), (output(sides[0].model), output(sides[1].model))
    )
    for k, span in progress.steps(list(enumerate(spans)), "stretches"):
        if reduced is not None:
            parts, known = closer.costs(span, [each for each, _ in reduced[k]]), [cause for _, cause in reduced[k]]
        elif errors[k] > limit:
            parts = closer.inspect(span, limit) or [_whole(span, stretches[k])]
            known = _causes(causes, span, parts) if with_causes else [(None, ())] * len(parts)
        else:
            continue
        if parts:
            stretches[k] = _with_parts(stretches[k], parts, known, walks, blame.level)
    named = replace(blame, stretches=tuple(stretches), findings=(*blame.findings, *findings))
    return _with_opposite(named, spans, closer, walks.subject.in_first)


def _causes(causes: Causes, span: Stretch, parts: Sequence[Part]) -> list[Cause]:
    """Return the cause of each part: seen from the layer ahead of it, or from the location ahead of the part before it."""
    results = []
    for part in parts:
        starts = list(dict.fromkeys([part.start, span.start]))
        results.append(causes.of(starts, part.end, median(part.errors).mean))
    return results


Outlier = tuple[tuple[Location | None, Location | None, Sequence[float]], Cause]


def _standing_out(
    correspondence: Correspondence, spans: Sequence[Stretch], explained: tuple[str, str], findings: list[str]
) -> list[list[Outlier]] | None:
    """Return for each stretch the layers whose own error their precision does not explain, with causes.

    None where neither model has a reduced precision, or it does not explain most of the errors.
    """
    samples = correspondence.samples[0], correspondence.samples[1]
    matches = correspondence.matches[1]
    pair = correspondence.models[0], correspondence.models[1]
    examined = precision.examine(pair, samples, matches, findings)
    if examined is None or not examined.explains:
        return None
    known = locations.pairs(samples, matches, explained)
    results: list[list[Outlier]] = [[] for _ in spans]
    measured = {k: error for k, error in enumerate(examined.errors) if error is not None}
    outliers = naming.outliers(list(measured.values()))
    for index in sorted(list(measured)[n] for n in outliers):
        error = measured[index]
        end = max((p for p in known if p.positions[1] <= matches[index].second), key=lambda p: p.positions[1])
        k = next(k for k, span in enumerate(spans) if end.positions[1] <= span.span[1][1])
        ahead = max(
            (p for p in known if p.positions[1] < end.positions[1]), key=lambda p: p.positions[1], default=None
        )
        results[k].append(((ahead, end, [error.added / (error.largest or 1)]), (error.cause, ())))
    return results


def _whole(span: Stretch, contribution: Contribution) -> Part:
    """Return a stretch as its own only part."""
    return Part(span.start, span.end, (contribution.error.mean,), (), ())


def _with_parts(
    contribution: Contribution,
    parts: Sequence[Part],
    causes: Sequence[Cause],
    walks: Walks,
    level: float,
) -> Contribution:
    """Return a named stretch with its named parts; a part that is the whole stretch is not listed."""
    first, (cause, notes) = parts[0], causes[0]
    if len(parts) == 1 and names(first.stretch, walks.subject.sides)["start"] == contribution.start:
        sides = names(first.stretch, walks.subject.sides)
        if sides["second"] == contribution.second:
            return replace(contribution, named=True, cause=cause, notes=notes)
    inner = [
        Contribution(
            **names(part.stretch, walks.subject.sides),
            error=median(part.errors),
            scores=interval(part.scores, level),
            heatmap=interval(part.heatmap, level),
            named=True,
            cause=cause,
            notes=notes,
        )
        for part, (cause, notes) in zip(parts, causes, strict=True)
    ]
    return replace(contribution, named=True, inner=tuple(inner))


def _with_opposite(blame: B, spans: Sequence[Stretch], closer: Closer, in_first: bool) -> B:
    """Return a blame whose most important stretches have contributions in the other direction too."""
    shares = {k: blame.share(c) for k, c in enumerate(blame.stretches)}
    order = sorted(shares, key=lambda k: (blame.stretches[k].named, shares[k]), reverse=True)
    chosen = [k for k in order if blame.stretches[k].named or shares[k] >= MATTERS][:MOST_REVERSED]
    if not chosen or not any(usable(whole, whole) for whole in (blame.scores, blame.heatmap)):
        return blame
    stretches = list(blame.stretches)
    for k, (scores, heatmap) in zip(chosen, closer.opposite([spans[k] for k in chosen]), strict=True):
        c = stretches[k]
        reverse = interval(scores, blame.level)
        stretches[k] = replace(
            c,
            reverse_scores=reverse,
            reverse_heatmap=interval(heatmap, blame.level),
            # By class scores only: a correlation is not additive even where faults are independent. Rounding always interacts.
            interacts=not in_first and disagrees(c.scores.mean, reverse.mean, blame.scores.mean),
        )
    return replace(blame, stretches=tuple(stretches))
