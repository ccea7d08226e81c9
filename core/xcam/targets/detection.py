"""The target for the raw boxes of a detector, and the axes of its outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from xcam.contract import Array, Outputs, like, one_output
from xcam.errors import InputError, nearest, warn
from xcam.targets.classes import unknown_class

Corners = Literal["xyxy", "cxcywh"]
"""The four numbers of a box: two opposite corners, or centre and size."""
COCO = 80
"""The number of classes by which 4 + 80 and 5 + 80 numbers for a box are distinguished, where it is not stated."""
CLEAR = math.log(3)
"""The ratio of the mean coordinate and the mean score that distinguishes them where both are between 0 and 1."""


@dataclass(frozen=True)
class Detection:
    """The class score of the box that matches a region, for the raw boxes of a detector (before suppression).

    The output is one array [N, boxes, 4 + K] or [N, 4 + K, boxes] (YOLOv8 and later), with 5 + K numbers where an
    objectness precedes the K class scores (YOLOv5), or two arrays: boxes [N, boxes, 4] and scores [N, boxes, K].
    `resolve` finds the axis of the boxes by the number of classes, the range of the scores and the order of the corners,
    and chooses the box with the largest product of overlap (intersection over union) with the region and score (times
    objectness) above the lowest score.
    """

    index: int
    """The class."""
    region: tuple[float, float, float, float]
    """(x0, y0, x1, y1), in the units of the model's boxes."""
    boxes: str | None = None
    """The name of the output with the boxes, where they are separate; default: the one with four numbers for each box."""
    output: str | None = None
    """The name of the output with the scores; default: the first, or the one that has a score for each separate box."""
    corners: Corners = "xyxy"
    """The meaning of a box's four numbers."""
    box: int | None = None
    """The index of the box; `resolve` fixes it."""
    axis: int | None = None
    """The axis of the boxes in the output with the scores: 1 for [N, boxes, …], 2 for [N, …, boxes]."""
    classes: int | None = None
    """The number of classes; default: that of the model's labels."""
    objectness: bool | None = None
    """Whether an objectness is between coordinates and class scores; default: by the number of classes."""

    @property
    def name(self) -> str:
        """The name of the target."""
        return f"class {self.index} of box {self.box}"

    def resolve(self, outputs: Outputs) -> Detection:
        """Return the target with its outputs, its axis and its box fixed.

        Raises:
            InputError: No box overlaps the region, the class or an output does not exist, or boxes and classes cannot be
                distinguished.
        """
        region = np.asarray(self.region, np.float64)
        if region.shape != (4,) or not (region[:2] < region[2:]).all():
            raise InputError(f"cannot use the region {self.region}; give (x0, y0, x1, y1) with x0 < x1 and y0 < y1")
        if self.axis not in (None, 1, 2):
            raise InputError(f"cannot use axis={self.axis}; give 1 for [batch, boxes, …] or 2 for [batch, …, boxes]")
        fixed = self._with_outputs(outputs)
        fixed = fixed._with_axis(outputs)
        boxes, scores = fixed._boxes(outputs)[0], fixed._scores(outputs)[0]
        if not isinstance(self.index, int | np.integer) or not -scores.shape[1] <= self.index < scores.shape[1]:
            raise unknown_class(self.index, scores.shape[1])
        overlap = _iou(boxes, self.region, self.corners)
        if not overlap.max() > 0:
            raise InputError(f"no box overlaps the region {self.region}; give it in the units of the model's boxes")
        z = scores[:, self.index]
        match = overlap * (z - z.min() + 1e-9)
        if fixed.objectness:
            match = match * fixed._columns(outputs)[0, :, 4]
        return replace(fixed, box=int(match.argmax()))

    def value(self, outputs: Outputs) -> Array:
        """Return the scores [N] of the box."""
        return np.asarray(self._scores(outputs)[:, self.box, self.index])

    def cotangent(self, outputs: Outputs) -> Outputs:
        """Return ∂value/∂outputs: 1 at the score of the box, 0 elsewhere."""
        y = one_output(outputs, self.output)
        slope = np.zeros_like(y)
        columns = np.moveaxis(slope, 2, 1) if self.axis == 2 else slope  # a view
        columns[:, self.box, self._offset + self.index % self._scores(outputs).shape[2]] = 1
        return like(outputs, slope, self.output)

    @property
    def _offset(self) -> int:
        """The column of class 0."""
        return 0 if self.boxes is not None else 4 + bool(self.objectness)

    def _columns(self, outputs: Outputs) -> Array:
        """Return the output with the scores as [N, boxes, columns]."""
        y = one_output(outputs, self.output)
        return np.moveaxis(y, 2, 1) if self.axis == 2 else y

    def _scores(self, outputs: Outputs) -> Array:
        """Return the scores [N, boxes, K]."""
        stop = None if self.classes is None else self._offset + self.classes
        return self._columns(outputs)[..., self._offset : stop]

    def _boxes(self, outputs: Outputs) -> Array:
        """Return the boxes [N, boxes, 4]."""
        if self.boxes is None:
            return self._columns(outputs)[..., :4]
        boxes = one_output(outputs, self.boxes)
        return boxes if boxes.shape[2] == 4 else np.moveaxis(boxes, 1, 2)

    def _with_outputs(self, outputs: Outputs) -> Detection:
        """Return the target with the names of separate outputs for boxes and scores. Raises InputError."""
        if not isinstance(outputs, Mapping):
            return replace(self, boxes=None, output=None)
        for name in (self.boxes, self.output):
            if name is not None and name not in outputs:
                raise InputError(f"unknown output {name!r}; {nearest(name, outputs)}")
        pairs = [
            (scores, boxes)
            for boxes, b in outputs.items()
            for scores, s in outputs.items()
            if boxes != scores
            and b.ndim == s.ndim == 3
            and 4 in b.shape[1:]
            and b.shape[1 if b.shape[2] == 4 else 2] in s.shape[1:]
            and self.boxes in (None, boxes)
            and self.output in (None, scores)
        ]
        named = [pair for pair in pairs if "box" in pair[1].lower() and "box" not in pair[0].lower()]
        if len(named or pairs) > 1:
            listed = ", ".join(f"boxes={boxes!r} with output={scores!r}" for scores, boxes in named or pairs)
            raise InputError(f"several outputs have the shapes of boxes and scores; give one of {listed}")
        if not pairs and self.boxes is not None:
            raise InputError(
                f"output {self.boxes!r} has shape {outputs[self.boxes].shape}, and no other output has a score for each of "
                "its boxes; give boxes= the name of an output [batch, boxes, 4]"
            )
        return replace(self, output=(named or pairs)[0][0], boxes=(named or pairs)[0][1]) if pairs else self

    def _with_axis(self, outputs: Outputs) -> Detection:
        """Return the target with its axis of boxes, and with the position of its classes. Raises InputError."""
        y = one_output(outputs, self.output)
        if self.boxes is not None:
            boxes = one_output(outputs, self.boxes)
            axis = 1 if boxes.shape[2] == 4 else 2
            count = boxes.shape[axis]
            if self.axis is None and y.shape[1] != y.shape[2]:
                axis = 1 if y.shape[1] == count else 2
            return replace(self, axis=self.axis or axis, objectness=False)
        if y.ndim != 3 or max(y.shape[1:]) < 5:
            raise InputError(
                f"cannot explain a box: the output has shape {y.shape}, not [batch, boxes, 4 + classes]; give another output"
            )
        axis = self.axis or self._axis_of_boxes(y)
        columns = np.moveaxis(y, 2, 1) if axis == 2 else y
        count = columns.shape[2]
        self._check_selected(columns[0])
        if count < 5 or (self.classes is not None and count < 4 + self.classes):
            raise InputError(
                f"cannot explain a box: axis {3 - axis} of the output of shape {y.shape} is too short for 4 coordinates and "
                f"{self.classes or 'the'} classes; give another axis or number of classes"
            )
        objectness = self.objectness
        if objectness is None:
            objectness = count == 5 + (self.classes or COCO)
            is_open = count > 5 and count not in (4 + COCO, 5 + COCO)
            if self.classes is None and axis == 1 and self.corners == "cxcywh" and is_open:
                warn(
                    f"column 4 of the {count} numbers for a box is taken for the score of class 0; where it is an objectness, "
                    "give objectness=True, or classes="
                )
        return replace(self, axis=axis, objectness=objectness)

    def _axis_of_boxes(self, y: Array) -> int:
        """Return the axis of the boxes in [N, boxes, columns] or [N, columns, boxes]. Raises InputError."""
        layouts = {1: y, 2: np.moveaxis(y, 2, 1)}
        able = {axis for axis in layouts if layouts[axis].shape[2] >= 5}
        if self.classes is not None:
            fitting = {axis for axis in able if layouts[axis].shape[2] - self.classes in (4, 5)}
            able = fitting or {axis for axis in able if layouts[axis].shape[2] >= 4 + self.classes} or able
        if len(able) > 1:
            for evidence in (_are_scores, self._are_boxes, _differ):
                fitting = {axis for axis in able if evidence(layouts[axis])}
                if len(fitting) == 1:
                    able = fitting
                    break
        if len(able) == 1:
            return able.pop()
        raise InputError(
            f"cannot tell the boxes from the classes in an output of shape {y.shape}; give axis=1 for [batch, boxes, "
            "4 + classes], axis=2 for [batch, 4 + classes, boxes], or classes="
        )

    def _are_boxes(self, columns: Array) -> bool:
        """Return whether the first four numbers [N, boxes, 4 + …] are boxes: of positive sizes, with ordered corners."""
        low, high = columns[..., :2], columns[..., 2:4]
        return bool((high > 0).all() if self.corners == "cxcywh" else (high >= low).all())

    def _check_selected(self, columns: Array) -> None:
        """Raise InputError for boxes that the model has selected: two corners, score, and the number of the class."""
        if columns.shape[1] != 6 or self.classes is not None or self.objectness is not None:
            return
        numbers = columns[:, 5]
        if not ((numbers == np.rint(numbers)).all() and (numbers >= 0).all() and numbers.max() > 1):
            return
        overlap = np.where(numbers == self.index, _iou(columns[:, :4], self.region, self.corners), 0)
        raise InputError(
            "cannot explain a class of selected boxes: their columns are four coordinates, the score, and the number of the "
            f"class; give target=xcam.Element(({int(overlap.argmax())}, 4)), the score of the box of class {self.index} "
            "that matches the region best"
        )


def _are_scores(columns: Array) -> bool:
    """Return whether all scores of [N, boxes, 4 + …] are between 0 and 1, and some coordinates are larger."""
    scores = columns[..., 4:]
    return bool((scores >= 0).all() and (scores <= 1).all() and (columns[..., :4] > 1).any())


def _differ(columns: Array) -> bool:
    """Return whether the mean coordinate differs clearly from the mean score, where all are positive."""
    coordinates, scores = float(columns[..., :4].mean()), float(columns[..., 4:].mean())
    return coordinates > 0 and scores > 0 and abs(math.log(coordinates / scores)) > CLEAR


def _iou(boxes: Array, region: Any, corners: Corners) -> Array:
    """Return the intersection over union [B] of boxes [B, 4] with a region (x0, y0, x1, y1)."""
    if corners == "cxcywh":
        centre, half = boxes[:, :2], boxes[:, 2:] / 2
        boxes = np.concatenate([centre - half, centre + half], axis=1)
    low, high = np.maximum(boxes[:, :2], region[:2]), np.minimum(boxes[:, 2:], region[2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    areas = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1)
    whole = (region[2] - region[0]) * (region[3] - region[1])
    return np.asarray(shared / np.maximum(areas + whole - shared, 1e-12))
