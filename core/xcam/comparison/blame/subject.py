"""Two models whose difference is examined: run on one image at a time, opened at the layers that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xcam.comparison.blame.measure import ScoreDifference
from xcam.comparison.blame.swaps import Pair, Run, Side
from xcam.comparison.own_error import precision
from xcam.contract import Array, Layer, Model, validation
from xcam.errors import BackendError, InputError
from xcam.explanation.context import require
from xcam.explanation.requests import Aim
from xcam.explanation.settings import Settings
from xcam.images import reading
from xcam.methods.registry import list_methods
from xcam.targets import ClassScore, Target
from xcam.targets import target as parsed_target

SWAPPABLE = frozenset({"activations", "gradients", "resume", "value"})
"""The inputs of methods whose heatmap follows from the values at the explained layer."""


@dataclass(frozen=True)
class Subject:
    """Two models with their explained layers, and what is explained."""

    sides: tuple[Side, Side]
    target: Aim
    settings: Settings
    explained: int
    """The position of the explained layer among the layers of the second model."""

    def run(
        self, image: reading.Image, first: Sequence[Layer], second: Sequence[Layer], gradients: bool = False
    ) -> Pair:
        """Run both models on one image.

        Args:
            image: RGB uint8 [H, W, 3].
            first: The layers at which the first model is opened.
            second: The layers at which the second model is opened.
            gradients: Whether the second model's traces have the gradient of the difference of class scores; with `in_first`,
                those of both.

        Raises:
            InputError: The models have different numbers of classes.
        """
        a, b = self.sides
        one = Run(a, image, self._parsed(self.target, a.model), self.settings, first)
        aim = self.target
        if aim is None and isinstance(one.target, ClassScore):
            aim = _class_of(one.target, a.model, b.model)

        def direction(scores: Array) -> Array:
            _check_shapes(one.scores, scores)
            return ScoreDifference(one.scores, scores).gradient

        other = Run(b, image, self._parsed(aim, b.model), self.settings, second, direction if gradients else None)
        _check_shapes(one.scores, other.scores)
        if gradients and self.in_first:  # their mean estimates better where values are rounded and clipped
            one = Run(a, image, one.target, self.settings, first, lambda scores: direction(other.scores))
        return Pair(one, other, self.explained, self.in_first)

    @property
    def in_first(self) -> bool:
        """Whether values are put into the first model: where the second one alone rounds its values.

        In a model that rounds, each change of a value redraws the rounding behind it, and a value that is put in is rounded again:
        the first stretch would contribute all rounding, and each other one that of the layer ahead.
        """
        first, second = (precision(side.model) for side in self.sides)
        return second is not None and first is None

    def _parsed(self, aim: Aim, model: Model) -> Target:
        return parsed_target(aim, self.settings.score, model.output_activation, model.labels)


def _check_shapes(a: Array, b: Array) -> None:
    if a.shape != b.shape:
        raise InputError(
            f"cannot compare {len(a)} class scores with {len(b)}; give the labels of both models (--labels), or choose "
            "outputs of one size (--model-output)"
        )


def _class_of(target: ClassScore, model: Model, other: Model) -> Aim:
    """Return the class of the first model's target for the other: by label where the labels differ, else by index."""
    index = target.index
    if index is None or model.labels is None or other.labels is None or list(model.labels) == list(other.labels):
        return index
    return model.labels[index]


def common_classes(models: tuple[Model, Model]) -> tuple[Array | None, Array | None]:
    """Return the indices of the classes that both models have, in the first model's order; None twice: all, as they are."""
    labels = [model.labels for model in models]
    if labels[0] is None or labels[1] is None or list(labels[0]) == list(labels[1]):
        return None, None
    known = {label: k for k, label in enumerate(labels[1])}
    common = [(k, known[label]) for k, label in enumerate(labels[0]) if label in known]
    if not common:
        return None, None
    first, second = zip(*common, strict=True)
    return np.asarray(first), np.asarray(second)


def check_able(models: Sequence[Model], settings: Settings) -> None:
    """Raise an error where values cannot be swapped, or the method's heatmap does not follow from them.

    Raises:
        InputError: The method runs the model on other images.
        BackendError: A model lacks a capability.
    """
    others = set(settings.method.inputs) - SWAPPABLE
    if others:
        able = [name for name, method in list_methods().items() if not set(method.inputs) - SWAPPABLE]
        raise InputError(
            f"cannot blame layers by method {settings.method.name!r}: it runs the model on changed images; choose one of "
            f"{', '.join(able)}"
        )
    for model in models:
        validation.layers(model)
        require(model, settings.method)
        if "resume" not in model.capabilities:
            raise BackendError(
                f"cannot blame layers of {model.name}: backend {model.backend!r} does not run a model from given values (resume); "
                "give an ONNX file of it (backend onnx)"
            )
