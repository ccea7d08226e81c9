"""What a comparison of models found: numbers for each pair, the first layer that differs, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from xcam.explanation.result import Explanation

Verdict = Literal["identical", "equivalent", "different"]
KEPT = 60
"""So many pictures, the worst, keep their explanations: memory must not grow with the number of pictures."""
ORDER: tuple[Verdict, ...] = ("identical", "equivalent", "different")
"""From best to worst."""


@dataclass(frozen=True)
class Measures:
    """How far two heatmaps of one picture agree."""

    largest: float
    """max |Δ| of the heatmaps, each in 0…1."""
    pearson: float
    spearman: float
    ssim: float
    overlap: float
    """Intersection over union of the highest fifth of each, 0…1."""
    distance: float
    """Between the two maxima, as a share of the picture's diagonal."""
    logits: float
    """The largest difference of the class scores, relative to their largest magnitude; NaN where they cannot be compared."""
    same_class: bool
    verdict: Verdict


@dataclass(frozen=True)
class Prediction:
    """What a model said of a picture."""

    label: str
    """The class that was explained."""
    index: int | None
    score: float


@dataclass(frozen=True)
class ImageComparison:
    """One picture, seen by every model."""

    path: Path | None
    explanations: tuple[Explanation, ...]
    """One for each model; none for a picture that is not among the worst KEPT."""
    measures: dict[tuple[int, int], Measures]
    """For each pair of models, by their places."""
    predictions: tuple[Prediction, ...] = ()
    """One for each model, for every picture."""

    @property
    def verdict(self) -> Verdict:
        return worst(m.verdict for m in self.measures.values())

    @property
    def badness(self) -> tuple[int, float]:
        """What pictures are sorted by: the verdict, then the largest difference (NaN counts as infinite)."""
        largest = [math.inf if math.isnan(m.largest) else m.largest for m in self.measures.values()]
        return ORDER.index(self.verdict), max(largest, default=0.0)


@dataclass(frozen=True)
class Step:
    """A layer of one model and the layer of the other that holds the same."""

    first: str
    second: str
    error: float
    """Of their activations, relative to the largest magnitude."""


@dataclass(frozen=True)
class Divergence:
    """Along the aligned layers of two models: where their difference begins."""

    pair: tuple[int, int]
    steps: tuple[Step, ...]
    """In execution order."""
    culprit: int | None
    """The place in `steps` where the error jumps beyond what rounding explains; None where it does not."""
    cause: str = ""
    """The likely cause in words; empty where the evidence fits none that is known."""

    @property
    def layer(self) -> str | None:
        """The first layer that differs, by its name in the second model."""
        return None if self.culprit is None else self.steps[self.culprit].second


@dataclass(frozen=True)
class Comparison:
    """Several models on the same pictures."""

    names: tuple[str, ...]
    """The models, as a reader tells them apart: `vgg16 (keras)`."""
    layers: tuple[str, ...]
    """The layer that was explained, for each model."""
    method: str
    images: tuple[ImageComparison, ...]
    divergences: tuple[Divergence, ...] = ()
    findings: tuple[str, ...] = ()
    """Differences in preprocessing, labels and sizes, in words."""
    failed: tuple[tuple[str, str], ...] = ()
    """Pictures that could not be compared, and why."""
    notes: tuple[str, ...] = field(default=())

    @property
    def pairs(self) -> list[tuple[int, int]]:
        n = len(self.names)
        return [(a, b) for a in range(n) for b in range(a + 1, n)]

    @property
    def verdict(self) -> Verdict:
        """The worst of all pictures and pairs."""
        return worst(image.verdict for image in self.images)

    @property
    def divergence(self) -> Divergence | None:
        """The first that names a layer."""
        return next((d for d in self.divergences if d.culprit is not None), None)

    def of(self, pair: tuple[int, int]) -> Verdict:
        """The worst verdict on one pair."""
        return worst(image.measures[pair].verdict for image in self.images)

    @property
    def table(self) -> list[dict[str, Any]]:
        """A row for each picture and pair, the worst first."""
        rows = [
            {"image": str(image.path or ""), "first": self.names[a], "second": self.names[b], **vars(m)}
            for image in self.images
            for (a, b), m in image.measures.items()
        ]
        return sorted(rows, key=lambda row: (-ORDER.index(row["verdict"]), -row["largest"]))

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, as plain values for JSON."""
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
                    "pairs": [{"first": a, "second": b, **vars(m)} for (a, b), m in image.measures.items()],
                }
                for image in self.images
            ],
            "divergences": [
                {
                    "first": self.names[d.pair[0]],
                    "second": self.names[d.pair[1]],
                    "layer": d.layer,
                    "cause": d.cause,
                    "steps": [vars(step) for step in d.steps],
                }
                for d in self.divergences
            ],
            "findings": list(self.findings),
            "failed": [{"image": path, "error": why} for path, why in self.failed],
            "notes": list(self.notes),
        }

    def save(self, path: str | Path) -> None:
        """Write the report, one HTML file that needs nothing else. Raises InputError."""
        from xcam.report.rendering import write

        write(self, Path(path))


def worst(verdicts: Any) -> Verdict:
    """The worst of some verdicts."""
    found: Sequence[Verdict] = list(verdicts)
    return max(found, key=ORDER.index) if found else "identical"
