"""The difference that is left along the locations, collected image by image, and the contribution of each stretch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xcam.comparison.blame import estimates
from xcam.comparison.blame.data import NONE, BlamedImage, Contribution, Interval
from xcam.comparison.blame.examine import Stretch
from xcam.comparison.blame.locations import Location
from xcam.comparison.blame.measure import contributions, interval, median
from xcam.comparison.blame.subject import Subject
from xcam.comparison.blame.swaps import Pair, Side, Walk
from xcam.comparison.data import Verdict
from xcam.comparison.divergence import SUSPECT
from xcam.comparison.similarity import LOGITS, SCORES, verdict
from xcam.contract import Layer, Model, validation
from xcam.explanation.result import class_label
from xcam.images import reading, resizing
from xcam.targets import ClassScore, Target

SHOWN = 6
"""The number of images that the report shows."""


class Walks:
    """The difference that is left along the locations, image by image."""

    def __init__(self, subject: Subject, cuts: list[Location], is_fast: bool = False, kept: int = 0) -> None:
        """Prepare; the runs on the first `kept` images are kept."""
        self.subject, self.cuts, self.is_fast, self.kept = subject, cuts, is_fast, kept
        self.pairs: list[Pair] = []
        self.images: list[BlamedImage] = []
        self.walks: list[Walk] = []

    def add(self, path: Path | None, image: reading.Image) -> None:
        """Examine an image."""
        cuts = self.cuts
        pair = self.subject.run(image, [p.first for p in cuts], [p.second for p in cuts], self.is_fast)
        whole = pair.measure(pair.second.scores)
        if self.is_fast:
            nothing = (math.nan,) * len(cuts)
            left = estimates.remaining(pair.first, pair.second, cuts, whole)
            walk = Walk((*nothing, math.nan), tuple(left), (pair.lost, *nothing, 0.0))
        else:
            walk = pair.walk(cuts)
        maps = (pair.first.drawn_heatmap, pair.second.drawn_heatmap)
        shown = len(self.images) < SHOWN
        self.images.append(
            BlamedImage(
                name=str(path or f"image {len(self.images) + 1}"),
                scores=whole,
                heatmap=pair.lost,
                verdict=_verdict(pair),
                label=_label(pair.first.target, self.subject.sides[0].model),
                image=resizing.shrunk(image, resizing.THUMBNAIL) if shown else None,
                maps=maps if shown else (),
            )
        )
        self.walks.append(walk)
        if len(self.pairs) < self.kept:
            self.pairs.append(pair)

    @property
    def spans(self) -> list[Stretch]:
        """The stretches, from the input to the output."""
        ends: list[Location | None] = [None, *self.cuts, None]
        return [Stretch(a, b) for a, b in itertools.pairwise(ends)]

    def stretches(self, level: float) -> Iterator[Contribution]:
        """Yield the contribution of each stretch."""
        errors = list(zip(*(walk.errors for walk in self.walks), strict=True))
        scores = list(zip(*(contributions(walk.scores) for walk in self.walks), strict=True))
        heatmap = list(zip(*(contributions(walk.heatmap) for walk in self.walks), strict=True))
        unknown = self._behind
        if (
            len(unknown) > 1
        ):  # what the stretches behind the explained layer cost the heatmap is known for all together
            exact = [k for k in unknown if not float(np.median(errors[k])) > SUSPECT]
            (last, *others) = [k for k in unknown if k not in exact] or [unknown[-1]]
            if not others and not self.is_fast:
                zero = (0.0,) * len(self.walks)
                heatmap = [zero if k in unknown else column for k, column in enumerate(heatmap)]
                heatmap[last] = tuple(self._left)
        for k, span in enumerate(self.spans):
            yield Contribution(
                **names(span, self.subject.sides),
                error=median(errors[k]),
                scores=interval(scores[k], level),
                heatmap=NONE if self.is_fast else interval(heatmap[k], level),
                is_estimate=self.is_fast,
            )

    @property
    def _behind(self) -> list[int]:
        """The indices of the stretches whose contribution to the heatmap is not known for each."""
        return [k for k, value in enumerate(contributions(self.walks[0].heatmap)) if math.isnan(value)]

    @property
    def _left(self) -> list[float]:
        """The lost correlation that is left at the last location where it is known, on each image."""
        return [[value for value in walk.heatmap[:-1] if not math.isnan(value)][-1] for walk in self.walks]

    def behind(self, level: float) -> Interval:
        """Return what several stretches behind the explained layer contribute to the heatmap together."""
        known = {k for k, c in enumerate(self.stretches(level)) if not math.isnan(c.heatmap.mean)}
        return NONE if self.is_fast or set(self._behind) <= known else interval(self._left, level)


def names(span: Stretch, sides: tuple[Side, Side]) -> dict[str, Any]:
    """Return the names of the layers at both ends of a stretch, as `Contribution` takes them."""
    first = span.end.first if span.end is not None else output(sides[0].model)
    second = span.end.second if span.end is not None else output(sides[1].model)
    return {
        "start": "input" if span.start is None else span.start.second.name,
        "first": first.name if first is not None else "output",
        "second": second.name if second is not None else "output",
        "ids": () if second is None else (*(span.end.names if span.end else ()), *second.aliases),
    }


def output(model: Model) -> Layer | None:
    """Return the last layer that is an output."""
    return next((layer for layer in reversed(validation.layers(model)) if layer.is_output), None)


def _verdict(pair: Pair) -> Verdict:
    """Return the verdict of `compare` on one image."""
    a, b = pair.first, pair.second
    size = max(float(np.abs(a.scores).max()), 1e-12)
    error = float(np.abs(a.scores - b.scores).max()) / size
    is_top = bool(b.scores.max() - b.scores[a.scores.argmax()] <= LOGITS * np.abs(b.scores).max())
    if not a.heatmap.any() and not b.heatmap.any():  # no region that could agree
        return "equivalent" if is_top and error <= SCORES else "different"
    largest = float(np.abs(a.heatmap - b.heatmap).max())
    return verdict(largest, 1 - pair.lost, error, is_top)


def _label(target: Target, model: Model) -> str:
    if isinstance(target, ClassScore) and target.index is not None:
        return class_label(model.labels, target.index)
    return str(getattr(target, "name", type(target).__name__))
