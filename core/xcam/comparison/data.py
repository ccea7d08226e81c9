"""The data of a comparison: measures for each image and pair of models, and the first layer that differs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from xcam.comparison.diagnosis import Diagnosis
from xcam.explanation.result import Explanation

Verdict = Literal["identical", "equivalent", "different"]
KEPT = 60
"""The number of images whose explanations are kept, the worst ones: this limits the memory for many images."""
ORDER: tuple[Verdict, ...] = ("identical", "equivalent", "different")
"""All verdicts, from best to worst."""


@dataclass(frozen=True)
class Measures:
    """The similarity of two heatmaps of one image."""

    largest: float
    """The largest absolute difference of the heatmaps, each in 0…1."""
    pearson: float
    """Pearson correlation, −1…1."""
    spearman: float
    """Rank correlation, −1…1."""
    ssim: float
    """Structural similarity (Wang et al. 2004), up to 1."""
    overlap: float
    """Intersection over union of the highest fifth of each heatmap, 0…1."""
    distance: float
    """Distance between the two maxima, as a share of the image's diagonal, 0…1."""
    logits: float
    """Largest difference of the class scores, relative to their largest magnitude; NaN where the classes differ."""
    same_class: bool
    """Whether both models have the same top class."""
    verdict: Verdict
    """`identical`, `equivalent` or `different`."""
    both_zero: bool = False
    """Whether both heatmaps are zero everywhere: the class scores alone are compared, and the similarities are NaN."""


@dataclass(frozen=True)
class Prediction:
    """The class that was explained, for one model and image."""

    label: str
    """Its label, or the name of the target."""
    index: int | None
    """Its index, None for a target that is not a class."""
    score: float
    """The explained value: the class's logit or probability."""


@dataclass(frozen=True)
class ImageComparison:
    """One image, explained by every model."""

    path: Path | None
    """The image's file, where it has one."""
    explanations: tuple[Explanation, ...]
    """One for each model; empty for an image that is not among the worst `KEPT`."""
    measures: dict[tuple[int, int], Measures]
    """The similarity of each pair of models, by their indices."""
    predictions: tuple[Prediction, ...] = ()
    """One for each model."""

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all pairs."""
        return worst(m.verdict for m in self.measures.values())

    @property
    def has_zero_maps(self) -> bool:
        """Whether the heatmaps of some pair of models are zero everywhere."""
        return any(m.both_zero for m in self.measures.values())

    @property
    def badness(self) -> tuple[int, float]:
        """The sorting key of images: the verdict, then the largest difference (NaN counts as infinite)."""
        largest = [math.inf if math.isnan(m.largest) else m.largest for m in self.measures.values()]
        return ORDER.index(self.verdict), max(largest, default=0.0)


@dataclass(frozen=True)
class LayerPair:
    """A value that two models have, with all its names: a block and its last ReLU, for example, have one value."""

    first: str
    """Name in the first model: one that both models have, else that of the innermost layer that computes it."""
    second: str
    """Name in the second model: the same where both have one."""
    error: float
    """Largest difference of the two activations, relative to the largest magnitude."""
    first_names: tuple[str, ...] = ()
    """All names in the first model, the innermost layer's before the others, which are in execution order."""
    second_names: tuple[str, ...] = ()
    """All names in the second model, the innermost layer's before the others."""


@dataclass(frozen=True)
class Step(LayerPair):
    """A pair, with the error that the second model adds there."""

    added: float | None = None
    """For a model of reduced precision: the error that this layer adds, computed from the other model's values
    ahead of it; root of the mean square, relative to the largest magnitude."""
    expected: float | None = None
    """The own error that the precision explains."""


