"""Targets of detectors and of segmentation: a class, a box or a region of the image, resolved to one box or one region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from xcam.contract import Array, Outputs, like, one_output
from xcam.errors import AbsentError, InputError, warn
from xcam.images import reading
from xcam.images.framing import Frame
from xcam.targets.boxes import OVERLAP, overlaps, suppressed
from xcam.targets.classes import Score, sigmoid, softmax, unknown_class
from xcam.targets.layouts import BoxLayout, MapLayout
from xcam.targets.outputs import Segmentation
from xcam.targets.tasks import Task

FAINT = 0.05
"""A class whose best score is below this, and below this share of the best score of all classes, has no box."""
POOR = 0.1
"""A box that overlaps a region by less (intersection over union) is warned of."""
SHOWN = 0.25
"""Boxes of at least this score are drawn in addition to the explained one."""
MOST = 20
"""The largest number of boxes that are drawn."""
LIMIT = 1e-7
"""Probabilities are kept this far from 0 and 1 before their log-odds are taken."""


@dataclass(frozen=True)
class Located:
    """A class, and where it is in the image; resolved with a task to one box, or to a region of a map of classes."""

    index: int | None = None
    """The class; None: the best, or the predicted one."""
    region: tuple[float, ...] | None = None
    """(x0, y0, x1, y1), or a point (x, y), in pixels of the image."""
    mask: Path | None = None
    """An image file whose bright pixels are the region."""
    box: int | None = None
    """The number of a box in the model's output."""
    rank: int = 0
    """The rank among the boxes after suppression, or among the regions by size."""
    score: Score = "logit"
    """The number that is explained."""
    name: str = ""
    """The target as text."""

    def value(self, outputs: Outputs) -> Array:
        """Raise InputError: only the resolved target has a value."""
        raise InputError(f"{self._text} is the target of a detector or of segmentation; give a class")

    def cotangent(self, outputs: Outputs) -> Outputs:
        """Raise InputError: only the resolved target has a cotangent."""
        raise InputError(f"{self._text} is the target of a detector or of segmentation; give a class")

    @property
    def _text(self) -> str:
        return repr(self.name or "this")


