"""From a part of the listing to rows of the table: pictures are decoded ahead, explained in batches, and measured."""

from __future__ import annotations

import io
import math
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import PurePath
from typing import Any

import numpy as np

from xcam import progress
from xcam.comparison.similarity import correlation
from xcam.contract import Array, Layer, Model
from xcam.contract.abilities import DisablesSpinning, supports
from xcam.dataset import storage
from xcam.dataset.inputs import CLASS, MASK
from xcam.dataset.job import Job
from xcam.dataset.output import Output, WriteError
from xcam.errors import BackendError, InputError, XcamError, ZeroHeatmapWarning
from xcam.evaluation.explained import ExplainedBatch, LazySequence, cams
from xcam.evaluation.registry import Measure
from xcam.evaluation.registry import get as get_measure
from xcam.evaluation.truth import Rectangle, located, rectangles
from xcam.explanation.context import require
from xcam.explanation.explain import explain, input_size
from xcam.explanation.result import Explanation
from xcam.images import opencv, reading, resizing, writing
from xcam.images.reading import Image
from xcam.methods.registry import get as get_method
from xcam.models import layers
from xcam.targets import ClassScore, class_index, several, target

AHEAD = 3
"""So many batches are decoded ahead of the model."""
FAILURES = 8
"""So many pictures fail before the first that does not: then it is the model, or what is asked of it."""
DRAWN = 1024
"""The longer side of an overlay, at most."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Ready:
    """A picture as the model takes it and as it is drawn, and where its object is; or why there is none."""

    row: Row
    image: Image | None = None
    shown: Image | None = None
    size: tuple[int, int] = (0, 0)
    """The picture's own, whatever it was decoded at."""
    where: Array | None = None
    """The object's mask at that size, eight places to a byte: many pictures are decoded ahead."""
    error: str = ""


