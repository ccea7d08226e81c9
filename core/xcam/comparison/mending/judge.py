"""The verdict of `compare` for many variants of a model: the reference's explanations are computed once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from xcam.comparison.data import ORDER, Measures, Verdict, worst
from xcam.comparison.images import Explainer, same_target
from xcam.comparison.similarity import CORRELATED, HEATMAPS, LOGITS, measure, score_error
from xcam.errors import XcamWarning
from xcam.explanation.requests import Aim
from xcam.explanation.result import Explanation
from xcam.explanation.settings import Settings
from xcam.images import reading


@dataclass(frozen=True)
class Judgement:
    """How far a model agrees with the reference on some images."""

    measures: tuple[Measures, ...]
    """One for each image."""

    @property
    def verdict(self) -> Verdict:
        """The worst verdict."""
        return worst(m.verdict for m in self.measures)

    @property
    def pearson(self) -> float:
        """The lowest correlation of the heatmaps; 1 where none is known, as of heatmaps that are zero."""
        return min((m.pearson for m in self.measures if not math.isnan(m.pearson)), default=1.0)

    @property
    def other_classes(self) -> int:
        """The number of images with another top class."""
        return sum(not m.same_class for m in self.measures)

    @property
    def key(self) -> tuple[int, int, float]:
        """The sorting key: better judgements are smaller."""
        return ORDER.index(self.verdict), self.other_classes, -self.pearson

    def reaches(self, require: Verdict, margin: float = 1.0) -> bool:
        """Return whether the verdict is `require` or better, with limits that are stricter by the factor `margin`."""
        return all(_reaches(m, require, margin) for m in self.measures)

    def to_dict(self) -> dict[str, object]:
        """Return the figures, for JSON."""
        return {
            "verdict": self.verdict,
            "pearson": self.pearson,
            "other_classes": self.other_classes,
            "images": len(self.measures),
        }


class Judge:
    """Compares models with the reference on some images.

    Args:
        reference: The reference, with the layer that is explained.
        images: The images.
        target: As for `compare`.
        settings: The options of `explain`.
    """

    def __init__(
        self, reference: Explainer, images: Sequence[reading.Image], target: Aim, settings: Settings
    ) -> None:
        self._reference, self._images, self._target, self._settings = reference, images, target, settings
        self._first: list[Explanation] = [reference.explain(image, target, settings) for image in images]

    def __call__(self, other: Explainer, require: Verdict | None = None, margin: float = 1.0) -> Judgement:
        """Return the judgement of a model.

        Args:
            other: The model, with the layer that is explained.
            require: Stop at the first image that does not reach this verdict.
            margin: As for `Judgement.reaches`.
        """
        measures: list[Measures] = []
        labels = self._reference.model.labels, other.model.labels
        for image, first in zip(self._images, self._first, strict=True):
            aim = self._target
            if aim is None:
                aim = same_target(first, self._reference.model, other.model)
            with warnings.catch_warnings():  # of a variant that is not the result
                warnings.simplefilter("ignore", XcamWarning)
                second = other.explain(image, aim, self._settings)
            measures.append(measure(first, second, score_error(first, second, labels)))
            if require is not None and not _reaches(measures[-1], require, margin):
                break
        return Judgement(tuple(measures))


def _reaches(m: Measures, require: Verdict, margin: float) -> bool:
    if ORDER.index(m.verdict) > ORDER.index(require):
        return False
    if margin == 1 or math.isnan(m.pearson):
        return True
    if require == "identical":
        return m.largest <= HEATMAPS * margin and not m.logits > LOGITS * margin
    return 1 - m.pearson <= (1 - CORRELATED) * margin
