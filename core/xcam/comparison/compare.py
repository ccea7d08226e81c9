"""`compare`: whether converted models look at the same regions, and at which layer they begin to differ."""

from __future__ import annotations

import copy
import dataclasses
import heapq
import itertools
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from xcam import progress
from xcam.comparison import inputs
from xcam.comparison.correspondence import Correspondence
from xcam.comparison.data import KEPT, ImageComparison, LayerPair
from xcam.comparison.images import Explainer, compare_image, with_small_image
from xcam.comparison.result import Comparison
from xcam.contract import Array, Model, validation
from xcam.contract.layouts import full_size
from xcam.contract.preprocessing import Preprocessing
from xcam.errors import BackendError, InputError, XcamError, XcamWarning, keywords_checked
from xcam.explanation import scales
from xcam.explanation.explain import explain_at
from xcam.explanation.requests import Aim
from xcam.explanation.settings import settings as checked_settings
from xcam.images import reading
from xcam.methods.maps import Normalize
from xcam.methods.registry import option_names
from xcam.models import layers
from xcam.models.load import load, with_output
from xcam.targets import Score

SAMPLES = 3
"""The number of images on which layers are aligned."""
WHOLE = 12
"""Up to this number of images, results keep whole images; for more images, small copies."""


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
    output: str | Sequence[str | None] | None = None,
) -> Comparison:
    """Explain images with several models, and measure how far the models agree.

    Args:
        models: Two or more, each the result of `load` or anything that `load` takes. The others are compared with the
            first.
        image: A path or an RGB uint8 array [H, W, 3], or a list of these. Images that cannot be read are listed in
            `Comparison.failed`.
        layer: One name for all models, or one for each (None: the layer that has the same value); default: the first
            model's default layer, and the corresponding layers of the others.
        target: As for `explain`; default: the first model's top class. The other models explain the class with the same
            label if both have labels, else the class with the same index.
        method: A name from `xcam.list_methods()`.
        method_options: The method's own options, by name.
        score: `logit`, `probability` or `log-probability`, as for `explain`.
        normalize: `max`, `minmax` or `none`, as for `explain`.
        augment: As for `explain`.
        preprocess: The preprocessing of the models that do not state one; default: that of the first model that
            states one, else `unit`.
        align: Align the layers, and find where the models begin to differ; default: where a layer is not named, or
            the verdict is not `identical`.
        output: The name of the output that is explained, for models with several: one for all models, or one for each;
            default: as for `load`.

    Raises:
        InputError: A model, image, layer, target or option cannot be used.
        ModelError: A model cannot be read, fails, or gives NaN or infinity.
        BackendError: A backend, or a package that the measures need, is missing.
    """
    settings = checked_settings(method, method_options, score, normalize, augment)
    opened = with_outputs(opened_models(models), output)
    if len(opened) < 2:
        raise InputError("cannot compare fewer than two models; give two or more (-m A -m B)")
    images = list(image) if isinstance(image, list | tuple) else [image]
    if not images:
        raise InputError("cannot compare an empty list of images; give one or more")
    specs = inputs.common_inputs(opened, preprocess)
    findings = inputs.differences(opened, specs, preprocess) + _last_activations(opened)
    failed: list[tuple[str, str]] = []
    stream = inputs.read_images(images, failed)
    first = list(itertools.islice(stream, SAMPLES))
    if not first:
        raise InputError(f"no image can be compared: {failed[0][1]}")
    names = layer_names(opened, layer)
    sample = [image for _, image in first]
    if set(names) == {None}:
        for k in range(len(opened) if align is False else 1):
            at_layer = partial(explain_at, opened[k], specs[k], sample[0], target=target, settings=settings)
            names[k] = scales.of_image(opened[k], sample[0], lambda name, at=at_layer: at(layer=name).cam)  # type: ignore[misc]
    correspondence: Correspondence | None = None
    if align or (align is None and None in names):
        correspondence = Correspondence(opened, specs, sample)
    try:
        findings += [] if correspondence is None else correspondence.fill_in(names)
        explainers = [
            Explainer(model, spec, layers.find(model, name).name)
            for model, spec, name in zip(opened, specs, names, strict=True)
        ]
    except XcamError as error:
        cause = "" if correspondence is None else _first_cause(correspondence)
        if not cause:
            raise
        raise InputError(f"{error}; {cause}") from error
    results: list[ImageComparison] = []
    worst: list[tuple[tuple[int, float], int]] = []  # a heap of the images that keep their explanations
    logits: list[list[Array]] = []
    for path, array in progress.counted(itertools.chain(first, stream), "images", len(images)):
        try:
            result = compare_image(explainers, path, array, target, settings)
        except BackendError:  # a package is missing or broken: every image would fail
            raise
        except XcamError as error:
            failed.append((str(path or f"image {len(results) + len(failed) + 1}"), str(error)))
            continue
        if len(logits) < len(sample):
            logits.append([e.outputs for e in result.explanations])
        if not results:
            findings += _class_counts(result)
        results.append(result if len(images) <= WHOLE else with_small_image(result))
        heapq.heappush(worst, (result.badness, len(results) - 1))
        if len(worst) > KEPT:
            index = heapq.heappop(worst)[1]
            results[index] = dataclasses.replace(results[index], explanations=())
    if not results:
        raise InputError(f"no image could be compared: {failed[0][1]}")
    findings += _zero_maps(results)
    comparison = Comparison(
        unique_names(opened),
        tuple(explainer.layer for explainer in explainers),
        method,
        tuple(results),
        findings=tuple(findings),
        failed=tuple(failed),
        notes=tuple(f"{model.name}: {note}" for model in opened for note in model.notes),
    )
    if correspondence is None and align is None and comparison.verdict != "identical":
        correspondence = Correspondence(opened, specs, sample)
    if correspondence is None:
        return comparison
    is_complete = len(logits) == len(sample)  # else a sample failed
    correspondence.add_outputs([np.stack(each) for each in zip(*logits, strict=True)] if is_complete else None)
    unlike = [k for k in range(1, len(opened)) if comparison.of((0, k)) != "identical"]
    return dataclasses.replace(comparison, divergences=tuple(correspondence.divergences(unlike)))