class Worker:
    """One model, and what it does with each picture. Raises what `explain` would raise for any picture, before the first."""

    def __init__(self, model: Model, job: Job, output: Output, threads: int, proved: bool = False) -> None:
        """proved: the model has explained pictures before; then one that fails is no fault of the model's."""
        self.model, self.job, self.output = model, job, output
        if supports(model, DisablesSpinning):
            model.disable_spinning()
        self.layer: Layer = layers.find(model, job.layer)
        self.method = get_method(job.method)
        require(model, self.method)
        self.options = dict(self.method.checked(job.options))
        ends = [layer.shape for layer in model.layers if layer.is_output]
        counts = {shape[0] or 0 for shape in ends if len(shape) == 1}
        for aim in job.targets:
            if several(aim, model.labels) is None:
                found = target(aim, job.score, model.output_activation, model.labels)
                if isinstance(found, ClassScore) and len(counts) == 1 and any(counts):
                    found.resolve(np.zeros((1, *counts)))  # a class that is not there is told before the work
        self.rivals = job.rivals and (1,) not in ends  # a single class has none
        self.measures = [get_measure(name) for name in job.measures]
        self.located = any("masks" in measure.inputs for measure in self.measures)
        self._size = input_size(model.input)
        self._threads = threads
        self._proved, self._failures = proved, 0
        self._classes: dict[str, int | InputError] = {}
        for measure in self.measures:
            measure.require()

    def run(self, parts: Sequence[tuple[int, int, Any]]) -> Iterator[tuple[int, list[Row]]]:
        """Parts of the listing (number, first row's number, rows) → (number, rows of the table), one after the other."""
        cv2 = opencv.load()
        before = cv2.getNumThreads()
        cv2.setNumThreads(1)  # pictures are shrunk in several threads as it is; more for each cost twice the time
        with ThreadPoolExecutor(self._threads, "decode") as pool:
            try:
                coming = progress.counted(
                    self._decoded(pool, parts), "pictures", sum(len(rows) for *_, rows in parts)
                )
                for number, group in groupby(coming, key=lambda pair: pair[0]):
                    yield number, list(self._rows(ready for _, ready in group))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                cv2.setNumThreads(before)

    def _decoded(
        self, pool: ThreadPoolExecutor, parts: Iterable[tuple[int, int, Any]]
    ) -> Iterator[tuple[int, Ready]]:
        """The pictures in order; decoding runs ahead, across the borders of parts."""
        window: deque[tuple[int, Future[Ready]]] = deque()
        for number, first, part in parts:
            for k, row in enumerate(part.to_pylist()):
                window.append((number, pool.submit(self._ready, row | {"number": first + k})))
                if len(window) > AHEAD * self.job.batch:
                    front, future = window.popleft()
                    yield front, future.result()
        for front, future in window:
            yield front, future.result()

    def _ready(self, row: Row) -> Ready:
        """One picture, in a thread of its own."""
        try:
            if row["file"] is None:
                raise InputError(f"the name {row['path']} is not UTF-8; rename the file")
            if self.job.told_target and isinstance(told := self._class(row[CLASS]), InputError):
                return Ready(row, error=str(told))
            data = storage.read(row["file"], row["offset"], row["length"])
            drawn = self.job.pictures is not None
            image, size = decoded(data, row["path"], 1 if drawn else max(self._size))
            boxes = rectangles(row["boxes"], size, row["path"])
            where = _packed(row, boxes, size) if self.located else None
            shown = resizing.shrunk(image, DRAWN) if drawn else None
            return Ready(row, resizing.resize(image, self._size), shown, size, where)
        except BackendError:  # something is not installed: no picture would fare better
            raise
        except XcamError as error:
            return Ready(row, error=str(error))
        except MemoryError as error:
            return Ready(row, error=f"out of memory while {row['path']} was read ({error}); give a smaller picture")

    def _rows(self, coming: Iterable[Ready]) -> Iterator[Row]:
        """The rows of a part. Batches are always the same ones, so that what was killed and goes on gives the same."""
        group: list[Ready] = []
        held: list[Ready] = []  # what has failed keeps its place
        for ready in coming:
            held.append(ready)
            group += [ready] if ready.image is not None else []
            if len(group) == self.job.batch:
                yield from self._told(held, group)
                group, held = [], []
        yield from self._told(held, group)

    def _told(self, held: Sequence[Ready], group: Sequence[Ready]) -> Iterator[Row]:
        made = dict(zip(map(id, group), self._explained(group), strict=True))
        for ready in held:
            yield from made[id(ready)] if id(ready) in made else [_failed(ready.row, ready.error)]

    def _explained(self, group: Sequence[Ready]) -> list[list[Row]]:
        """For each picture its rows: one for each target, or one with its error."""
        if not group:
            return []
        try:
            found = self._made(group)
        except (BackendError, WriteError):  # something is not installed, or broken: no picture would fare better
            raise
        except XcamError as error:
            if len(group) > 1:
                return [row for one in group for row in self._explained([one])]
            self._failures += 1
            if not self._proved and self._failures >= FAILURES:
                raise  # it is the model, not the pictures
            return [[_failed(group[0].row, str(error))]]
        self._proved = True
        return found

    def _made(self, group: Sequence[Ready]) -> list[list[Row]]:
        found = self._maps(group)
        columns = [self._measured([row[m] for row in found], group) for m in range(self._count(found))]
        answers = []
        for n, (ready, row) in enumerate(zip(group, found, strict=True)):
            rival = row.pop() if self.rivals else None
            answers.append([self._row(ready, e, columns[m], n, rival) for m, e in enumerate(row)])
            if self.job.pictures is not None:
                for m, e in enumerate(row):
                    self._draw(ready, e, m if len(row) > 1 else None)
        return answers

    def _maps(self, group: Sequence[Ready]) -> list[list[Explanation]]:
        """For each picture its explanations; the rival's, if it is asked for, is the last."""
        wanted: list[Any] = [list(self.job.targets) or None for _ in group]
        if self.rivals:
            wanted = [["top2"] for _ in group]
        if self.job.told_target:
            wanted = [[self._class(ready.row[CLASS])] for ready in group]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ZeroHeatmapWarning)  # a column says it
            found = explain(
                self.model,
                [ready.image for ready in group if ready.image is not None],
                layer=self.layer.name,
                target=wanted,
                method=self.job.method,
                method_options=self.options,
                score=self.job.score,
                batch=self.job.batch,
            )
        return [list(each) if isinstance(each, list) else [each] for each in found]

    def _class(self, told: str | None) -> int | InputError:
        """The index of the class that is told, or why there is none."""
        if told is None:
            return InputError("no class is told for it; give one in the table, or another target")
        if told not in self._classes:
            try:
                index = class_index(told, self.model.labels)
                self._classes[told] = index if index >= 0 else InputError(f"no class {told}; give an index from 0 on")
            except InputError as error:
                self._classes[told] = error.with_traceback(None)
        return self._classes[told]

    def _correct(self, truth: str | None, best: int, label: str | None) -> bool | None:
        """None where no class is told, and where names cannot be compared: the model has none."""
        if truth is None or truth == label:
            return None if truth is None else True
        index = self._class(truth)
        if isinstance(index, InputError):
            return False if self.model.labels else None
        return index == best

    def _count(self, found: Sequence[Sequence[Explanation]]) -> int:
        return min(len(row) for row in found) - self.rivals

    def _measured(self, found: Sequence[Explanation], group: Sequence[Ready]) -> dict[str, Array]:
        """The measures of one map of each picture."""
        if not self.measures:
            return {}
        aims = [e.target for e in found]

        def again(x: Array, rows: Sequence[int]) -> Array:
            return cams(self.model, self.layer, x, [aims[r] for r in rows], self.method, self.options)

        sizes = [ready.size for ready in group]
        subject = ExplainedBatch(self.model, self.layer, found, LazySequence(_unpacked, group), again, sizes)
        return {m.name: np.asarray(_value(m, subject), np.float64) for m in self.measures}

    def _row(self, ready: Ready, e: Explanation, column: dict[str, Array], n: int, rival: Explanation | None) -> Row:
        best = e.top(1)
        label = _name(e, best[0]) if best else None
        truth = ready.row[CLASS]
        row: Row = {
            "path": ready.row["path"],
            CLASS: truth,
            "prediction": label,
            "prediction_index": best[0] if best else None,
            "probability": float(e.scores[best[0]]) if best else None,
            "correct": self._correct(truth, best[0], label) if best else None,
            "target": e.label,
            "target_index": e.index,
            "score": e.score,
            "zero": not bool(e.positive.any()),
            **{name: _plain(values[n]) for name, values in column.items()},
        }
        if self.job.rivals:
            row["rival"] = None if rival is None else rival.label
            row["rival_correlation"] = None if rival is None else correlation(e.positive, rival.positive)
        if self.job.maps:
            row |= {"map_height": e.cam.shape[0], "map_width": e.cam.shape[1], "map": e.cam.ravel()}
        return row

    def _draw(self, ready: Ready, e: Explanation, m: int | None) -> None:
        assert ready.shown is not None
        stem = PurePath(ready.row["path"]).stem.encode()[:80].decode(errors="ignore")
        name = f"{ready.row['number']:08d}-{stem}{'' if m is None else f'.{m}'}.cam.jpg"
        drawn = replace(e, image=ready.shown).overlay(**dict(self.job.pictures or {}))
        self.output.draw(name, writing.encoded(drawn, ".jpg"))