@dataclass(frozen=True)
class Divergence:
    """The errors along the corresponding layers of two models, and the layer at which the models begin to differ."""

    pair: tuple[int, int]
    """The indices of the two models."""
    steps: tuple[Step, ...]
    """The corresponding layers, in execution order."""
    index: int | None
    """The step whose error exceeds rounding, for a model of reduced precision the step whose own error its precision does
    not explain; None where there is none."""
    cause: Diagnosis | None = None
    """The likely cause; None where the values fit no known cause."""
    notes: tuple[str, ...] = ()
    """Checks for a cause that failed, and their errors."""
    tolerance: float | None = None
    """For a model of reduced precision: how many times its expected error the own error of a layer may have."""

    @property
    def layer(self) -> str | None:
        """The first layer that differs, by its name in the second model; None where there is none."""
        return None if self.index is None else self.steps[self.index].second


@dataclass(frozen=True)
class ComparisonData:
    """The values of a comparison of several models on the same images."""

    names: tuple[str, ...]
    """A unique name for each model: `vgg16 (keras)`."""
    layers: tuple[str, ...]
    """The explained layer of each model."""
    method: str
    """The name of the method."""
    images: tuple[ImageComparison, ...]
    """The images that could be compared."""
    divergences: tuple[Divergence, ...] = ()
    """The first model against each other model; empty where the layers were not aligned."""
    findings: tuple[str, ...] = ()
    """Differences in preprocessing, labels and sizes."""
    failed: tuple[tuple[str, str], ...] = ()
    """Images that could not be compared, with the error of each."""
    notes: tuple[str, ...] = field(default=())
    """The notes of the models."""

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """All pairs of models, by their indices."""
        n = len(self.names)
        return [(a, b) for a in range(n) for b in range(a + 1, n)]

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all images and pairs."""
        return worst(image.verdict for image in self.images)

    @property
    def divergence(self) -> Divergence | None:
        """The first divergence that names a layer; None where no model differs at a layer."""
        return next((d for d in self.divergences if d.index is not None), None)

    def of(self, pair: tuple[int, int]) -> Verdict:
        """Return the worst verdict of one pair."""
        return worst(image.measures[pair].verdict for image in self.images)

    @property
    def table(self) -> list[dict[str, Any]]:
        """One row for each image and pair, the worst first."""
        rows = [
            {"image": str(image.path or ""), "first": self.names[a], "second": self.names[b], **vars(m)}
            for image in self.images
            for (a, b), m in image.measures.items()
        ]
        return sorted(rows, key=lambda row: (-ORDER.index(row["verdict"]), -row["largest"]))

    def to_dict(self) -> dict[str, Any]:
        """Return all values except images and maps, for JSON."""
        return {
            "verdict": self.verdict if self.images else None,
            "models": [{"name": n, "layer": layer} for n, layer in zip(self.names, self.layers, strict=True)],
            "method": self.method,
            "pairs": [
                {"first": self.names[a], "second": self.names[b], "verdict": self.of((a, b))} for a, b in self.pairs
            ]
            if self.images
            else [],
            "images": [
                {
                    "image": str(image.path or ""),
                    "verdict": image.verdict,
                    "predictions": [
                        {"model": self.names[k], "class": p.label, "index": p.index, "score": p.score}
                        for k, p in enumerate(image.predictions)
                    ],
                    "pairs": [
                        {"first": a, "second": b, **_without_nan(vars(m))} for (a, b), m in image.measures.items()
                    ],
                }
                for image in self.images
            ],
            "divergences": [
                {
                    "first": self.names[d.pair[0]],
                    "second": self.names[d.pair[1]],
                    "layer": d.layer,
                    "cause": None if d.cause is None else d.cause.to_dict(),
                    "notes": list(d.notes),
                    "tolerance": d.tolerance,
                    "steps": [vars(step) for step in d.steps],
                }
                for d in self.divergences
            ],
            "findings": list(self.findings),
            "failed": [{"image": path, "error": error} for path, error in self.failed],
            "notes": list(self.notes),
        }


def _without_nan(values: dict[str, Any]) -> dict[str, Any]:
    """Return values for JSON, which has no NaN: None instead."""
    return {key: None if value != value else value for key, value in values.items()}


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst of several verdicts; `identical` where there is none."""
    return max(verdicts, key=ORDER.index, default="identical")
