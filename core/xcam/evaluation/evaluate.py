"""`evaluate`: how far can the maps of several methods be trusted, on this model and these pictures?"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from xcam import progress
from xcam.contract import validation
from xcam.errors import InputError
from xcam.evaluation.registry import Measure, get
from xcam.evaluation.registry import list_measures as known
from xcam.evaluation.result import FLOOR, Evaluation
from xcam.evaluation.run import Part, Run, shuffling
from xcam.evaluation.truth import Truth
from xcam.explanation.context import require
from xcam.explanation.explain import BATCH, ImageSource
from xcam.methods.registry import Method
from xcam.methods.registry import get as get_method
from xcam.models import layers
from xcam.models.load import load
from xcam.targets import Score

STAGES = 4
"""Into so many the cascade of shuffled layers is divided, at most."""
Options = Mapping[str, Any]


def evaluate(
    model: Any,
    images: Iterable[ImageSource] | ImageSource,
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
) -> Evaluation:
    """Measure how far the maps of several methods can be trusted, and rank the methods.

    model: what `load` returned, or anything that it takes.
    images: paths or RGB uint8 arrays [H, W, 3], read as they are needed, a few at a time.
    methods: names; or a mapping from names to their options.
    layer, score: as for `explain`. target: one for all pictures, or a list with one for each; default: each picture's
        top class. All methods explain the same.
    measures: names, or a mapping from names to options; default: those of `xcam.list_measures()` that are taken by default
        and that have what they need.
    boxes: for each picture (x0, y0, x1, y1) in its pixels, x1 and y1 not included; a list of such; or None.
    masks: for each picture a path or an array [h, w] of its size, not 0 where the object is; or None.
    floor: evaluate `random` too: what every method has to beat. It draws anew for each picture.
    level: of the confidence intervals. seed: of all that is drawn.
    stages: of the cascade for the randomisation test, at most; its layers are divided among them.

    Raises InputError, ModelError or BackendError. A picture that fails is told in `failed`.
    """
    hows = _methods(methods, floor)
    chosen = _measures(measures, seed, boxes is not None or masks is not None)
    if not 0 < level < 1:
        raise InputError(f"level is {level}; give a share between 0 and 1, as 0.95")
    if stages < 1:
        raise InputError(f"stages is {stages}; give 1 or more")
    if seed < 0 or seed != int(seed):
        raise InputError(f"seed is {seed}; give a whole number, 0 or more")
    if not validation.is_model(model):
        model = load(model)
    for how, _ in hows.values():
        require(model, how)
    place = layers.find(model, layer)
    if isinstance(images, str | os.PathLike | np.ndarray):
        images = [images]
    elif not isinstance(images, Iterable):
        raise InputError(f"images is a {type(images).__name__}; give paths or arrays")
    truth = Truth(boxes, masks)
    run = Run(model, place, score, hows, chosen, seed)
    if run.cascade:
        shuffling(model)  # found out before the work
        if not isinstance(images, Sequence):
            raise InputError("the randomisation test goes through the pictures several times; give a list of them")
    for part in _parts(images, target, truth):
        run.take(part)
    if not run.read:
        why = run.failed[0][1] if run.failed else "there is none; give one or more"
        raise InputError(f"no picture could be evaluated: {why}")
    if run.cascade:
        run.shuffle(stages)
    return run.answer(level)


def _methods(given: Sequence[str] | Mapping[str, Options], floor: bool) -> dict[str, tuple[Method, dict[str, Any]]]:
    if isinstance(given, str):
        given = [given]
    options = dict(given) if isinstance(given, Mapping) else {name: {} for name in given}
    if floor:
        options.setdefault(FLOOR, {})
    if not options:
        raise InputError("no method is named; give one or more")
    return {name: (how := get_method(str(name)), dict(how.checked(told or {}))) for name, told in options.items()}


def _measures(
    given: Sequence[str] | Mapping[str, Options] | None, seed: int, located: bool
) -> list[tuple[Measure, dict[str, Any]]]:
    """The measures with their options; `located`: it is known where the objects are."""
    if isinstance(given, str):
        given = [given]
    options: dict[str, Options]
    if given is None:
        options = {name: {} for name, m in known().items() if m.default and (located or "masks" not in m.inputs)}
    else:
        options = dict(given) if isinstance(given, Mapping) else {name: {} for name in given}
    if not options:
        raise InputError("no measure is named; give one or more, or leave them out")
    found = []
    for name, told in options.items():
        measure = get(str(name))
        if "masks" in measure.inputs and not located:
            raise InputError(f"{name} needs to know where the object is; give boxes= or masks= (--table)")
        measure.require()
        seeded = {"seed": seed} if "seed" in measure.options else {}
        found.append((measure, seeded | dict(measure.checked(told or {}))))
    return found


def _parts(images: Iterable[ImageSource], target: Any, truth: Truth) -> Iterator[Part]:
    """Batches of pictures, none of which is read yet."""
    if isinstance(images, Sequence):
        truth.check(len(images))
        if isinstance(target, list | tuple) and len(target) != len(images):
            raise InputError(f"{len(target)} targets for {len(images)} pictures; give one for all, or one for each")
        starts = list(range(0, len(images), BATCH))
        for start in progress.steps(starts, "batches of pictures"):
            yield list(enumerate(images[start : start + BATCH], start)), target, truth
        return
    rest = enumerate(iter(images))
    count = 0
    while part := list(islice(rest, BATCH)):
        count += len(part)
        yield part, target, truth
    truth.check(count)
