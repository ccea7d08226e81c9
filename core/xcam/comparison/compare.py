"""`compare`: does a converted model look at the same place, and if not, where do the two begin to differ?"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xcam import progress
from xcam.comparison import alignment, divergence
from xcam.comparison.alignment import LayerSample, Match
from xcam.comparison.result import KEPT, Comparison, Divergence, ImageComparison, Prediction, Step
from xcam.comparison.similarity import measure, scores_apart
from xcam.contract import DEFAULT_SIZE, Array, Model, one_output, preprocessing, validation
from xcam.contract.preprocessing import PRESETS, Preprocessing
from xcam.errors import BackendError, InputError, XcamError, XcamWarning, keywords_checked
from xcam.explanation.explain import Aim, explain, input_size
from xcam.explanation.result import Explanation
from xcam.images import batches, reading
from xcam.methods.maps import Normalize
from xcam.methods.registry import get as get_method
from xcam.methods.registry import option_names
from xcam.models import layers
from xcam.models.load import load
from xcam.targets import Score

SAMPLES = 2
"""Pictures on which layers are aligned."""
WHOLE = 12
"""Of more pictures than this, small copies are kept."""


@keywords_checked(option_names)
def compare(
    models: Sequence[Any],
    image: Any,
    *,
    layer: str | Sequence[str | None] | None = None,
    target: Aim = None,
    method: str = "gradcam",
    method_options: Mapping[str, Any] | None = None,
    score: Score = "logit",
    normalize: Normalize = "max",
    augment: bool = False,
    preprocess: str | Preprocessing | None = None,
    align: bool | None = None,
) -> Comparison:
    """Explain images with several models, and measure how far the models agree.

    Args:
        models: Two or more, each the result of `load` or anything that `load` takes. The others are compared with the
            first.
        image: A path or an RGB uint8 array [H, W, 3], or a list of these. Images that cannot be read are listed in
            `Comparison.failed`.
        layer: One name for all models, or one for each (None: find it); default: the first model's default layer, and
            the corresponding layers of the others.
        target: As for `explain`; default: the first model's top class. The others are asked for the same label, where
            both have labels, else for the same index.
        method: A name from `xcam.list_methods()`.
        method_options: The method's own options, by name.
        score: `logit`, `probability` or `log-probability`, as for `explain`.
        normalize: `max`, `minmax` or `none`, as for `explain`.
        augment: As for `explain`.
        preprocess: The preprocessing of the models that do not state one; default: that of the first model that
            states one, else `unit`.
        align: Align the layers, and find where the models begin to differ; default: where a layer is not named, or
            the verdict is not `identical`.

    Raises:
        InputError: A model, image, layer, target or option cannot be used.
        ModelError: A model cannot be read, fails, or gives NaN or infinity.
        BackendError: A backend, or a package that the measures need, is missing.
    """
    options = {"method_options": method_options, "score": score, "normalize": normalize, "augment": augment}
    opened: list[Model] = [model if validation.is_model(model) else load(model) for model in models]
    if len(opened) < 2:
        raise InputError("there is nothing to compare one model with; give two or more (-m A -m B)")
    images = list(image) if isinstance(image, list | tuple) else [image]
    if not images:
        raise InputError("there is no picture to compare on; give one or more")
    get_method(method)  # an unknown word is found before the work
    findings = _prepared(opened, preprocess)
    failed: list[tuple[str, str]] = []
    reading = _read(images, failed)
    first = list(itertools.islice(reading, SAMPLES))
    if not first:
        raise InputError(f"no picture can be compared: {failed[0][1]}")
    named = _layers(opened, layer)
    sample = [picture for _, picture in first]
    aligned: _Aligned | None = None
    if align or (align is None and any(name is None for name in named[1:])):
        aligned = _Aligned(opened, sample)
        findings += aligned.place(named)
    places = [layers.find(model, name).name for model, name in zip(opened, named, strict=True)]
    found: list[ImageComparison] = []
    worst: list[tuple[tuple[int, float], int]] = []  # a heap of the pictures that keep their explanations
    logits: list[list[Array]] = []
    for path, picture in progress.counted(itertools.chain(first, reading), "pictures", len(images)):
        try:
            one = _compared(opened, path, picture, places, method, target, options)
        except BackendError:  # something is not installed, or broken: no picture would fare better
            raise
        except XcamError as error:
            failed.append((str(path or f"picture {len(found) + len(failed) + 1}"), str(error)))
            continue
        if len(logits) < len(sample):
            logits.append([e.outputs for e in one.explanations])
        if not found:
            findings += _counts(one.explanations)
        found.append(one if len(images) <= WHOLE else _light(one))
        heapq.heappush(worst, (one.badness, len(found) - 1))
        if len(worst) > KEPT:
            place = heapq.heappop(worst)[1]
            found[place] = dataclasses.replace(found[place], explanations=())
    if not found:
        raise InputError(f"no picture could be compared: {failed[0][1]}")
    names = _names(opened)
    result = Comparison(
        names,
        tuple(places),
        method,
        tuple(found),
        findings=tuple(findings),
        failed=tuple(failed),
        notes=_notes(opened),
    )
    if aligned is None and align is None and result.verdict != "identical":
        aligned = _Aligned(opened, sample)
    if aligned is None:
        return result
    same = len(logits) == len(sample)  # else a sample failed
    aligned.finish([np.stack(each) for each in zip(*logits, strict=True)] if same else None)
    unlike = [k for k in range(1, len(opened)) if result.of((0, k)) != "identical"]
    return dataclasses.replace(result, divergences=tuple(aligned.divergences(unlike)))


@keywords_checked()
def corresponding(models: Sequence[Any], image: Any = None) -> list[tuple[str, str, float]]:
    """Which layer of the second model is which of the first, in execution order: names, and the error of their values.

    image: a path or an array; default: noise of the input's size. Raises InputError.
    """
    opened: list[Model] = [model if validation.is_model(model) else load(model) for model in models]
    if len(opened) != 2:
        raise InputError(f"layers are held side by side for two models, not {len(opened)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XcamWarning)
        _prepared(opened, None)
    if image is None:
        size = opened[0].input.size or opened[1].input.size or DEFAULT_SIZE
        image = np.random.default_rng(0).integers(0, 256, (size[0], size[1], 3), dtype=np.uint8)
    picture = reading.read(image) if isinstance(image, str | os.PathLike) else reading.check(image)
    aligned = _Aligned(opened, [picture])
    aligned.finish()
    first, second = aligned.sketches
    return [(first[m.first].layer.name, second[m.second].layer.name, m.error) for m in aligned.matches[0, 1]]


class _Aligned:
    """The layers of all models, held against those of the first."""

    def __init__(self, models: Sequence[Model], images: Sequence[reading.Image]) -> None:
        self.models = models
        self.batches = [_batch(model, images) for model in models]
        self.sketches: list[list[LayerSample]] = [
            alignment.sketches(model, x)
            for model, x in progress.steps(list(zip(models, self.batches, strict=True)), "models' layers")
        ]
        self.matches: dict[tuple[int, int], list[Match]] = {
            (0, k): alignment.align(self.sketches[0], self.sketches[k]) for k in range(1, len(models))
        }

    def finish(self, logits: Sequence[Array] | None = None) -> None:
        """Add the last outputs, by their logits [N, …] for each model; where none are given, the models are asked."""
        for k, model in enumerate(self.models):
            values = one_output(model.predict(self.batches[k])) if logits is None else logits[k]
            end = alignment.end(model, values)
            self.sketches[k] += [end] if end else []
        first = self.sketches[0]
        for (_, k), matches in self.matches.items():
            second = self.sketches[k]
            ends = first[-1].layer.is_output and second[-1].layer.is_output
            if ends and first[-1].values.shape == second[-1].values.shape:
                matches.append(alignment.match(first, second, len(first) - 1, len(second) - 1))

    def place(self, named: list[str | None]) -> list[str]:
        """Fill in the layers that are not named: the default of the first model, and what corresponds to it.

        Where nothing does, the nearest earlier layer that has a counterpart is taken; that is a finding.
        """
        findings = []
        if named[0] is None:
            named[0] = self._common(layers.find(self.models[0], None).name)
        for k in range(1, len(self.models)):
            if named[k] is None:
                found = self._counterpart(k, str(named[0]))
                if found is None:
                    findings.append(
                        f"nothing in {self.models[k].name} corresponds to {named[0]!r} (looked for the same shape and "
                        "values); its own default layer is explained"
                    )
                    found = layers.find(self.models[k], None).name
                named[k] = found
        return findings

    def _counterpart(self, k: int, name: str) -> str | None:
        for m in self.matches[0, k]:
            if self.sketches[0][m.first].layer.name == name:
                return self.sketches[k][m.second].layer.name
        return None

    def _common(self, wanted: str) -> str:
        """`wanted`, or the last layer ahead of it that has space and a counterpart in every other model."""
        sketches = self.sketches[0]
        names = [s.layer.name for s in sketches]
        last = names.index(wanted) if wanted in names else len(names) - 1
        for place in range(last, -1, -1):
            layer = sketches[place].layer
            fit = layer.has_space and layer.reaches_output and not layer.is_output
            if fit and all(self._counterpart(k, layer.name) for k in range(1, len(self.models))):
                return layer.name
        return wanted

    def _misordered(self, k: int, last: Match) -> bool:
        """The outputs are those of the first model in another order, and labels do not say so."""
        if last.order is None or not self.sketches[k][last.second].layer.is_output:
            return False
        labels, others = self.models[0].labels, self.models[k].labels
        if labels is None or others is None or len(others) != len(last.order):
            return True
        return [others[place] for place in last.order] != list(labels)

    def divergences(self, unlike: Collection[int]) -> Iterator[Divergence]:
        """For every other model: the errors along the layers, and where they jump; `unlike`: models that are not
        identical to the first."""
        for (first, second), matches in self.matches.items():
            a, b = self.sketches[first], self.sketches[second]
            steps = [Step(a[m.first].layer.name, b[m.second].layer.name, m.error) for m in matches]
            errors = [m.error for m in matches]
            place = divergence.first_jump(errors)
            if place is None and second in unlike:
                place = divergence.first_jump(errors, divergence.SUSPECT)
            if place is None and matches and self._misordered(second, matches[-1]):
                place = len(matches) - 1
            if place is not None:  # another order of channels is no mistake where all that follows goes along with it
                moved = (k for k, m in enumerate(matches[:place]) if m.order and len(a[m.first].shape) > 1)
                place = next(moved, place)
            why = ""
            if place is not None:
                pair = self.models[first], self.models[second]
                x = self.batches[first], self.batches[second]
                why = next(filter(None, divergence.causes(a, b, matches, place, pair, x)), "")
                m = matches[place]
                apart = alignment.error(a[m.first].values, b[m.second].values)  # as they are, in whatever order
                steps[place] = Step(alignment.innermost(a, m.first), alignment.innermost(b, m.second), apart)
            yield Divergence((first, second), tuple(steps), place, why)


def _prepared(models: list[Model], given: str | Preprocessing | None) -> list[str]:
    """Give every model that does not say how pictures are scaled the same preprocessing, and one size; tell what differs."""
    how = preprocessing.preprocessing(given)
    findings = []
    said = [model.input.preprocessing for model in models]
    common = how or next((p for p in said if p is not None), None)
    if common is None:
        warnings.warn(
            "no model says how pictures are to be scaled: 'unit' (0…1) is used; choose with preprocess= (--preprocess)",
            XcamWarning,
            stacklevel=3,
        )
        common = PRESETS["unit"]
    sizes = [model.input.size for model in models]
    size = next((s for s, m in zip(sizes, models, strict=True) if s is not None and m.input.fixed), None)
    size = size or next((s for s in sizes if s is not None), None)
    for model, own in zip(models, said, strict=True):
        spec = model.input
        if own is None:
            spec = dataclasses.replace(spec, preprocessing=common)
        elif dataclasses.replace(own, name="") != dataclasses.replace(common, name=""):
            findings.append(
                f"{model.name} ({model.backend}) says of itself that it takes pictures scaled as {own.name!r}, the others "
                f"are given {common.name!r}"
            )
        if spec.size is None and size is not None:
            spec = dataclasses.replace(spec, size=size)
        model.input = spec
    seen = {input_size(model.input) for model in models}
    if len(seen) > 1:
        findings.append(
            "the models take pictures of different sizes: " + ", ".join(f"{h}×{w}" for h, w in sorted(seen))
        )
    counts = [len(model.labels) if model.labels is not None else None for model in models]
    if len({count for count in counts if count is not None}) > 1:
        findings.append(f"the models have different numbers of labels: {', '.join(map(str, counts))}")
    return findings


def _counts(explanations: Sequence[Explanation]) -> list[str]:
    counts = [len(e.outputs) for e in explanations]
    return (
        [f"the models have different numbers of classes: {', '.join(map(str, counts))}"]
        if len(set(counts)) > 1
        else []
    )


def _batch(model: Model, images: Sequence[reading.Image]) -> Array:
    how = model.input.preprocessing or PRESETS["unit"]
    return batches.batch(images, model.input, input_size(model.input), how)


def _layers(models: Sequence[Model], layer: str | Sequence[str | None] | None) -> list[str | None]:
    """One name for each model, None where none is given. Raises InputError."""
    if layer is None:
        return [None] * len(models)
    given = [layer] * len(models) if isinstance(layer, str) else list(layer)
    if len(given) != len(models):
        raise InputError(f"{len(given)} layers for {len(models)} models; give one for all, or one for each")
    return [
        None if name is None else layers.find(model, name).name for model, name in zip(models, given, strict=True)
    ]


def _read(images: Sequence[Any], failed: list[tuple[str, str]]) -> Iterator[tuple[Path | None, reading.Image]]:
    """The pictures one by one; those that cannot be read go to `failed`."""
    for k, image in enumerate(images):
        try:
            if isinstance(image, str | os.PathLike):
                yield Path(image), reading.read(image)
            else:
                yield None, reading.check(image)
        except XcamError as error:
            failed.append((str(image) if isinstance(image, str | os.PathLike) else f"picture {k + 1}", str(error)))


def _light(one: ImageComparison) -> ImageComparison:
    """The same with one small copy of the picture."""
    small = one.explanations[0].shrunk()
    rest = [dataclasses.replace(e, image=small.image) for e in one.explanations[1:]]
    return dataclasses.replace(one, explanations=(small, *rest))


def _compared(
    models: Sequence[Model],
    path: Path | None,
    picture: reading.Image,
    places: Sequence[str],
    method: str,
    target: Any,
    options: dict[str, Any],
) -> ImageComparison:
    """One picture, explained by all models for the same class, and the measures of every pair."""
    one: Any = explain
    first: Explanation = one(models[0], picture, layer=places[0], target=target, method=method, **options)
    found = [first]
    for model, place in zip(models[1:], places[1:], strict=True):
        aim: Any = target
        if target is None and first.index is not None:
            both = models[0].labels is not None and model.labels is not None
            aim = first.label if both and model.labels != models[0].labels else first.index
        found.append(one(model, picture, layer=place, target=aim, method=method, **options))
    found = [dataclasses.replace(e, path=path) for e in found]
    measures = {}
    for a in range(len(models)):
        for b in range(a + 1, len(models)):
            apart = scores_apart(found[a], found[b], (models[a].labels, models[b].labels))
            measures[a, b] = measure(found[a], found[b], apart)
    said = tuple(Prediction(e.label, e.index, e.score) for e in found)
    return ImageComparison(path, tuple(found), measures, said)


def _names(models: Sequence[Model]) -> tuple[str, ...]:
    """What tells the models apart."""
    names = [f"{model.name} ({model.backend})" for model in models]
    return tuple(name if names.count(name) == 1 else f"{name} #{k + 1}" for k, name in enumerate(names))


def _notes(models: Sequence[Model]) -> tuple[str, ...]:
    return tuple(f"{model.name}: {note}" for model in models for note in model.notes)
