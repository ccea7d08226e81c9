"""Targets for outputs that are no class scores: numbers, maps, embeddings, boxes. Each names its output, or takes the first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from xcam.contract import Array, Outputs, like, one_output
from xcam.errors import InputError

Corners = Literal["xyxy", "cxcywh"]


@dataclass(frozen=True)
class Element:
    """One number of an output, for regression: y[:, place]. Value y_place, cotangent 1 there."""

    place: tuple[int, ...]
    output: str | None = None

    @property
    def name(self) -> str:
        return f"output [{', '.join(map(str, self.place))}]"

    def value(self, outputs: Outputs) -> Array:
        """[N] numbers. Raises InputError."""
        y = one_output(outputs, self.output)
        self._check(y)
        at: Any = (..., *self.place)
        return np.asarray(y[at])

    def cotangent(self, outputs: Outputs) -> Outputs:
        """∂value/∂outputs."""
        y = one_output(outputs, self.output)
        self._check(y)
        found = np.zeros_like(y)
        at: Any = (..., *self.place)
        found[at] = 1
        return like(outputs, found, self.output)

    def _check(self, y: Array) -> None:
        fits = (
            isinstance(self.place, tuple | list)
            and len(self.place) == y.ndim - 1
            and all(
                isinstance(i, int | np.integer) and -n <= i < n for i, n in zip(self.place, y.shape[1:], strict=True)
            )
        )
        if not fits:
            raise InputError(
                f"no element {np.asarray(self.place).tolist()} in an output of shape {list(y.shape[1:])}; give one index each"
            )


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A class over a region: the mean of its logits z[:, c, …] over a mask. Vinogradova et al. 2020.

    mask: booleans or weights of the output's space; None: everywhere. last: classes stand on the last axis.
    """

    index: int
    mask: Array | None = None
    output: str | None = None
    last: bool = False

    @property
    def name(self) -> str:
        return f"class {self.index}{' over a mask' if self.mask is not None else ''}"

    def value(self, outputs: Outputs) -> Array:
        """[N] means."""
        z = self._logits(one_output(outputs, self.output))
        return np.asarray((z[:, self.index] * self._weights(z)).sum(axis=tuple(range(1, z.ndim - 1))))

    def cotangent(self, outputs: Outputs) -> Outputs:
        """∂value/∂outputs."""
        z = self._logits(one_output(outputs, self.output))
        found = np.zeros_like(z)
        found[:, self.index] = self._weights(z)
        return like(outputs, np.moveaxis(found, 1, -1) if self.last else found, self.output)

    def _logits(self, z: Array) -> Array:
        if z.ndim < 3:
            raise InputError(
                f"the output has shape {z.shape}, and a map of classes needs [batch, classes, height, width]"
            )
        z = np.moveaxis(z, -1, 1) if self.last else z
        if not isinstance(self.index, int | np.integer) or not -z.shape[1] <= self.index < z.shape[1]:
            raise InputError(f"no class {self.index}: the map has {z.shape[1]} classes, 0 to {z.shape[1] - 1}")
        return z

    def _weights(self, z: Array) -> Array:
        mask = np.ones(z.shape[2:]) if self.mask is None else np.asarray(self.mask, np.float64)
        if mask.shape != z.shape[2:]:
            raise InputError(f"the mask has shape {mask.shape}, the map {z.shape[2:]}; resize the mask")
        if not mask.sum() > 0:
            raise InputError("the mask is empty: nothing is left to explain")
        return np.asarray(mask / mask.sum(), z.dtype)


