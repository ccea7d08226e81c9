"""`blame`: what each stretch of a second model contributes to its difference from the first."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from xcam import progress
from xcam.comparison import inputs
from xcam.comparison.alignment import LayerSample
from xcam.comparison.blame import conclusions, estimates, locations
from xcam.comparison.blame.examine import Closer
from xcam.comparison.blame.locations import Location
from xcam.comparison.blame.measure import interval
from xcam.comparison.blame.result import Blame
from xcam.comparison.blame.subject import Subject, check_able, common_classes
from xcam.comparison.blame.swaps import Side
from xcam.comparison.blame.walks import Walks
from xcam.comparison.compare import layer_names, opened_models, unique_names, with_outputs
from xcam.comparison.correspondence import Correspondence
from xcam.contract import validation
from xcam.contract.preprocessing import Preprocessing
from xcam.errors import BackendError, InputError, XcamError, keywords_checked
from xcam.explanation.requests import Aim
from xcam.explanation.settings import settings as checked_settings
from xcam.images import reading
from xcam.methods.maps import Normalize
from xcam.methods.registry import option_names
from xcam.models import layers
from xcam.targets import Score

SAMPLES = 3
"""The number of images on which layers are aligned, and on which named locations are examined more closely."""
MOST_LOCATIONS = 40
"""Up to this number of locations values are swapped at each; of more, at the ends of the stretches with the largest estimates."""


@keywords_checked(option_names)
def blame(
    models: Sequence[Any],
    image: Any,
    *,
    layer: str | Sequence[str | None] | None = None,
    target: Aim = None,
    method: str = "gradcam",
    method_options: Mapping[str, Any] | None = None,
    score: Score = "logit",
    normalize: Normalize = "max",
    preprocess: str | Preprocessing | None = None,
    output: str | Sequence[str | None] | None = None,
    fast: bool = False,
    causes: bool = True,
    level: float = 0.95,
) -> Blame:
    """Find out where the difference of two models comes from: what each stretch of the second contributes to it.

    At each location through which everything passes, the second model is given the first model's value. The part of
    the difference at the end that this removes, in class scores and in the heatmap, is the contribution of the layers ahead. Where the
    second model alone has a reduced precision, its values are put into the first instead: it would round what it is given. Memory
    does not depend on the number of images.

    Args:
        models: Two, each the result of `load` or anything that `load` takes. The first is the reference.
        image: A path or an RGB uint8 array [H, W, 3], or a list of these. Images that cannot be examined are listed in
            `Blame.failed`.
        layer: The explained layer: one name for both models, or one for each (None: find it); default: the first model's
            default layer, and the corresponding layer of the other.
        target: As for `explain`; default: the first model's top class.
        method: A name from `xcam.list_methods()` whose map follows from the values and gradients at the layer.
        method_options: The method's own options, by name.
        score: `logit`, `probability` or `log-probability`, as for `explain`.
        normalize: `max`, `minmax` or `none`, as for `explain`.
        preprocess: The preprocessing of the models that do not state one; default: that of the first model that
            states one, else `unit`.
        output: The name of the output that is explained, for models with several: one for both models, or one for each;
            default: as for `load`.
        fast: Only estimate the contributions to the class scores, from forward and backward passes of the whole models.
        causes: Seek the causes of named locations, which costs many more passes than the contributions.
        level: The confidence level of the intervals.

    Raises:
        InputError: A model, image, layer, target or option cannot be used, or the models have no layers in common.
        ModelError: A model cannot be read, fails, or gives NaN or infinity.
        BackendError: A backend lacks `resume`, or a package that the measures need is missing.
    """
    settings = checked_settings(method, method_options, score, normalize)
    if not 0 < level < 1:
        raise InputError(f"cannot use level={level}; give a number between 0 and 1")
    two = with_outputs(opened_models(models), output)
    if len(two) != 2:
        raise InputError(f"cannot blame {len(two)} models; give two, the reference first (-m A -m B)")
    check_able(two, settings)
    images = list(image) if isinstance(image, list | tuple) else [image]
    if not images:
        raise InputError("cannot examine an empty list of images; give one or more")
    specs = inputs.common_inputs(two, preprocess)
    findings = inputs.differences(two, specs, preprocess)
    failed: list[tuple[str, str]] = []
    stream = inputs.read_images(images, failed)
    sample = list(itertools.islice(stream, SAMPLES))
    if not sample:
        raise InputError(f"no image can be examined: {failed[0][1]}")
    names = layer_names(two, layer)
    correspondence = Correspondence(two, specs, [array for _, array in sample])
    findings += correspondence.fill_in(names)
    first, second = (
        Side(model, spec, layers.find(model, name), columns)
        for model, spec, name, columns in zip(two, specs, names, common_classes((two[0], two[1])), strict=True)
    )
    samples = correspondence.samples[0], correspondence.samples[1]
    pairs = locations.pairs(samples, correspondence.matches[1], (first.layer.name, second.layer.name))
    if not pairs:
        raise InputError(
            f"cannot blame layers: no layer of {two[1].name} corresponds to one of {two[0].name} in shape and values; give two "
            "versions of one model, or compare their heatmaps only (xcam compare)"
        )
    subject = Subject((first, second), target, settings, _position(second, samples[1]))
    cuts = locations.cuts(pairs)
    if fast:
        walks = Walks(subject, cuts, is_fast=True)
    else:
        cuts = _chosen(subject, cuts, sample[0][1], findings)
        walks = Walks(subject, cuts, kept=SAMPLES)
    for path, array in progress.counted(itertools.chain(sample, stream), "images", len(images)):
        try:
            walks.add(path, array)
        except BackendError:
            raise
        except XcamError as error:
            failed.append((str(path or f"image {len(walks.images) + len(failed) + 1}"), str(error)))
    if not walks.images:
        raise InputError(f"no image could be examined: {failed[0][1]}")
    titles = unique_names(two)
    result = Blame(
        names=(titles[0], titles[1]),
        layers=(first.layer.name, second.layer.name),
        method=method,
        stretches=tuple(walks.stretches(level)),
        images=tuple(walks.images),
        scores=interval([image.scores for image in walks.images], level),
        heatmap=interval([image.heatmap for image in walks.images], level),
        heatmap_behind=walks.behind(level),
        is_fast=fast,
        in_first=subject.in_first,
        has_causes=causes and not fast,
        level=level,
        findings=tuple(findings),
        failed=tuple(failed),
        notes=tuple(f"{model.name}: {note}" for model in two for note in model.notes),
    )
    if fast:
        return result
    closer = Closer(samples, walks.pairs, result.layers)
    return conclusions.drawn(result, walks, closer, correspondence, causes)


def _position(side: Side, samples: Sequence[LayerSample]) -> int:
    """Return the position of the explained layer among the samples, or that of the last sample ahead of it."""
    order = {layer.name: k for k, layer in enumerate(validation.layers(side.model))}
    return max((k for k, s in enumerate(samples) if order[s.layer.name] <= order[side.layer.name]), default=-1)


def _chosen(subject: Subject, cuts: list[Location], image: reading.Image, findings: list[str]) -> list[Location]:
    """Return the locations at which values are swapped: all, or those at the ends of the stretches with the largest estimates."""
    if len(cuts) <= MOST_LOCATIONS:
        return cuts
    pair = subject.run(image, [p.first for p in cuts], [p.second for p in cuts], gradients=True)
    scores = estimates.estimated(pair.first, pair.second, cuts, pair.measure(pair.second.scores))
    kept = locations.thinned(cuts, scores, MOST_LOCATIONS)
    findings.append(
        f"values are swapped at {len(kept)} of {len(cuts)} locations, chosen by estimates on the first image"
    )
    return kept
