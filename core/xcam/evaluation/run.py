"""The state of an evaluation while it runs. Images are read a few at a time, and none is kept."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np

from xcam import progress
from xcam.contract import Array, Layer, Model
from xcam.contract.abilities import ChoosesOutput, Randomizable, supports
from xcam.errors import BackendError, InputError, XcamError, ZeroHeatmapWarning
from xcam.evaluation.explained import ExplainedBatch, batch, cams
from xcam.evaluation.registry import Measure
from xcam.evaluation.result import Evaluation
from xcam.evaluation.scores import FLOOR, MIN_IMAGES
from xcam.evaluation.truth import Truth
from xcam.explanation.explain import explain
from xcam.explanation.inputs import input_size
from xcam.explanation.result import Explanation
from xcam.explanation.run import ImageSource
from xcam.explanation.settings import BATCH
from xcam.images import reading
from xcam.methods.registry import Method
from xcam.models.load import with_output
from xcam.targets import Score, Target

Configured = Mapping[str, tuple[Method, dict[str, Any]]]
"""Name → method and its options."""


@dataclass(frozen=True)
class _Loaded:
    """An image that was read, with its target and the mask of its object."""

    source: ImageSource
    name: str
    image: reading.Image
    mask: Array | None
    target: Any


class Run:
    """An evaluation in progress, which collects the values of all measures batch by batch.

    Args:
        model: The model.
        layer: The layer to explain.
        score: As for `explain`.
        methods: The methods with their options.
        measures: The measures with their options.
        target: One for all images, or a list with one for each.
        truth: Boxes and masks.
        seed: The seed of all random numbers.
    """

    def __init__(
        self,
        model: Model,
        layer: Layer,
        score: Score,
        methods: Configured,
        measures: Sequence[tuple[Measure, dict[str, Any]]],
        target: Any,
        truth: Truth,
        seed: int,
    ) -> None:
        self.model, self.layer, self.score, self.seed = model, layer, score, seed
        self.methods, self.measures = methods, measures
        self.target, self.truth = target, truth
        self.needs_shuffling = any("shuffled" in measure.inputs for measure, _ in measures)
        self.names: list[str] = []
        self.sources: list[ImageSource] = []
        """The sources of the images for reading them again; empty if they are not needed again."""
        self.targets: list[Target] = []
        self.labels: list[str] = []
        self.failed: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self.zeros: Counter[str] = Counter()
        self.parts: list[slice] = []
        """The rows of each batch that was measured."""
        self.values: dict[str, dict[str, list[Array]]] = {name: {m.name: [] for m, _ in measures} for name in methods}
        self.cams: dict[str, list[Array]] = {name: [] for name in methods}

    def add(self, images: Sequence[tuple[int, ImageSource]]) -> None:
        """Read and measure a batch of numbered images; if it fails, one image at a time."""
        loaded: list[_Loaded] = []
        for k, source in images:
            is_path = isinstance(source, str | os.PathLike)
            name, target = str(source) if is_path else f"image {k + 1}", self._target(k)
            try:
                image = reading.read(source) if isinstance(source, str | os.PathLike) else reading.check(source)
                loaded.append(_Loaded(source, name, image, self.truth.of(k, image, name), target))
            except XcamError as error:
                self.failed.append((name, str(error)))
        for _, same in groupby(loaded, key=lambda one: input_size(self.model.input, one.image.shape)):
            self._measure_all(list(same))

    def _measure_all(self, loaded: Sequence[_Loaded]) -> None:
        """Measure images of one size of the input; if that fails, one at a time."""
        try:
            self._measure(loaded)
        except BackendError:  # a missing or broken package: every other image would fail, too
            raise
        except XcamError:
            self._measure_one_by_one(loaded)

    def _target(self, k: int) -> Any:
        if not isinstance(self.target, list | tuple):
            return self.target
        if k >= len(self.target):
            raise InputError(
                f"{len(self.target)} targets, and there are more images; give one for each image, or one for all"
            )
        return self.target[k]

    def _measure_one_by_one(self, loaded: Sequence[_Loaded]) -> None:
        """Measure the images that do not fail. If all of the first images fail with the same error, raise it."""
        failed: list[tuple[str, XcamError]] = []
        for one in loaded:
            try:
                self._measure([one])
            except XcamError as error:
                failed.append((one.name, error))
        if not self.names and len({str(error) for _, error in failed}) == 1:
            raise failed[0][1]
        self.failed += [(name, str(error)) for name, error in failed]

    def _measure(self, loaded: Sequence[_Loaded]) -> None:
        """Explain a batch by every method and measure it. Nothing is stored if any of it fails."""
        if not loaded:
            return
        first, targets, labels = len(self.names), [one.target for one in loaded], [""] * len(loaded)
        results: dict[str, tuple[dict[str, Array], Array, int]] = {}
        for name in self.methods:
            explanations = self._explanations(name, loaded, targets, first, resolved=bool(results))
            if not results:  # all methods explain the targets that the first one resolved
                targets, labels = [e.target for e in explanations], [e.label for e in explanations]
            raw_maps = partial(self.maps, name, self.model, targets=targets, first=first)
            inputs = ExplainedBatch(self.model, self.layer, explanations, [one.mask for one in loaded], raw_maps)
            values = {
                measure.name: np.asarray(
                    measure.function(*(getattr(inputs, key) for key in measure.inputs), **options), np.float64
                )
                for measure, options in self.measures
                if "shuffled" not in measure.inputs
            }
            zeros = sum(not e.positive.any() for e in explanations)
            results[name] = values, np.stack([e.cam for e in explanations]), zeros
        for name, (values, raw, zeros) in results.items():
            for measure_name, column in values.items():
                self.values[name][measure_name].append(column)
            if self.needs_shuffling:
                self.cams[name].append(raw)
            self.zeros[name] += zeros
        self.parts.append(slice(first, first + len(loaded)))
        self.targets += targets
        self.labels += labels
        self.names += [one.name for one in loaded]
        if self.needs_shuffling:
            self.sources += [one.source for one in loaded]

    def _explanations(
        self, name: str, loaded: Sequence[_Loaded], targets: Sequence[Any], first: int, resolved: bool
    ) -> list[Explanation]:
        """Explain a batch by one method. `resolved`: the targets include the score already."""
        method, options = self.methods[name]
        function: Any = explain
        explanations: list[Any] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ZeroHeatmapWarning)  # counted, and noted once
            for rows, seed in self.groups(name, range(len(loaded)), first):
                explanations += function(
                    self.model,
                    [loaded[row].image for row in rows],
                    layer=self.layer.name,
                    target=[targets[row] for row in rows],
                    method=method.name,
                    score="logit" if resolved else self.score,
                    method_options=options | seed,
                )
        if any(isinstance(e, list) for e in explanations):
            raise InputError("several targets for one image; an evaluation explains one: give one class")
        return explanations

    def groups(self, name: str, rows: Sequence[int], first: int) -> list[tuple[list[int], dict[str, int]]]:
        """Return the rows that are explained together, and their own options: `random` draws new weights for each image.

        Otherwise a single draw, perhaps a lucky one, would be the baseline for all images.
        """
        if name != FLOOR or "seed" in self.methods[name][1]:
            return [(list(rows), {})]
        return [([row], {"seed": self.seed + first + row}) for row in rows]

    def maps(
        self, name: str, model: Model, x: Array, rows: Sequence[int], targets: Sequence[Target], first: int
    ) -> Array:
        """Return the raw maps [K, h, w], before ReLU, of images in the model's own layout, for resolved targets."""
        method, options = self.methods[name]
        variants = {row: [k for k, r in enumerate(rows) if r == row] for row in dict.fromkeys(rows)}
        result: dict[int, Array] = {}
        for group, seed in self.groups(name, list(variants), first):
            indices = [k for row in group for k in variants[row]]
            for start in range(0, len(indices), BATCH):
                part = indices[start : start + BATCH]
                raw = cams(model, self.layer, x[part], [targets[rows[k]] for k in part], method, options | seed)
                result |= dict(zip(part, raw, strict=True))
        return np.stack([result[k] for k in range(len(rows))])

    def shuffle(self, stages: int) -> None:
        """Run the randomisation test. If it fails, a note gives the reason, and all other values remain."""
        try:
            self._shuffle(stages)
        except XcamError as error:
            self.notes.append(f"the randomisation test failed: {error}")
            for columns in self.values.values():
                columns |= {
                    m.name: [np.full(len(self.names), np.nan)] for m, _ in self.measures if "shuffled" in m.inputs
                }

    def _shuffle(self, stages: int) -> None:
        """Explain all images again, with networks that are shuffled further and further down."""
        layers, with_shuffled_weights = shuffling(self.model)
        counts = sorted({round(len(layers) * (k + 1) / stages) for k in range(stages)} - {0})
        shuffled: dict[str, list[list[Array]]] = {name: [] for name in self.methods}
        for count in progress.steps(counts, "shuffled networks"):
            model = with_shuffled_weights(list(layers[len(layers) - count :]), self.seed)
            model.input = self.model.input
            stage: dict[str, list[Array]] = {name: [] for name in self.methods}
            for part in self.parts:
                images = [reading.read(s) if isinstance(s, str | os.PathLike) else s for s in self.sources[part]]
                x, targets = batch(images, model.input), self.targets[part]
                for name in self.methods:
                    stage[name].append(self.maps(name, model, x, range(len(targets)), targets, part.start))
            for name, raw in stage.items():
                shuffled[name].append(raw)
        for name in self.methods:
            for measure, options in self.measures:
                if "shuffled" in measure.inputs:
                    values = self._compared(partial(measure.function, **options), measure, name, shuffled[name])
                    self.values[name][measure.name] = [values]

    def _compared(
        self, function: Callable[..., Array], measure: Measure, name: str, shuffled: Sequence[Sequence[Array]]
    ) -> Array:
        """Return a measure of the maps and those of shuffled networks, separately for maps of each size.

        Args:
            function: The measure's function, with its options.
            measure: The measure.
            name: The method.
            shuffled: For each stage the maps of each batch.
        """
        cams = self.cams[name]
        result = np.empty(len(self.names))
        for shape in dict.fromkeys(raw.shape[1:] for raw in cams):
            same = [k for k, raw in enumerate(cams) if raw.shape[1:] == shape]
            inputs = {
                "cams": np.concatenate([cams[k] for k in same]),
                "shuffled": [np.concatenate([stage[k] for k in same]) for stage in shuffled],
            }
            rows = np.concatenate([np.arange(self.parts[k].start, self.parts[k].stop) for k in same])
            result[rows] = function(*(inputs[key] for key in measure.inputs))
        return result

    def result(self, level: float) -> Evaluation:
        """Return the evaluation, with confidence intervals at `level`."""
        count = len(self.names)
        zeros = [f"{name} is zero everywhere on {n} of {count} images" for name, n in self.zeros.items() if n]
        few = [
            f"{count} images are too few to decide which methods are better than {FLOOR}; give {MIN_IMAGES} or more"
        ]
        few = few if FLOOR in self.methods and len(self.methods) > 1 and count < MIN_IMAGES else []
        return Evaluation(
            model=f"{self.model.name} ({self.model.backend})",
            layer=self.layer.name,
            images=tuple(self.names),
            targets=tuple(self.labels),
            values={
                name: {measure: np.concatenate(parts) for measure, parts in columns.items()}
                for name, columns in self.values.items()
            },
            measures=tuple(measure for measure, _ in self.measures),
            level=level,
            seed=self.seed,
            failed=tuple(self.failed),
            notes=(*self.model.notes, *zeros, *few, *self.notes),
            settings={
                "score": self.score,
                "methods": {name: options for name, (_, options) in self.methods.items()},
                "options": {measure.name: options for measure, options in self.measures},
            },
        )


def shuffling(model: Model) -> tuple[Sequence[str], Callable[[list[str], int], Model]]:
    """Return the model's layers with weights, in execution order, and the function that returns a copy with some shuffled.

    Raises:
        BackendError: The backend cannot shuffle weights.
    """
    if not supports(model, Randomizable):
        raise BackendError(
            f"the randomisation test shuffles weights, which backend {model.backend!r} cannot do; choose other measures"
        )
    shuffled, output = model.with_shuffled_weights, model.chosen_output if supports(model, ChoosesOutput) else None
    if output is None:
        return model.parameter_layers, shuffled
    return model.parameter_layers, lambda parts, seed: with_output(shuffled(parts, seed), output)
