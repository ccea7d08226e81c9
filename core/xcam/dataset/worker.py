"""Computing rows of the table from a part of the listing: images are decoded ahead, explained in batches, and measured."""

from __future__ import annotations

import io
import math
import re
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
from xcam.contract import Array, InputSpec, Layer, Model
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
from xcam.explanation.explain import explain_at
from xcam.explanation.inputs import input_size
from xcam.explanation.recognition import task_of
from xcam.explanation.result import Explanation
from xcam.explanation.scales import Scales, default_scales
from xcam.explanation.settings import settings
from xcam.images import batches, framing, opencv, reading, resizing, writing
from xcam.images.framing import Frame
from xcam.images.reading import Image
from xcam.methods.registry import get as get_method
from xcam.models import layers
from xcam.targets import ClassScore, Located, class_index, several, target

AHEAD = 3
"""The number of batches that are decoded ahead of the model."""
FAILURES = 8
"""If that many images fail before the first success, the cause is the model or the request."""
OVERLAY_SIDE = 1024
"""The longer side of an overlay, at most."""
RESERVED = re.compile(r'[\x00-\x1f<>:"|?*\\]')
"""Characters that Windows does not allow in file names; members of shards may have them."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """A decoded image: the model's input, the drawn image and the location of its object, or the reason for a failure."""

    row: Row
    image: Image | None = None
    drawn: Image | None = None
    size: tuple[int, int] = (0, 0)
    """The height and width of the original, even if it was decoded at a fraction."""
    frame: Frame | None = None
    """The location of the original on the model's input."""
    mask_bits: Array | None = None
    """The object's mask at that size, eight pixels in a byte: many images are decoded ahead."""
    error: str = ""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of the image as the model is given it."""
        return () if self.image is None else self.image.shape


def _framed(e: Explanation, frame: Frame | None) -> Explanation:
    """Return the explanation of an image that was fitted when it was read, with its frame: boxes are moved to the image."""
    if frame is None:
        return e
    scale = np.divide((*e.image.shape[1::-1],) * 2, (*frame.image[::-1],) * 2)
    boxes = tuple(replace(b, box=tuple((frame.boxes_to_image(b.box) * scale).tolist())) for b in e.boxes)
    return replace(e, frame=frame, boxes=boxes)


class Worker:
    """A worker that explains images with one model; it first checks for errors that would affect every image.

    Args:
        model: The model.
        job: The request.
        output: Where overlays are written.
        threads: The number of threads that decode.
        proved: The model has explained images before, so that a failure is not its fault.

    Raises:
        InputError: The layer, a target or a measure cannot be used.
        BackendError: The backend lacks a capability, or a package is missing.
    """

    def __init__(self, model: Model, job: Job, output: Output, threads: int, proved: bool = False) -> None:
        self.model, self.job, self.output = model, job, output
        task = task_of(model) if job.layer is None else None
        scales = Scales() if task is None else default_scales(model, task, None)
        self.layer: Layer = scales.layers[0] if scales.layers else layers.find(model, job.layer)
        self._layer_name = None if scales.layers else self.layer.name
        self.method = get_method(job.method)
        require(model, self.method)
        self.options = dict(self.method.checked(job.method_options))
        output_shapes = [layer.shape for layer in model.layers if layer.is_output]
        counts = {shape[0] or 0 for shape in output_shapes if len(shape) == 1}
        for requested in job.targets:
            if several(requested, model.labels) is None:
                resolved = target(requested, job.score, model.output_activation, model.labels)
                if isinstance(resolved, Located) and (resolved.region or resolved.mask or resolved.box is not None):
                    raise InputError(
                        f"cannot use {requested!r} for a set: a region or a box belongs to one image; give a class"
                    )
                if isinstance(resolved, ClassScore) and len(counts) == 1 and any(counts):
                    resolved.resolve(np.zeros((1, *counts)))  # a class out of range is reported before the work
        self.rivals = job.rivals and (1,) not in output_shapes  # the rival of a single output is its negative
        self.measures = [get_measure(name) for name in job.measures]
        self.needs_masks = any("masks" in measure.inputs for measure in self.measures)
        self._least = max(input_size(model.input, (1, 1)))
        stated = model.input.preprocessing
        self._mean = batches.mean_colour(stated) if stated else None
        self._settings = settings(job.method, self.options, job.score, batch=job.batch)
        self._threads = threads
        self._proved, self._failures = proved, 0
        self._classes: dict[str, int | InputError] = {}
        for measure in self.measures:
            measure.require()
            if len(scales.layers) > 1 and {"explain", "masked_heatmap"} & set(measure.inputs):
                names = ", ".join(layer.name for layer in scales.layers)
                raise InputError(
                    f"{measure.name} explains again, at one layer; give one with layer= (--layer): {names}"
                )

    def run(self, parts: Sequence[tuple[int, int, Any]]) -> Iterator[tuple[int, list[Row]]]:
        """Explain parts of the listing.

        Args:
            parts: For each part its number, the number of its first row, and its rows (an Arrow table).

        Yields:
            For each part its number and its rows of the table.
        """
        cv2 = opencv.load()
        before = cv2.getNumThreads()
        cv2.setNumThreads(1)  # images are already resized in several threads; more threads double the time
        with ThreadPoolExecutor(self._threads, "decode") as pool:
            try:
                images = progress.counted(self._decoded(pool, parts), "images", sum(len(rows) for *_, rows in parts))
                for number, group in groupby(images, key=lambda pair: pair[0]):
                    yield number, list(self._rows(prepared for _, prepared in group))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                cv2.setNumThreads(before)

    def _decoded(
        self, pool: ThreadPoolExecutor, parts: Iterable[tuple[int, int, Any]]
    ) -> Iterator[tuple[int, Prepared]]:
        """Yield the images in order, each with the number of its part; decoding runs ahead, across parts."""
        window: deque[tuple[int, Future[Prepared]]] = deque()
        for number, first, part in parts:
            for k, row in enumerate(part.to_pylist()):
                window.append((number, pool.submit(self._prepare, row | {"number": first + k})))
                if len(window) > AHEAD * self.job.batch:
                    front, future = window.popleft()
                    yield front, future.result()
        for front, future in window:
            yield front, future.result()

    def _prepare(self, row: Row) -> Prepared:
        """Read and decode one image, in a thread of the pool."""
        try:
            if row["file"] is None:
                raise InputError(f"the name {row['path']} is not UTF-8; rename the file")
            if self.job.class_target and isinstance(index := self._class(row[CLASS]), InputError):
                return Prepared(row, error=str(index))
            data = storage.read(row["file"], row["offset"], row["length"])
            has_overlay = self.job.overlays is not None
            image, size = decoded(data, row["path"], 1 if has_overlay or self.model.input.fit else self._least)
            boxes = rectangles(row["boxes"], size, row["path"])
            mask_bits = _packed(row, boxes, size) if self.needs_masks else None
            drawn = resizing.shrunk(image, OVERLAY_SIDE) if has_overlay else None
            frame, fit = (
                framing.frame(size, input_size(self.model.input, size), self.model.input.fit),
                self.model.input.fit,
            )
            fitted = framing.fitted(image, frame.input, fit, self._mean)
            return Prepared(row, fitted, drawn, size, frame, mask_bits)
        except BackendError:  # a missing package: every other image would fail, too
            raise
        except XcamError as error:
            return Prepared(row, error=str(error))
        except MemoryError as error:
            return Prepared(row, error=f"cannot read {row['path']}: out of memory ({error}); give a smaller image")

    def _rows(self, images: Iterable[Prepared]) -> Iterator[Row]:
        """Yield the rows of a part. Its batches are always the same, so that a run that continues gives the same values."""
        batch: list[Prepared] = []
        pending: list[Prepared] = []  # failed images keep their position
        for prepared in images:
            pending.append(prepared)
            batch += [prepared] if prepared.image is not None else []
            if len(batch) == self.job.batch:
                yield from self._batch_rows(pending, batch)
                batch, pending = [], []
        yield from self._batch_rows(pending, batch)

    def _batch_rows(self, pending: Sequence[Prepared], batch: Sequence[Prepared]) -> Iterator[Row]:
        rows = dict(zip(map(id, batch), self._explained(batch), strict=True))
        for prepared in pending:
            yield from rows[id(prepared)] if id(prepared) in rows else [_failed(prepared.row, prepared.error)]

    def _explained(self, batch: Sequence[Prepared]) -> list[list[Row]]:
        """Return the rows of each image: one for each target, or one with its error."""
        if not batch:
            return []
        parts = [list(part) for _, part in groupby(batch, key=lambda prepared: prepared.input_shape)]
        if len(parts) > 1:  # a measure compares images of one size
            return [row for part in parts for row in self._explained(part)]
        try:
            rows = self._explain_and_measure(batch)
        except (BackendError, WriteError):  # a missing package or a full disk: every other image would fail, too
            raise
        except XcamError as error:
            if len(batch) > 1:
                return [row for image in batch for row in self._explained([image])]
            self._failures += 1
            if not self._proved and self._failures >= FAILURES:
                raise
            return [[_failed(batch[0].row, str(error))]]
        self._proved = True
        return rows

    def _explain_and_measure(self, batch: Sequence[Prepared]) -> list[list[Row]]:
        explanations = self._explanations(batch)
        count = min(len(row) for row in explanations) - self.rivals
        columns = [self._measured([row[m] for row in explanations], batch) for m in range(count)]
        result = []
        for n, (prepared, row) in enumerate(zip(batch, explanations, strict=True)):
            rival = row.pop() if self.rivals else None
            result.append([self._row(prepared, e, columns[m], n, rival) for m, e in enumerate(row)])
            if self.job.overlays is not None:
                for m, e in enumerate(row):
                    self._write_overlay(prepared, e, m if len(row) > 1 else None)
        return result

    def _explanations(self, batch: Sequence[Prepared]) -> list[list[Explanation]]:
        """Return the explanations of each image; the rival's, if requested, is the last."""
        targets: list[Any] = [list(self.job.targets) or None for _ in batch]
        if self.rivals:
            targets = [["top2"] for _ in batch]
        if self.job.class_target:
            targets = [[self._class(prepared.row[CLASS])] for prepared in batch]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ZeroHeatmapWarning)  # the column `zero` holds it
            explanations = explain_at(
                self.model,
                self._spec(batch),
                [prepared.image for prepared in batch if prepared.image is not None],
                layer=self._layer_name,
                target=targets,
                settings=self._settings,
            )
        return [
            [_framed(e, prepared.frame) for e in (row if isinstance(row, list) else [row])]
            for prepared, row in zip(batch, explanations, strict=True)
        ]

    def _spec(self, batch: Sequence[Prepared]) -> InputSpec:
        """Return the input for images that were fitted when they were read."""
        return replace(self.model.input, fit=None, size=batch[0].input_shape[:2])

    def _class(self, label: str | None) -> int | InputError:
        """Return the index of a class in the table, or the error for one that cannot be used."""
        if label is None:
            return InputError("the image has no class; give one in the table, or another target")
        if label not in self._classes:
            try:
                index = class_index(label, self.model.labels)
                self._classes[label] = (
                    index if index >= 0 else InputError(f"unknown class {label}; give an index, 0 or more")
                )
            except InputError as error:
                self._classes[label] = error.with_traceback(None)
        return self._classes[label]

    def _is_correct(self, label: str | None, best: int, prediction: str | None) -> bool | None:
        """Return None without a class label, and where names cannot be compared because the model has none."""
        if label is None or label == prediction:
            return None if label is None else True
        index = self._class(label)
        if isinstance(index, InputError):
            return False if self.model.labels else None
        return index == best

    def _measured(self, explanations: Sequence[Explanation], batch: Sequence[Prepared]) -> dict[str, Array]:
        """Return the values of all measures for one explanation of each image."""
        if not self.measures:
            return {}
        targets = [e.target for e in explanations]

        def raw_maps(x: Array, rows: Sequence[int]) -> Array:
            return cams(self.model, self.layer, x, [targets[r] for r in rows], self.method, self.options)

        masks = LazySequence(_unpacked, batch)
        inputs = ExplainedBatch(self.model, self.layer, explanations, masks, raw_maps, self._spec(batch))
        return {m.name: np.asarray(_value(m, inputs), np.float64) for m in self.measures}

    def _row(
        self, prepared: Prepared, e: Explanation, values: dict[str, Array], n: int, rival: Explanation | None
    ) -> Row:
        best = e.top(1)
        prediction = _name(e, best[0]) if best else None
        label = prepared.row[CLASS]
        row: Row = {
            "path": prepared.row["path"],
            CLASS: label,
            "prediction": prediction,
            "prediction_index": best[0] if best else None,
            "probability": float(e.scores[best[0]]) if best else None,
            "correct": self._is_correct(label, best[0], prediction) if best else None,
            "target": e.label,
            "target_index": e.index,
            "score": e.score,
            "zero": not bool(e.positive.any()),
            **{name: _plain(column[n]) for name, column in values.items()},
        }
        if self.job.rivals:
            row["rival"] = None if rival is None else rival.label
            row["rival_correlation"] = None if rival is None else correlation(e.positive, rival.positive)
        if self.job.maps:
            row |= {"map_height": e.cam.shape[0], "map_width": e.cam.shape[1], "map": e.cam.ravel()}
            row["map_box"] = e.map_box
        return row

    def _write_overlay(self, prepared: Prepared, e: Explanation, m: int | None) -> None:
        assert prepared.drawn is not None
        stem = PurePath(prepared.row["path"]).stem.encode()[:80].decode(errors="ignore")
        suffix = "" if m is None else f".{m}"
        name = f"{prepared.row['number']:08d}-{RESERVED.sub('_', stem)}{suffix}.cam.jpg"
        overlay = e.with_image(prepared.drawn).overlay(**dict(self.job.overlays or {}))
        self.output.write_overlay(name, writing.encoded(overlay, ".jpg"))


