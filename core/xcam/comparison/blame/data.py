"""The data of a blame: the contribution of each stretch of the second model to the difference from the first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from xcam.comparison.data import Verdict, worst
from xcam.comparison.diagnosis import Diagnosis
from xcam.contract import Array


@dataclass(frozen=True)
class Interval:
    """A mean over images with a confidence interval."""

    mean: float
    """NaN where no image has a value."""
    low: float = math.nan
    """The lower end; NaN for fewer than two images."""
    high: float = math.nan
    """The upper end."""

    def to_dict(self) -> dict[str, float | None]:
        """Return the three numbers, None for NaN."""
        return {name: _plain(value) for name, value in vars(self).items()}


NONE = Interval(math.nan)
"""No value."""


@dataclass(frozen=True)
class Contribution:
    """One stretch of the second model: the error that it adds, and the difference at the end that this causes."""

    start: str
    """Name of the layer at its start, in the second model; "input" for the input."""
    first: str
    """Name of the layer at its end, in the first model."""
    second: str
    """Name of the layer at its end, in the second model."""
    error: Interval
    """The local error: the largest difference at the end where the start has the first model's value, relative to the
    largest magnitude; the median over images. No value in a fast look."""
    scores: Interval
    """The part of the difference of the class scores that comes from it, in the unit of `BlameData.scores`."""
    heatmap: Interval = NONE
    """The part of the lost correlation of the heatmaps. No value where it is not known: in a fast look, and for one of several
    stretches behind the explained layer."""
    reverse_scores: Interval = NONE
    """The same in the other direction, where the other model's values are put in; only where it matters."""
    reverse_heatmap: Interval = NONE
    interacts: bool = False
    """Whether both directions disagree: its contribution depends on other stretches."""
    is_estimate: bool = False
    """Whether the contribution is estimated from a gradient, instead of swapping values."""
    named: bool = False
    """Whether it adds more than rounding, or more than its precision explains."""
    cause: Diagnosis | None = None
    """The cause of its error; None where none is known."""
    notes: tuple[str, ...] = ()
    """Further facts about its cause, and checks that failed."""
    ids: tuple[str, ...] = ()
    """All names of the layer at its end, in the second model."""
    inner: tuple[Contribution, ...] = ()
    """Its parts, where it was examined more closely."""

    @property
    def culprits(self) -> Iterator[Contribution]:
        """The deepest named stretches in it: itself, or some of its parts."""
        deeper = [culprit for part in self.inner for culprit in part.culprits]
        if deeper:
            yield from deeper
        elif self.named:
            yield self

    def to_dict(self) -> dict[str, Any]:
        """Return all values for JSON, with None for NaN."""
        return {
            "start": self.start,
            "first": self.first,
            "second": self.second,
            "local_error": self.error.to_dict(),
            "scores": self.scores.to_dict(),
            "heatmap": self.heatmap.to_dict(),
            "reverse_scores": self.reverse_scores.to_dict(),
            "reverse_heatmap": self.reverse_heatmap.to_dict(),
            "interacts": self.interacts,
            "estimate": self.is_estimate,
            "named": self.named,
            "cause": None if self.cause is None else self.cause.to_dict(),
            "notes": list(self.notes),
            "parts": [part.to_dict() for part in self.inner],
        }


@dataclass(frozen=True)
class BlamedImage:
    """One image: the whole difference of the two models."""

    name: str
    """Its path, or `image 3` for an array."""
    scores: float
    """The difference of the class scores: root of the mean square, relative to the largest magnitude."""
    heatmap: float
    """1 − the correlation of the heatmaps."""
    verdict: Verdict
    """As of `compare`."""
    label: str
    """The class that is explained."""
    image: Array | None = field(default=None, repr=False, compare=False)
    """RGB uint8 [H, W, 3], small; None where many images are examined."""
    maps: tuple[Array, ...] = field(default=(), repr=False, compare=False)
    """The heatmaps [h, w] of the first and the second model, in 0…1; NaN where the model did not see the image."""