def decoded(data: bytes, name: str, least: int) -> tuple[Image, tuple[int, int]]:
    """A picture, decoded at a half, a quarter or an eighth of its size where `least` pixels are left on each side; and its
    own (height, width). `least` 1: whole. Raises InputError.
    """
    if least <= 1 or not data.startswith(b"\xff\xd8"):
        whole = reading.decode(data, name)
        return whole, (whole.shape[0], whole.shape[1])
    import imagesize

    try:
        width, height = imagesize.get(io.BytesIO(data))
    except ValueError:  # decoding will say what is wrong
        width = height = 0
    factor = next((k for k in (8, 4, 2) if min(width, height) // k >= least), 1)
    image = reading.decode(data, name, factor)
    if factor > 1 and width != height and image.shape[0] == image.shape[1]:
        factor, image = 1, reading.decode(data, name)  # whether it was turned cannot be seen on a square
    if factor == 1:
        return image, (image.shape[0], image.shape[1])
    turned = (image.shape[0] > image.shape[1]) != (height > width)  # upright by its EXIF orientation
    return image, (width, height) if turned else (height, width)


def _packed(row: Row, boxes: Sequence[Rectangle], size: tuple[int, int]) -> Array | None:
    """Where the object is, for Ready; None where nothing is told. Raises InputError."""
    mask = reading.decode_mask(storage.read(row[MASK]), row[MASK]) if row[MASK] else None
    found = located(boxes, mask, size, row["path"])
    return None if found is None else np.packbits(found)


def _unpacked(ready: Ready) -> Array | None:
    if ready.where is None:
        return None
    height, width = ready.size
    return np.unpackbits(ready.where, count=height * width).reshape(ready.size).view(bool)


def _value(measure: Measure, subject: ExplainedBatch) -> Any:
    return measure.function(*(getattr(subject, need) for need in measure.inputs))


def _failed(row: Row, why: str) -> Row:
    return {"path": row["path"], CLASS: row[CLASS], "error": why}


def _name(e: Explanation, index: int) -> str:
    return e.labels[index] if e.labels is not None and index < len(e.labels) else str(index)


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