def decoded(data: bytes, name: str, least: int) -> tuple[Image, tuple[int, int]]:
    """Decode an image; a large JPEG at a half, a quarter or an eighth of its size.

    Args:
        data: The content of the file.
        name: Its name, for messages.
        least: The smallest height and width of the result; 1: the whole image.

    Returns:
        The image, RGB uint8 [H, W, 3], and the height and width of the original.

    Raises:
        InputError: It cannot be decoded.
    """
    if least <= 1 or not data.startswith(b"\xff\xd8"):
        whole = reading.decode(data, name)
        return whole, (whole.shape[0], whole.shape[1])
    import imagesize

    try:
        width, height = imagesize.get(io.BytesIO(data))
    except ValueError:  # decoding reports the error
        width = height = 0
    factor = next((k for k in (8, 4, 2) if min(width, height) // k >= least), 1)
    image = reading.decode(data, name, factor)
    if factor > 1 and width != height and image.shape[0] == image.shape[1]:
        factor, image = 1, reading.decode(data, name)  # a square does not show whether it was rotated
    if factor == 1:
        return image, (image.shape[0], image.shape[1])
    rotated = (image.shape[0] > image.shape[1]) != (height > width)  # by its EXIF orientation
    return image, (width, height) if rotated else (height, width)


def _packed(row: Row, boxes: Sequence[Rectangle], size: tuple[int, int]) -> Array | None:
    mask = reading.decode_mask(storage.read(row[MASK]), row[MASK]) if row[MASK] else None
    union = located(boxes, mask, size, row["path"])
    return None if union is None else np.packbits(union)


def _unpacked(prepared: Prepared) -> Array | None:
    if prepared.mask_bits is None:
        return None
    height, width = prepared.size
    return np.unpackbits(prepared.mask_bits, count=height * width).reshape(prepared.size).view(bool)


def _value(measure: Measure, inputs: ExplainedBatch) -> Any:
    return measure.function(*(getattr(inputs, name) for name in measure.inputs))


def _failed(row: Row, reason: str) -> Row:
    return {"path": row["path"], CLASS: row[CLASS], "error": reason}


def _name(e: Explanation, index: int) -> str:
    return e.labels[index] if e.labels is not None and index < len(e.labels) else str(index)


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