@dataclass(frozen=True)
class BlameData:
    """Where the difference of two models comes from."""

    names: tuple[str, str]
    """A unique name for each model: `resnet50 (onnx)`."""
    layers: tuple[str, str]
    """The explained layer of each model."""
    method: str
    """The name of the method."""
    stretches: tuple[Contribution, ...]
    """From the input to the output. Their contributions add up to the whole difference."""
    images: tuple[BlamedImage, ...]
    """The images that were examined."""
    scores: Interval
    """The whole difference of the class scores: root of the mean square, relative to the largest magnitude."""
    heatmap: Interval
    """The whole lost correlation of the heatmaps: 1 − Pearson's correlation."""
    heatmap_behind: Interval = NONE
    """The contribution of several stretches behind the explained layer to the heatmap, together; no value where that is known for each
    of them."""
    is_fast: bool = False
    """Whether all contributions are estimates."""
    in_first: bool = False
    """Whether contributions are those of the second model's values in the first: where the second alone rounds its values."""
    has_causes: bool = True
    """Whether causes were sought."""
    level: float = 0.95
    """The confidence level of the intervals."""
    findings: tuple[str, ...] = ()
    """Differences in preprocessing, labels and sizes, and remarks on the locations."""
    failed: tuple[tuple[str, str], ...] = ()
    """Images that could not be examined, with the error of each."""
    notes: tuple[str, ...] = ()
    """The notes of the models."""

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all images."""
        return worst(image.verdict for image in self.images)

    @property
    def named(self) -> list[Contribution]:
        """The locations that add more than rounding, or more than their precision explains; the largest contribution first."""
        return sorted((c for stretch in self.stretches for c in stretch.culprits), key=self.share, reverse=True)

    @property
    def ranked(self) -> list[Contribution]:
        """The stretches, the largest contribution first."""
        return sorted(self.stretches, key=self.share, reverse=True)

    def share(self, contribution: Contribution) -> float:
        """Return the larger of a contribution's shares of the whole difference, in class scores and in the heatmap."""
        pairs = (contribution.scores, self.scores), (contribution.heatmap, self.heatmap)
        return max((abs(part.mean / whole.mean) for part, whole in pairs if usable(part, whole)), default=0.0)

    @property
    def sums(self) -> tuple[float, float]:
        """The sums of all contributions, to the class scores and to the heatmap: the whole differences."""
        behind = 0.0 if math.isnan(self.heatmap_behind.mean) else self.heatmap_behind.mean
        known = [c.heatmap.mean for c in self.stretches if not math.isnan(c.heatmap.mean)]
        return math.fsum(c.scores.mean for c in self.stretches), math.fsum([*known, behind])

    @property
    def table(self) -> list[dict[str, Any]]:
        """One row for each stretch, the largest contribution first, with None for NaN."""
        return [
            {
                "start": c.start,
                "first": c.first,
                "second": c.second,
                "scores": _plain(c.scores.mean),
                "heatmap": _plain(c.heatmap.mean),
                "local_error": _plain(c.error.mean),
                "named": c.named,
                "cause": None if c.cause is None else c.cause.code,
            }
            for c in self.ranked
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return all values except images and maps, for JSON."""
        return {
            "verdict": self.verdict,
            "models": [{"name": n, "layer": layer} for n, layer in zip(self.names, self.layers, strict=True)],
            "method": self.method,
            "fast": self.is_fast,
            "values_of": self.names[self.in_first],
            "level": self.level,
            "difference": {
                "scores": self.scores.to_dict(),
                "heatmap": self.heatmap.to_dict(),
                "heatmap_behind": self.heatmap_behind.to_dict(),
            },
            "named": [c.to_dict() for c in self.named],
            "stretches": [c.to_dict() for c in self.ranked],
            "images": [
                {
                    "image": image.name,
                    "class": image.label,
                    "verdict": image.verdict,
                    "scores": _plain(image.scores),
                    "heatmap": _plain(image.heatmap),
                }
                for image in self.images
            ],
            "findings": list(self.findings),
            "failed": [{"image": path, "error": error} for path, error in self.failed],
            "notes": list(self.notes),
        }


def usable(part: Interval, whole: Interval) -> bool:
    """Return whether a part has a share of the whole: both are numbers, and the whole is more than rounding."""
    return math.isfinite(part.mean) and math.isfinite(whole.mean) and abs(whole.mean) > 1e-9


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