@dataclass(frozen=True)
class BoxScore:
    """The score of one box of a detector: of a class, times the objectness where there is one.

    With the class probability p (times the objectness) the values are: `probability` p; `log-probability` log p; `logit` the
    logit of the class where the output has logits and no objectness, else the log-odds log(p/(1 − p)). Where the model
    applies a sigmoid that the backend cannot cut off, ∂p = p(1 − p)·∂z, and the gradient of the log-odds is that of the
    logit z. With an objectness o and p = o·c it is the mean of the gradients of both logits, weighted by 1 − o and
    1 − c.
    """

    layout: BoxLayout
    """Where the outputs have boxes and scores."""
    box: int
    """The number of the box."""
    index: int
    """The class."""
    score: Score = "logit"
    """The number that is explained."""
    corners: tuple[float, float, float, float] = (0, 0, 0, 0)
    """(x0, y0, x1, y1) in pixels of the input."""
    size: tuple[int, ...] = (1, 1)
    """(height, width) of the input."""

    @property
    def output(self) -> str | None:
        """The name of the output that is read."""
        return self.layout.output

    @property
    def name(self) -> str:
        """The name of the target."""
        return f"class {self.index} of box {self.box}"

    def probability(self, outputs: Outputs) -> Array:
        """Return the probabilities [N, K] of all classes of the box."""
        p = self.layout.probabilities(outputs)
        rows = p[np.arange(len(p)), self._rows(outputs)]
        if self.layout.selected and rows.shape[1] <= self.index:
            rows = np.pad(rows, ((0, 0), (0, self.index + 1 - rows.shape[1])))
        return np.asarray(rows)

    def value(self, outputs: Outputs) -> Array:
        """Return the values [N] of the box."""
        if self._is_raw:
            column = self.layout.offset + self.index
            return np.asarray(self.layout.columns(outputs)[:, self.box, column])
        p = self._p(outputs)
        if self.score == "probability":
            return p
        return np.asarray(np.log(p) if self.score == "log-probability" else np.log(p) - np.log1p(-p))

    def cotangent(self, outputs: Outputs) -> Outputs:
        """Return ∂value/∂outputs, shaped like `outputs`."""
        layout = self.layout
        y = one_output(outputs, layout.output)
        slope = np.zeros(y.shape, y.dtype)
        flat = slope[:, :, None] if slope.ndim == 2 else slope  # a view
        columns = np.moveaxis(flat, 2, 1) if layout.axis == 2 else flat
        rows, offset = self._rows(outputs), layout.offset
        n = np.arange(len(y))
        if self._is_raw:
            columns[:, self.box, offset + self.index] = 1
        elif layout.selected:
            columns[n, rows, 4 if layout.boxes is None else 0] = self._factor(outputs)
        else:
            factor = self._factor(outputs)
            values = layout.columns(outputs)[n, rows].astype(np.float64)
            z = values[:, offset : offset + layout.classes]
            o = np.ones(len(y))
            if layout.objectness:
                raw = values[:, 4]
                o = raw if layout.link == "identity" else sigmoid(raw)
                columns[n, rows, 4] = factor * self._of_class(z) * (1 if layout.link == "identity" else o * (1 - o))
            columns[n, rows, offset : offset + layout.classes] = (factor * o)[:, None] * self._slope(z)
        return like(outputs, slope, layout.output)

    @property
    def _is_raw(self) -> bool:
        layout = self.layout
        return self.score == "logit" and layout.link != "identity" and not layout.objectness and not layout.selected

    def _rows(self, outputs: Outputs) -> Array:
        """Return the row [N] of the box: for selected boxes, whose order changes, the best match of class and corners."""
        n = len(one_output(outputs, self.layout.output))
        if not self.layout.selected:
            return np.full(n, self.box)
        number, _ = self.layout.best(outputs)
        corners = self.layout.corners_in(outputs, self.size)
        match = np.stack([overlaps(boxes, self.corners) for boxes in corners]) + (number == self.index)
        same = (number[:, self.box] == self.index) & (match[:, self.box] > 1.999)
        return np.where(same, self.box, match.argmax(axis=1))

    def _p(self, outputs: Outputs) -> Array:
        """Return the probability [N] of the class, away from 0 and 1 for logarithms."""
        p = self.probability(outputs)[:, self.index]
        return p if self.score == "probability" else np.clip(p, LIMIT, 1 - LIMIT)

    def _factor(self, outputs: Outputs) -> Array:
        """Return ∂value/∂p [N]."""
        p = self._p(outputs)
        if self.score == "probability":
            return np.ones(len(p))
        return np.asarray(1 / p if self.score == "log-probability" else 1 / (p * (1 - p)))

    def _of_class(self, z: Array) -> Array:
        """Return the class probability [N], without the objectness, from the class scores [N, K]."""
        p = softmax(z) if self.layout.link == "softmax" else sigmoid(z) if self.layout.link == "sigmoid" else z
        return np.asarray(p[:, self.index])

    def _slope(self, z: Array) -> Array:
        """Return ∂(class probability)/∂z [N, K]."""
        unit = np.zeros_like(z)
        unit[:, self.index] = 1
        pc = self._of_class(z)[:, None]
        if self.layout.link == "softmax":
            return np.asarray(pc * (unit - softmax(z)))
        return pc * (1 - pc) * unit if self.layout.link == "sigmoid" else unit


