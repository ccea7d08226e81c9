"""`evaluate`: how far the maps of several methods can be trusted, for one model and a set of images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from xcam import progress
from xcam.contract import validation
from xcam.errors import InputError, keywords_checked
from xcam.evaluation.registry import Measure, get, list_measures
from xcam.evaluation.result import Evaluation
from xcam.evaluation.run import Configured, Run, shuffling
from xcam.evaluation.scores import FLOOR
from xcam.evaluation.truth import Truth
from xcam.explanation import scales
from xcam.explanation.context import require
from xcam.explanation.run import ImageSource
from xcam.explanation.settings import BATCH
from xcam.methods.registry import get as get_method
from xcam.models.load import load, with_output
from xcam.targets import Score

STAGES = 4
"""The largest number of stages of the randomisation test, by default."""
Options = Mapping[str, Any]


@keywords_checked()
def evaluate(
    model: Any,
    images: Iterable[ImageSource] | ImageSource,
    *,
    methods: Sequence[str] | Mapping[str, Options] = ("gradcam",),
    layer: str | None = None,
    target: Any = None,
    measures: Sequence[str] | Mapping[str, Options] | None = None,
    boxes: Sequence[Any] | None = None,
    masks: Sequence[Any] | None = None,
    score: Score = "logit",
    floor: bool = True,
    level: float = 0.95,
    seed: int = 0,
    stages: int = STAGES,
    output: str | None = None,
) -> Evaluation:
    """Measure how far the maps of several methods can be trusted, and rank the methods.

    The model and all other arguments are left unchanged.

    Args:
        model: A model returned by `load`, or anything that `load` takes.
        images: Paths, or RGB uint8 arrays [H, W, 3]. They are read when they are needed, a few at a time.
        methods: Names, or a mapping from names to options: `{"smoothgradcam++": {"n": 8}}`.
        layer: As for `explain`.
        target: One for all images, or a list with one for each; by default the top class of each image. All methods
            explain the same targets.
        measures: Names, or a mapping from names to options. By default those of `list_measures()` that are marked as
            default and whose inputs are available.
        boxes: For each image a box (x0, y0, x1, y1) in its pixels, x1 and y1 excluded, or a list of boxes, or None.
        masks: For each image a path or an array [h, w] of its size, nonzero on the object, or None.
        score: As for `explain`.
        floor: Evaluate `random` too, the baseline of all other methods. It draws new weights for each image.
        level: The confidence level of the intervals, between 0 and 1.
        seed: The seed of all random numbers.
        stages: The largest number of stages of the randomisation test; the layers are divided among them.
        output: The name of the output that is explained, for models with several; default: as for `load`.

    Returns:
        The values of all measures, with means, intervals and the ranking. An image that fails is listed in `failed`.

    Raises:
        InputError: An argument cannot be used, or every image fails.
        ModelError: The model cannot be read or explained.
        BackendError: A package is missing, or the backend lacks a capability.
    """
    configured = _methods(methods, floor)
    chosen = _measures(measures, seed, boxes is not None or masks is not None)
    if not 0 < level < 1:
        raise InputError(f"cannot use level={level}: it is a probability; give a number between 0 and 1, like 0.95")
    if stages < 1:
        raise InputError(f"cannot use stages={stages}; give a positive integer")
    if seed < 0 or seed != int(seed):
        raise InputError(f"cannot use seed={seed}; give an integer, 0 or more")
    if not validation.is_model(model):
        model = load(model)
    if output is not None:
        model = with_output(model, output)
    for method, _ in configured.values():
        require(model, method)
    explained = scales.find(model, layer)
    if isinstance(images, str | os.PathLike | np.ndarray):
        images = [images]
    elif not isinstance(images, Iterable):
        raise InputError(f"cannot use images of type {type(images).__name__}; give paths or arrays")
    truth = Truth(boxes, masks)
    run = Run(model, explained, score, configured, chosen, target, truth, seed)
    if run.needs_shuffling:
        shuffling(model)  # raises before any work is done
        if not isinstance(images, Sequence):
            raise InputError("the randomisation test reads the images several times; give a list of them")
    for part in _parts(images, target, truth):
        run.add(part)
    if not run.names:
        reason = run.failed[0][1] if run.failed else "there are none; give one or more"
        raise InputError(f"no image could be evaluated: {reason}")
    if run.needs_shuffling:
        run.shuffle(stages)
    return run.result(level)


def _methods(methods: Sequence[str] | Mapping[str, Options], floor: bool) -> Configured:
    if isinstance(methods, str):
        methods = [methods]
    options = dict(methods) if isinstance(methods, Mapping) else {name: {} for name in methods}
    if floor:
        options.setdefault(FLOOR, {})
    if not options:
        raise InputError("no method is named; give one or more")
    return {
        name: (method := get_method(str(name)), dict(method.checked(chosen or {})))
        for name, chosen in options.items()
    }


def _measures(
    measures: Sequence[str] | Mapping[str, Options] | None, seed: int, located: bool
) -> list[tuple[Measure, dict[str, Any]]]:
    """Return the measures with their options. `located`: boxes or masks are given."""
    if isinstance(measures, str):
        measures = [measures]
    options: dict[str, Options]
    if measures is None:
        known = list_measures()
        options = {name: {} for name, m in known.items() if m.default and (located or "masks" not in m.inputs)}
    else:
        options = dict(measures) if isinstance(measures, Mapping) else {name: {} for name in measures}
    if not options:
        raise InputError("no measure is named; give one or more, or leave `measures` out")
    result = []
    for name, chosen in options.items():
        measure = get(str(name))
        if "masks" in measure.inputs and not located:
            raise InputError(f"measure {name!r} needs the location of the object; give boxes= or masks= (--table)")
        measure.require()
        seeded = {"seed": seed} if "seed" in measure.options else {}
        result.append((measure, seeded | dict(measure.checked(chosen or {}))))
    return result


def _parts(images: Iterable[ImageSource], target: Any, truth: Truth) -> Iterator[list[tuple[int, ImageSource]]]:
    """Yield batches of numbered images; none is read yet."""
    if isinstance(images, Sequence):
        truth.check(len(images))
        if isinstance(target, list | tuple) and len(target) != len(images):
            raise InputError(
                f"{len(target)} targets for {len(images)} images; give one for each image, or one for all"
            )
        starts = list(range(0, len(images), BATCH))
        for start in progress.steps(starts, "batches of images"):
            yield list(enumerate(images[start : start + BATCH], start))
        return
    numbered = enumerate(iter(images))
    count = 0
    while part := list(islice(numbered, BATCH)):
        count += len(part)
        yield part
    truth.check(count)
