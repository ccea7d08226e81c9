"""Comparing one image: an explanation by each model, and the measures of each pair."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xcam.comparison.data import ImageComparison, Prediction
from xcam.comparison.similarity import measure, score_error
from xcam.contract import InputSpec, Model
from xcam.explanation.explain import explain_at
from xcam.explanation.requests import Aim
from xcam.explanation.result import Explanation
from xcam.explanation.settings import Settings
from xcam.images import reading


@dataclass(frozen=True)
class Explainer:
    """A model with the input and the layer that the comparison uses."""

    model: Model
    spec: InputSpec
    layer: str

    def explain(self, image: reading.Image, target: Aim, settings: Settings) -> Explanation:
        """Explain one image for one target."""
        result: Explanation = explain_at(
            self.model, self.spec, image, layer=self.layer, target=target, settings=settings
        )
        return result


def compare_image(
    explainers: Sequence[Explainer], path: Path | None, image: reading.Image, target: Aim, settings: Settings
) -> ImageComparison:
    """Explain one image by all models for the same class, and measure every pair."""
    first = explainers[0].explain(image, target, settings)
    explanations = [first]
    for explainer in explainers[1:]:
        aim = same_target(first, explainers[0].model, explainer.model) if target is None else target
        explanations.append(explainer.explain(image, aim, settings))
    explanations = [dataclasses.replace(e, path=path) for e in explanations]
    measures = {}
    for a in range(len(explainers)):
        for b in range(a + 1, len(explainers)):
            labels = explainers[a].model.labels, explainers[b].model.labels
            error = score_error(explanations[a], explanations[b], labels)
            measures[a, b] = measure(explanations[a], explanations[b], error)
    predictions = tuple(Prediction(e.label, e.index, e.score) for e in explanations)
    return ImageComparison(path, tuple(explanations), measures, predictions)


def same_target(first: Explanation, model: Model, other: Model) -> Aim:
    """Return the class of the first explanation for another model: by label where the labels differ, else by index."""
    both = model.labels is not None and other.labels is not None
    return first.label if both and other.labels != model.labels else first.index


def with_small_image(comparison: ImageComparison) -> ImageComparison:
    """Return a copy whose explanations share one small image."""
    small = comparison.explanations[0].shrunk()
    others = [e.with_image(small.image) for e in comparison.explanations[1:]]
    return dataclasses.replace(comparison, explanations=(small, *others))