@dataclass(frozen=True)
class Detected:
    """A box of a detector on an image."""

    index: int
    """The class."""
    label: str
    """Its label; the index in digits where there is none."""
    score: float
    """The probability of the class, times the objectness where there is one."""
    box: tuple[float, float, float, float]
    """(x0, y0, x1, y1) in pixels of the image."""
    explained: bool = False
    """Whether this is the explained box."""
    number: int = 0
    """The number of the box in the model's output, as `box:N` takes it."""

    @property
    def text(self) -> str:
        """The score for a reader."""
        return f"{self.score:.2f}" if self.score >= 0.01 else f"{self.score:.1g}"


def resolved(target: Located, task: Task, outputs: Outputs, frame: Frame | None, labels: Sequence[str] | None) -> Any:
    """Return the box or the region that a target means on one image.

    Args:
        target: The target.
        task: The model's task, detection or segmentation.
        outputs: The outputs for the image, [1, …].
        frame: The location of the image on the input; None for an array.
        labels: A label for each class of the outputs.

    Returns:
        A BoxScore or a Segmentation.

    Raises:
        InputError: The class, the region or the box does not exist.
    """
    if task.boxes is not None:
        return _box(target, task.boxes, task.size, outputs, frame, labels)
    if task.map is not None:
        return _region(target, task.map, task.size, outputs, frame, labels)
    text = f"{target.name!r}" if target.name else "a region"
    raise InputError(
        f"cannot use {text} as a target: regions and boxes are for detectors and segmentation, and the task is {task.text}; "
        "give a class, or state the task with task= (--task)"
    )


def detected(
    target: BoxScore, outputs: Outputs, frame: Frame | None, labels: Sequence[str] | None
) -> tuple[Detected, ...]:
    """Return the explained box, and those that remain after suppression with a score of at least `SHOWN`, best first."""
    layout = target.layout
    number, score = (values[0] for values in layout.best(outputs))
    boxes = layout.corners_in(outputs, target.size)[0]
    others = np.flatnonzero(score >= SHOWN)
    kept = [int(others[k]) for k in suppressed(boxes[others], score[others], number[others], MOST)]
    overlap = overlaps(boxes, boxes[target.box])
    same = (number == target.index) & (overlap > OVERLAP)  # other forms of the explained box
    rows = [(k, int(number[k]), float(score[k])) for k in kept if k != target.box and not same[k]]
    explained = (target.box, target.index, float(target.probability(outputs)[0, target.index]))
    rows.append(explained)
    rows.sort(key=lambda row: -row[2])
    placed = boxes if frame is None else frame.boxes_to_image(boxes)
    return tuple(
        Detected(index, _label(labels, index), p, tuple(float(v) for v in placed[k]), k == target.box, k)  # type: ignore[arg-type]
        for k, index, p in rows
    )


# Detection.