@dataclass(frozen=True, eq=False)
class Similarity:
    """The cosine between an embedding and a reference: what makes two pictures alike.

    Value cos = ⟨u, r⟩ with unit vectors u = y/|y|, r; cotangent (r − cos·u)/|y|.
    """

    reference: Array
    """[D], such as another picture's embedding."""
    output: str | None = None
    name: str = "similarity"

    def value(self, outputs: Outputs) -> Array:
        """[N] cosines in −1…1."""
        unit, reference, _ = self._parts(outputs)
        return np.asarray(unit @ reference)

    def cotangent(self, outputs: Outputs) -> Outputs:
        """∂value/∂outputs."""
        unit, reference, norm = self._parts(outputs)
        found = (reference - (unit @ reference)[:, None] * unit) / norm
        y = one_output(outputs, self.output)
        return like(outputs, found.reshape(y.shape).astype(y.dtype), self.output)

    def _parts(self, outputs: Outputs) -> tuple[Array, Array, Array]:
        y = one_output(outputs, self.output)
        flat = y.reshape(len(y), -1)
        reference = np.ravel(np.asarray(self.reference, flat.dtype))
        if reference.size != flat.shape[1]:
            raise InputError(f"the reference has {reference.size} numbers, the embedding {flat.shape[1]}")
        if not np.isfinite(reference).all():
            raise InputError("the reference has NaN or infinity; give another")
        size = float(np.linalg.norm(reference))
        norm = np.linalg.norm(flat, axis=1, keepdims=True)
        if not size > 0 or not (norm > 0).all():
            raise InputError("a vector of zeros has no direction: the cosine with it is not defined")
        return flat / norm, reference / size, norm


@dataclass(frozen=True)
class Detection:
    """The class score of the box that fits a region best, among raw boxes: a detector before its suppression.

    Outputs [N, boxes, 4 + classes] in one array, or boxes [N, B, 4] and scores [N, B, classes] under names of their own.
    `resolve` picks the box by overlap with `region` (x0, y0, x1, y1) times its score, on the clean outputs.
    """

    index: int
    region: tuple[float, float, float, float]
    boxes: str | None = None
    output: str | None = None
    """The output that holds the scores."""
    corners: Corners = "xyxy"
    box: int | None = None

    @property
    def name(self) -> str:
        return f"class {self.index} of box {self.box}"

    def resolve(self, outputs: Outputs) -> Detection:
        """The same with its box fixed. Raises InputError where none meets the region."""
        scores, boxes = self._scores(outputs)[0], self._boxes(outputs)[0]
        region = np.asarray(self.region, np.float64)
        if region.shape != (4,) or not (region[:2] < region[2:]).all():
            raise InputError(f"{self.region} is no region; give (x0, y0, x1, y1) with x0 < x1 and y0 < y1")
        if not isinstance(self.index, int | np.integer) or not -scores.shape[1] <= self.index < scores.shape[1]:
            raise InputError(f"no class {self.index}: the boxes have {scores.shape[1]} classes")
        overlap = _iou(boxes, self.region, self.corners)
        if not overlap.max() > 0:
            raise InputError(f"no box meets the region {self.region}; give it in the units of the model's boxes")
        z = scores[:, self.index]
        fit = overlap * (z - z.min() + 1e-9)
        return replace(self, box=int(fit.argmax()))

    def value(self, outputs: Outputs) -> Array:
        """[N] scores of the box."""
        return np.asarray(self._scores(outputs)[:, self.box, self.index])

    def cotangent(self, outputs: Outputs) -> Outputs:
        """∂value/∂outputs: 1 at the score of the box."""
        y = one_output(outputs, self.output)
        found = np.zeros_like(y)
        offset = 4 if self.boxes is None else 0
        place = self.index + offset if self.index >= 0 else self.index
        found[:, self.box, place] = 1
        return like(outputs, found, self.output)

    def _scores(self, outputs: Outputs) -> Array:
        y = one_output(outputs, self.output)
        if y.ndim != 3 or (self.boxes is None and y.shape[2] < 5):
            raise InputError(f"the output has shape {y.shape}, and boxes need [batch, boxes, 4 + classes]")
        return y if self.boxes is not None else y[..., 4:]

    def _boxes(self, outputs: Outputs) -> Array:
        return one_output(outputs, self.boxes if self.boxes is not None else self.output)[..., :4]


def _iou(boxes: Array, region: Any, corners: Corners) -> Array:
    """Intersection over union of boxes [B, 4] with a region (x0, y0, x1, y1)."""
    if corners == "cxcywh":
        centre, half = boxes[:, :2], boxes[:, 2:] / 2
        boxes = np.concatenate([centre - half, centre + half], axis=1)
    low, high = np.maximum(boxes[:, :2], region[:2]), np.minimum(boxes[:, 2:], region[2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    areas = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1)
    whole = (region[2] - region[0]) * (region[3] - region[1])
    return np.asarray(shared / np.maximum(areas + whole - shared, 1e-12))
