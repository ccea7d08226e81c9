"""An evaluation under way. Pictures are read a few at a time, and none is kept."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from xcam import progress
from xcam.contract import Array, Layer, Model
from xcam.errors import BackendError, InputError, XcamError, ZeroHeatmapWarning
from xcam.evaluation.registry import Measure
from xcam.evaluation.result import ENOUGH, FLOOR, Evaluation
from xcam.evaluation.subject import Subject, batch, cams
from xcam.evaluation.truth import Truth
from xcam.explanation.explain import BATCH, ImageSource, explain
from xcam.explanation.result import Explanation
from xcam.images import reading
from xcam.methods.registry import Method
from xcam.targets import Score, Target

Part = tuple[list[tuple[int, ImageSource]], Any, Truth]
"""Some pictures with their numbers, what to explain on each, and where the objects are."""


@dataclass(frozen=True)
class _Read:
    """A picture that was read."""

    source: ImageSource
    name: str
    image: reading.Image
    mask: Array | None
    aim: Any


def _aim(target: Any, k: int) -> Any:
    """What to explain on the k-th picture. Raises InputError."""
    if not isinstance(target, list | tuple):
        return target
    if k >= len(target):
        raise InputError(f"{len(target)} targets, and there are more pictures; give one for each, or one for all")
    return target[k]


class Run:
    """What was read, and the numbers so far."""

    def __init__(
        self,
        model: Model,
        layer: Layer,
        score: Score,
        hows: dict[str, tuple[Method, dict[str, Any]]],
        measures: list[tuple[Measure, dict[str, Any]]],
        seed: int,
    ) -> None:
        self.model, self.layer, self.score, self.seed = model, layer, score, seed
        self.hows, self.measures = hows, measures
        self.cascade = any("shuffled" in measure.inputs for measure, _ in measures)
        self.read: list[tuple[str, ImageSource | None]] = []
        """Names, and where the pictures have to be read again: what they came from."""
        self.aims: list[Target] = []
        self.labels: list[str] = []
        self.failed: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self.zeros: Counter[str] = Counter()
        self.values: dict[str, dict[str, list[Array]]] = {name: {m.name: [] for m, _ in measures} for name in hows}
        self.cams: dict[str, list[Array]] = {name: [] for name in hows}

    def take(self, part: Part) -> None:
        """Read a batch, and measure it; where it fails, picture by picture."""
        numbered, target, truth = part
        read: list[_Read] = []
        for k, source in numbered:
            name, aim = str(source) if isinstance(source, str | os.PathLike) else f"picture {k + 1}", _aim(target, k)
            try:
                image = reading.read(source) if isinstance(source, str | os.PathLike) else reading.check(source)
                read.append(_Read(source, name, image, truth.of(k, image, name), aim))
            except XcamError as error:
                self.failed.append((name, str(error)))
        try:
            self._measure(read)
        except BackendError:  # something is not installed, or broken: no picture would fare better
            raise
        except XcamError:
            self._one_by_one(read)

    def _one_by_one(self, read: Sequence[_Read]) -> None:
        """Measure what can be measured. What fails for all of the first ones alike is no fault of theirs, and raised."""
        failed: list[tuple[str, XcamError]] = []
        for one in read:
            try:
                self._measure([one])
            except XcamError as error:
                failed.append((one.name, error))
        if not self.read and len({str(error) for _, error in failed}) == 1:
            raise failed[0][1]
        self.failed += [(name, str(error)) for name, error in failed]

    def _measure(self, read: Sequence[_Read]) -> None:
        """Explain a batch by every method, and measure. Nothing is kept where something fails."""
        if not read:
            return
        first, fixed, labels = len(self.read), [one.aim for one in read], [""] * len(read)
        kept: dict[str, tuple[dict[str, Array], Array, int]] = {}
        for name in self.hows:
            found = self._explained(name, read, fixed, first, clean=not kept)
            if not kept:
                fixed, labels = [e.target for e in found], [e.label for e in found]
            remap = partial(self.maps, name, self.model, aims=fixed, first=first)
            subject = Subject(self.model, self.layer, found, [one.mask for one in read], remap)
            values = {
                measure.name: np.asarray(
                    measure.function(*(getattr(subject, need) for need in measure.inputs), **options), np.float64
                )
                for measure, options in self.measures
                if "shuffled" not in measure.inputs
            }
            kept[name] = values, np.stack([e.cam for e in found]), sum(not e.positive.any() for e in found)
        for name, (values, small, zeros) in kept.items():
            for measure, column in values.items():
                self.values[name][measure].append(column)
            if self.cascade:
                self.cams[name].append(small)
            self.zeros[name] += zeros
        self.aims += fixed
        self.labels += labels
        self.read += [(one.name, one.source if self.cascade else None) for one in read]

    def _explained(
        self, name: str, read: Sequence[_Read], aims: Sequence[Any], first: int, clean: bool
    ) -> list[Explanation]:
        """Explanations of a batch, for targets that are still `clean` words, or fixed."""
        method, options = self.hows[name]
        one: Any = explain
        found: list[Any] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ZeroHeatmapWarning)  # counted, and told once
            for rows, told in self.drawn(name, range(len(read)), first):
                found += one(
                    self.model,
                    [read[row].image for row in rows],
                    layer=self.layer.name,
                    target=[aims[row] for row in rows],
                    method=method.name,
                    method_options=options | told,
                    score=self.score if clean else "logit",
                )
        if any(isinstance(e, list) for e in found):
            raise InputError("several targets on one picture; an evaluation explains one: give one class")
        return found

    def drawn(self, name: str, rows: Sequence[int], first: int) -> list[tuple[list[int], dict[str, int]]]:
        """Rows that are explained together, and their own options: `random` draws anew for each picture.

        So no single draw, which may be a lucky one, is what the others have to beat.
        """
        if name != FLOOR or "seed" in self.hows[name][1]:
            return [(list(rows), {})]
        return [([row], {"seed": self.seed + first + row}) for row in rows]

    def maps(
        self, name: str, model: Model, x: Array, rows: Sequence[int], aims: Sequence[Target], first: int
    ) -> Array:
        """The maps [K, h, w], before ReLU, of pictures in the model's own form, for targets that are fixed."""
        method, options = self.hows[name]
        places = {row: [k for k, r in enumerate(rows) if r == row] for row in dict.fromkeys(rows)}
        found: dict[int, Array] = {}
        for together, told in self.drawn(name, list(places), first):
            chosen = [k for row in together for k in places[row]]
            for start in range(0, len(chosen), BATCH):
                part = chosen[start : start + BATCH]
                made = cams(model, self.layer, x[part], [aims[rows[k]] for k in part], method, options | told)
                found |= dict(zip(part, made, strict=True))
        return np.stack([found[k] for k in range(len(rows))])

    def shuffle(self, stages: int) -> None:
        """The randomisation test, or a note that says why there is none: what else was measured stays."""
        try:
            self._shuffle(stages)
        except XcamError as error:
            self.notes.append(f"no randomisation test: {error}")
            for columns in self.values.values():
                columns |= {
                    m.name: [np.full(len(self.read), np.nan)] for m, _ in self.measures if "shuffled" in m.inputs
                }

    def _shuffle(self, stages: int) -> None:
        """All pictures again, by networks that are shuffled farther and farther down."""
        parts, randomized = shuffling(self.model)
        cuts = sorted({round(len(parts) * (k + 1) / stages) for k in range(stages)} - {0})
        shuffled: dict[str, list[Array]] = {name: [] for name in self.hows}
        for count in progress.steps(cuts, "shuffled networks"):
            model = randomized(list(parts[len(parts) - count :]), self.seed)
            model.input = self.model.input
            made: dict[str, list[Array]] = {name: [] for name in self.hows}
            for start in range(0, len(self.read), BATCH):
                part = slice(start, start + BATCH)
                sources: list[Any] = [source for _, source in self.read[part]]
                images = [reading.read(s) if isinstance(s, str | os.PathLike) else s for s in sources]
                x, aims = batch(images, model), self.aims[part]
                for name in self.hows:
                    made[name].append(self.maps(name, model, x, range(len(aims)), aims, start))
            for name, found in made.items():
                shuffled[name].append(np.concatenate(found))
        for name in self.hows:
            for measure, options in self.measures:
                if "shuffled" in measure.inputs:
                    supplied = {"cams": np.concatenate(self.cams[name]), "shuffled": shuffled[name]}
                    got = measure.function(*(supplied[need] for need in measure.inputs), **options)
                    self.values[name][measure.name] = [got]

    def answer(self, level: float) -> Evaluation:
        count = len(self.read)
        zeros = [f"{name} is zero everywhere on {n} of {count} pictures" for name, n in self.zeros.items() if n]
        few = [f"{count} pictures are too few to say what is better than {FLOOR}: it takes {ENOUGH}"]
        few = few if FLOOR in self.hows and len(self.hows) > 1 and count < ENOUGH else []
        return Evaluation(
            model=f"{self.model.name} ({self.model.backend})",
            layer=self.layer.name,
            pictures=tuple(name for name, _ in self.read),
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
                "methods": {name: options for name, (_, options) in self.hows.items()},
                "options": {measure.name: options for measure, options in self.measures},
            },
        )


def shuffling(model: Model) -> tuple[Sequence[str], Callable[[list[str], int], Model]]:
    """The names of a model's parts with weights, the first first, and what gives a copy with some of them shuffled.

    Raises BackendError where its backend has no such thing.
    """
    randomized = getattr(model, "with_shuffled_weights", None)
    if randomized is None:
        raise BackendError(
            f"the randomisation test shuffles weights, which backend {model.backend!r} cannot do; leave it out"
        )
    return model.parameter_layers, randomized  # type: ignore[attr-defined]