def _box(
    target: Located,
    layout: BoxLayout,
    size: Sequence[int],
    outputs: Outputs,
    frame: Frame | None,
    labels: Sequence[str] | None,
) -> BoxScore:
    boxes = layout.corners_in(outputs, size)[0]
    number, best = (values[0] for values in layout.best(outputs))
    if target.mask is not None or (target.region is not None and len(target.region) == 2):
        raise InputError(
            f"cannot use {target.name!r}: boxes are chosen by a region x0,y0,x1,y1 in pixels of the image, as in "
            "person@120,40,300,500"
        )
    index = target.index
    p = layout.probabilities(outputs)[0]
    if index is not None:
        count = layout.classes or p.shape[1]
        if not -count <= index < count:
            raise unknown_class(index, count)
        index %= count
        if index == layout.background:
            raise InputError(f"class {index} is the background, which no box has; give another class")
        best = p[:, index] if index < p.shape[1] else np.zeros(len(p))
    text = "" if index is None else f" of {_label(labels, index)!r}"
    overall = float(layout.best(outputs)[1].max(initial=0))
    if target.box is not None:
        if not 0 <= target.box < layout.count:
            raise InputError(
                f"unknown box {target.box}: the model gives {layout.count} boxes; give 0 to {layout.count - 1}"
            )
        box = target.box
    elif not overall > 0:
        raise AbsentError(
            "the model gives no box on this image; try another image, or another preprocess= (--preprocess)"
        )
    elif index is not None and best.max() < min(FAINT, FAINT * overall):
        known = _label(labels, int(number[int(layout.best(outputs)[1][0].argmax())]))
        raise AbsentError(
            f"no box has the class {_label(labels, index)!r}: its best score is {best.max():.2g}; give another, for example "
            f"{known!r}, or a box by its number (box:{int(best.argmax())})"
        )
    elif target.region is not None:
        region = _on_input(target, frame)
        overlap = overlaps(boxes, region)
        match = overlap * best
        if not match.max() > 0:
            raise AbsentError(
                f"no box{text} overlaps the region {_plain(target.region)}; give another region, x0,y0,x1,y1 in pixels of the "
                "image"
            )
        box = int(match.argmax())
        if overlap[box] < POOR:
            warn(
                f"the box{text} that fits {_plain(target.region)} best overlaps it by only {overlap[box]:.0%} (intersection "
                "over union)"
            )
    else:
        positive = np.flatnonzero(best > 0)
        classes = number[positive] if index is None else np.full(len(positive), index)
        kept = suppressed(boxes[positive], best[positive], classes, target.rank + 1)
        if target.rank >= len(kept):
            raise AbsentError(
                f"only {len(kept)} box{'' if len(kept) == 1 else 'es'}{text} remain{'s' if len(kept) == 1 else ''} after "
                f"suppression; give top{len(kept)}"
            )
        box = int(positive[kept[target.rank]])
    index = int(number[box]) if index is None else int(index)
    corners = tuple(float(v) for v in boxes[box])
    return BoxScore(layout, box, index, target.score, corners, tuple(size))  # type: ignore[arg-type]


def _on_input(target: Located, frame: Frame | None) -> Array:
    """Return the target's region in pixels of the input. Raises InputError."""
    assert target.region is not None
    x0, y0, x1, y1 = target.region
    if not (np.isfinite(target.region).all() and x0 < x1 and y0 < y1):
        raise InputError(f"cannot use the region {_plain(target.region)}; give x0,y0,x1,y1 with x0 < x1 and y0 < y1")
    if frame is None:
        return np.asarray(target.region)
    height, width = frame.image
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise InputError(
            f"the region {_plain(target.region)} is outside the image of {width}×{height} pixels; give x0,y0,x1,y1 inside it"
        )
    return frame.boxes_to_input(target.region)


# Segmentation.


def _region(
    target: Located,
    layout: MapLayout,
    size: Sequence[int],
    outputs: Outputs,
    frame: Frame | None,
    labels: Sequence[str] | None,
) -> Segmentation:
    if target.box is not None:
        raise InputError(f"cannot use {target.name!r}: segmentation has no boxes; give a class, as in dog or dog@x,y")
    if target.score != "logit":
        raise InputError(f"cannot use score={target.score!r} for a region; leave the score out")
    predicted = layout.predicted(outputs)[0]
    index = target.index
    if index is not None:
        if not -layout.classes <= index < layout.classes:
            raise unknown_class(index, layout.classes)
        index %= layout.classes
    if target.mask is not None or target.region is not None:
        mask = _mask(target, layout, size, frame)
        if index is None:
            inside = predicted[mask]
            inside = inside[inside >= 0]
            index = int(np.bincount(inside).argmax()) if len(inside) else 0
    else:
        if index is None:
            index = _largest(predicted, layout, target.rank, labels)
        mask = predicted == index
        if not mask.any():
            others = [i for i in np.unique(predicted) if i >= 0]
            some = ", ".join(_label(labels, int(i)) for i in others[:5]) or "none"
            raise AbsentError(
                f"no region is predicted as {_label(labels, index)!r} (predicted: {some}); give one of these, or a region of "
                f"the image, as in {_label(labels, index)}@x,y"
            )
    return Segmentation(int(index), mask, layout.output, layout.last)


