"""The layouts of a detector's boxes and of a segmentation's map in a model's outputs, and their scores as probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from xcam.contract import Array, Outputs, one_output
from xcam.targets.boxes import Corners, to_xyxy
from xcam.targets.classes import sigmoid, softmax

Link = Literal["softmax", "sigmoid", "identity"]
"""The function from an output's numbers to probabilities; `identity` where they are probabilities."""


def linked(z: Array, link: Link) -> Array:
    """Return the probabilities of class scores [..., K]."""
    return softmax(z) if link == "softmax" else sigmoid(z) if link == "sigmoid" else z


@dataclass(frozen=True)
class BoxLayout:
    """Where a detector's outputs have its boxes, their scores and their classes."""

    count: int
    """The number of boxes."""
    classes: int
    """The number of classes that have a score, the background included; 0 for selected boxes of unknown classes."""
    corners: Corners = "xyxy"
    """The form of a box."""
    relative: bool = False
    """Whether boxes are fractions of the input's size, and not pixels of the input."""
    objectness: bool = False
    """Whether an objectness precedes the class scores, by which they are multiplied."""
    background: int | None = None
    """The class that means no object."""
    link: Link = "identity"
    """The function from scores to probabilities."""
    axis: int = 1
    """The axis of the boxes in the output with the scores: 1 for [N, B, …], 2 for [N, …, B]."""
    output: str | None = None
    """The name of the output with the scores; None for a model with one output."""
    boxes: str | None = None
    """The name of the output with the boxes, where it is a separate one."""
    numbers: str | None = None
    """The name of the output with the class numbers of selected boxes, where it is a separate one."""
    selected: bool = False
    """Whether the model has selected its boxes: each has one score, and the number of its class."""
    box_link: Link = "identity"
    """The function from the numbers of a separate output to boxes: a sigmoid that was cut off it."""
    extra: int = 0
    """The number of columns after the class scores: coefficients of masks, keypoints."""

    @property
    def text(self) -> str:
        """The layout for a reader, as in `80 classes, 8400 boxes, xywh, no objectness`."""
        known = self.classes - (self.background is not None)
        form = {"cxcywh": "xywh"}.get(self.corners, self.corners)
        parts = [
            f"{known} class{'' if known == 1 else 'es'}" if self.classes else "",
            f"{self.count} {'selected ' if self.selected else ''}box{'' if self.count == 1 else 'es'}",
            f"{'relative ' if self.relative else ''}{form}",
            "" if self.selected else "objectness" if self.objectness else "no objectness",
            "" if self.background is None else f"background {self.background}",
        ]
        return ", ".join(part for part in parts if part)

    @property
    def offset(self) -> int:
        """The column of class 0."""
        return 0 if self.boxes is not None else 4 + self.objectness

    def columns(self, outputs: Outputs) -> Array:
        """Return the output with the scores as [N, B, columns]."""
        y = one_output(outputs, self.output)
        y = y[:, :, None] if y.ndim == 2 else y
        return np.moveaxis(y, 2, 1) if self.axis == 2 else y

    def corners_in(self, outputs: Outputs, size: Sequence[int]) -> Array:
        """Return the boxes [N, B, 4] as (x0, y0, x1, y1) in pixels of an input of `size` (height, width)."""
        if self.boxes is None:
            boxes = self.columns(outputs)[..., :4]
        else:
            boxes = one_output(outputs, self.boxes)
            boxes = boxes.reshape(len(boxes), -1, 4) if boxes.shape[-1] == 4 else np.moveaxis(boxes, 1, 2)
            boxes = linked(boxes, self.box_link)
        boxes = to_xyxy(boxes.astype(np.float64), self.corners)
        return boxes * [size[1], size[0], size[1], size[0]] if self.relative else boxes

    def probabilities(self, outputs: Outputs) -> Array:
        """Return the probabilities of the classes [N, B, K], multiplied by the objectness; 0 for the background.

        Those of selected boxes are 0 for all classes but one.
        """
        columns = self.columns(outputs).astype(np.float64)
        if self.selected:
            score, number = self._selected(outputs)
            count = max(self.classes, 1 + int(number.max(initial=0)))
            return np.where(number[..., None] == np.arange(count), score[..., None], 0)
        p = linked(columns[..., self.offset : self.offset + self.classes], self.link)
        if self.objectness:
            p = p * linked(columns[..., 4:5], "identity" if self.link == "identity" else "sigmoid")
        if self.background is not None:
            p[..., self.background] = 0
        return np.asarray(p)

    def best(self, outputs: Outputs) -> tuple[Array, Array]:
        """Return the best class [N, B] of each box, the background left out, and its probability [N, B]."""
        if self.selected:
            score, number = self._selected(outputs)
            return number, score
        p = self.probabilities(outputs)
        return p.argmax(axis=2), p.max(axis=2)

    def _selected(self, outputs: Outputs) -> tuple[Array, Array]:
        """Return the score [N, B] and the number of the class [N, B] of selected boxes."""
        columns = self.columns(outputs).astype(np.float64)
        if self.boxes is None:
            return columns[..., 4], np.rint(columns[..., 5]).astype(int)
        score = columns[..., 0]
        if self.numbers is None:
            return score, np.zeros(score.shape, int)
        return score, np.rint(one_output(outputs, self.numbers)).astype(int).reshape(score.shape)


@dataclass(frozen=True)
class MapLayout:
    """Where a segmentation's output has its classes."""

    classes: int
    """The number of classes; 1 for a map of one class against the background."""
    size: tuple[int, ...]
    """The spatial size of the output."""
    last: bool = False
    """Whether classes are on the last axis, [N, *space, K]."""
    output: str | None = None
    """The name of the output; None for a model with one output."""
    link: Link = "softmax"
    """The function from scores to probabilities."""
    background: int | None = None
    """The class of the background."""

    @property
    def text(self) -> str:
        """The layout for a reader, as in `21 classes, 520×520`."""
        size = "×".join(map(str, self.size))
        background = "" if self.background is None else f", background {self.background}"
        return f"{self.classes} class{'' if self.classes == 1 else 'es'}, {size}{background}"

    def scores(self, outputs: Outputs) -> Array:
        """Return the scores [N, K, *space]."""
        z = one_output(outputs, self.output)
        return np.moveaxis(z, -1, 1) if self.last else z

    def probabilities(self, outputs: Outputs) -> Array:
        """Return the probabilities [N, K, *space]."""
        return np.moveaxis(linked(np.moveaxis(self.scores(outputs).astype(np.float64), 1, -1), self.link), -1, 1)

    def predicted(self, outputs: Outputs) -> Array:
        """Return the predicted class [N, *space]; −1 where a map of one class, or no class of several, is predicted."""
        p = self.probabilities(outputs)
        best = p.argmax(axis=1)
        if self.link == "softmax" or (self.classes > 1 and self.link == "identity"):
            return best
        return np.where(p.max(axis=1) > 0.5, best, -1)