@keywords_checked()
def corresponding(models: Sequence[Any], image: Any = None) -> list[LayerPair]:
    """Find the layers of two models that correspond to each other, by their values.

    Args:
        models: Two, each the result of `load` or anything that `load` takes.
        image: A path or an RGB uint8 array [H, W, 3]; default: noise of the input's size.

    Returns:
        The values that both models have, each once, with all its names in both and the relative error, in execution order.

    Raises:
        InputError: The number of models is not two, or the image cannot be used.
    """
    opened = opened_models(models)
    if len(opened) != 2:
        raise InputError(f"cannot match the layers of {len(opened)} models; give two")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XcamWarning)
        specs = inputs.common_inputs(opened, None)
    if image is None:
        size = full_size(specs[0].size)
        image = np.random.default_rng(0).integers(0, 256, (size[0], size[1], 3), dtype=np.uint8)
    array = reading.read(image) if isinstance(image, str | os.PathLike) else reading.check(image)
    correspondence = Correspondence(opened, specs, [array])
    correspondence.add_outputs()
    return correspondence.pairs()


def opened_models(models: Sequence[Any]) -> list[Model]:
    """Return the models, loaded where they are not yet. Raises InputError, ModelError, BackendError."""
    return [model if validation.is_model(model) else load(model) for model in models]


def with_outputs(models: Sequence[Model], output: str | Sequence[str | None] | None) -> list[Model]:
    """Return the models with their chosen outputs, without labels that are only indices. Raises InputError."""
    models = [_without_indices(model) for model in models]
    names = [output] * len(models) if output is None or isinstance(output, str) else list(output)
    if len(names) != len(models):
        raise InputError(f"{len(names)} outputs for {len(models)} models; give one for all, or one for each")
    return [model if name is None else with_output(model, name) for model, name in zip(models, names, strict=True)]


def _without_indices(model: Model) -> Model:
    """Return a model whose labels are `0`, `1`, …, as files of scikit-learn have them, without these; else itself."""
    if model.labels is None or list(model.labels) != [str(i) for i in range(len(model.labels))]:
        return model
    result = copy.copy(model)
    result.labels = None
    return result


def _last_activations(models: Sequence[Model]) -> list[str]:
    """Return a finding where the activations at the models' outputs differ: class scores and heatmaps are ahead of them."""
    ends = [validation.activation(model) for model in models]
    names = [next(iter(end.values())) if isinstance(end, Mapping) else end for end in ends]
    if len(set(names)) == 1:
        return []
    each = ", ".join(
        f"{name or 'none'} in {model.name} ({model.backend})" for name, model in zip(names, models, strict=True)
    )
    return [
        f"the activations at the outputs differ: {each}; heatmaps and class scores are compared ahead of them, and the outputs "
        "differ; use the same activation"
    ]


def _first_cause(correspondence: Correspondence) -> str:
    """Return where models begin to differ and why, for a message; empty where no cause is known."""
    correspondence.add_outputs()
    for result in correspondence.divergences(range(1, len(correspondence.models))):
        if result.layer is not None and result.cause is not None:
            name = correspondence.models[result.pair[1]].model.name
            return f"{name} begins to differ at {result.layer}: {result.cause.text}"
    return ""


def _class_counts(result: ImageComparison) -> list[str]:
    counts = [len(e.outputs) for e in result.explanations]
    if len(set(counts)) == 1:
        return []
    return [f"the models have different numbers of classes: {', '.join(map(str, counts))}"]


def _zero_maps(results: Sequence[ImageComparison]) -> list[str]:
    zero = [result for result in results if result.has_zero_maps]
    if not zero:
        return []
    where = str(zero[0].path or "the image") if len(zero) == 1 else f"{len(zero)} of {len(results)} images"
    return [
        f"the heatmaps are zero everywhere on {where}: only the class scores are compared there; choose another layer, "
        "class or method"
    ]


def layer_names(models: Sequence[Model], layer: str | Sequence[str | None] | None) -> list[str | None]:
    """Return one name for each model, None where none is given. Raises InputError."""
    if layer is None:
        return [None] * len(models)
    names = [layer] * len(models) if isinstance(layer, str) else list(layer)
    if len(names) != len(models):
        raise InputError(f"{len(names)} layers for {len(models)} models; give one for all, or one for each")
    return [
        None if name is None else layers.find(model, name).name for model, name in zip(models, names, strict=True)
    ]


def unique_names(models: Sequence[Model]) -> tuple[str, ...]:
    """Return a name for each model, with its backend, and with its number where names are equal."""
    names = [f"{model.name} ({model.backend})" for model in models]
    return tuple(name if names.count(name) == 1 else f"{name} #{k + 1}" for k, name in enumerate(names))