def _largest(predicted: Array, layout: MapLayout, rank: int, labels: Sequence[str] | None) -> int:
    """Return the class of the largest region that is not background. Raises InputError."""
    areas = np.bincount(predicted[predicted >= 0].ravel(), minlength=layout.classes)
    if layout.background is not None:
        if not labels and areas.argmax() == layout.background and areas[layout.background]:
            warn(
                f"class {layout.background} is taken for the background, as the model has no labels; to explain it give "
                f"target={layout.background} (-t {layout.background})"
            )
        areas[layout.background] = 0
    order = np.argsort(-areas, kind="stable")
    count = int((areas > 0).sum())
    if not count:
        raise AbsentError(
            "every pixel is predicted as the background; give a class and a point of the image, as in "
            f"{_label(labels, layout.classes - 1)}@x,y"
        )
    if rank >= count:
        raise AbsentError(f"only {count} class{'' if count == 1 else 'es'} are predicted; give top{count}")
    return int(order[rank])


def _mask(target: Located, layout: MapLayout, size: Sequence[int], frame: Frame | None) -> Array:
    """Return the target's region on the output, bool [h, w]. Raises InputError."""
    if len(layout.size) != 2 or frame is None:
        raise InputError(f"cannot use {target.name!r} for an array; give xcam.Segmentation with a mask")
    height, width = frame.image
    rows, columns = layout.size
    # the centre of each pixel of the output, in pixels of the image
    x = (np.arange(columns) + 0.5) * size[1] / columns
    y = (np.arange(rows) + 0.5) * size[0] / rows
    points = frame.to_image(np.stack(np.meshgrid(x, y), axis=-1))
    if target.mask is not None:
        image = reading.mask(target.mask)
        if image.shape != (height, width):
            raise InputError(
                f"the mask {target.mask} is {image.shape[1]}×{image.shape[0]}, the image {width}×{height}; give a mask of the "
                "image's size"
            )
        columns_, rows_ = np.floor(points[..., 0]).astype(int), np.floor(points[..., 1]).astype(int)
        inside = (columns_ >= 0) & (columns_ < width) & (rows_ >= 0) & (rows_ < height)
        mask = np.zeros(layout.size, bool)
        mask[inside] = image[rows_[inside], columns_[inside]]
        if not mask.any():
            raise InputError(
                f"the mask {target.mask} is empty on the model's map of {rows}×{columns}; give a larger region"
            )
        return mask
    assert target.region is not None
    if len(target.region) == 4:
        _on_input(target, frame)
        x0, y0, x1, y1 = target.region
        mask = np.asarray(((points >= (x0, y0)) & (points < (x1, y1))).all(axis=-1))
        if mask.any():
            return mask
        px, py = (x0 + x1) / 2, (y0 + y1) / 2
    else:
        px, py = target.region
    seen_rows, seen_columns = frame.seen
    if not (0 <= px < width and 0 <= py < height):
        raise InputError(
            f"the point {_plain((px, py))} is outside the image of {width}×{height} pixels; give one inside it"
        )
    if not (seen_columns.start <= px < seen_columns.stop and seen_rows.start <= py < seen_rows.stop):
        raise InputError(
            f"the model does not see the point {_plain((px, py))}: it is outside the crop; give another, or fit="
        )
    column, row = frame.to_input((px, py))
    mask = np.zeros(layout.size, bool)
    mask[min(int(row * rows / size[0]), rows - 1), min(int(column * columns / size[1]), columns - 1)] = True
    return mask


def _label(labels: Sequence[str] | None, index: int) -> str:
    return labels[index] if labels is not None and index < len(labels) else str(index)


def _plain(numbers: Sequence[float]) -> str:
    return ",".join(f"{n:g}" for n in numbers)


def as_probability(target: BoxScore) -> BoxScore:
    """Return the target whose value is the probability."""
    return replace(target, score="probability")
