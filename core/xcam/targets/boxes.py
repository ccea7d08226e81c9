"""Boxes: the forms of their four numbers, overlap, and suppression. Arrays in, arrays out."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from xcam.contract import Array

Corners = Literal["xyxy", "cxcywh", "ltwh", "yxyx"]
"""The four numbers of a box: two opposite corners; centre and size; the first corner and size; corners with y first."""
OVERLAP = 0.5
"""Of two boxes of one class that overlap by more (intersection over union), suppression keeps the better one."""


def to_xyxy(boxes: Array, corners: Corners) -> Array:
    """Return boxes [..., 4] as (x0, y0, x1, y1)."""
    first, second = boxes[..., :2], boxes[..., 2:4]
    match corners:
        case "cxcywh":
            return np.concatenate([first - second / 2, first + second / 2], axis=-1)
        case "ltwh":
            return np.concatenate([first, first + second], axis=-1)
        case "yxyx":
            return np.concatenate([first[..., ::-1], second[..., ::-1]], axis=-1)
    return boxes[..., :4]


def overlaps(boxes: Array, region: Any) -> Array:
    """Return the intersection over union [B] of boxes [B, 4] with one box, all (x0, y0, x1, y1)."""
    low, high = np.maximum(boxes[:, :2], region[:2]), np.minimum(boxes[:, 2:], region[2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    areas = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1)
    whole = max(region[2] - region[0], 0) * max(region[3] - region[1], 0)
    return np.asarray(shared / np.maximum(areas + whole - shared, 1e-12))


def suppressed(boxes: Array, scores: Array, classes: Array, most: int, overlap: float = OVERLAP) -> list[int]:
    """Return the boxes that remain after suppression for each class (greedy NMS), the best first.

    Args:
        boxes: [B, 4] as (x0, y0, x1, y1).
        scores: [B].
        classes: [B], the class of each box.
        most: The largest number of boxes that is returned.
        overlap: Of two boxes of a class with a larger intersection over union, the one with the smaller score is left out.
    """
    remaining = np.argsort(-scores, kind="stable")
    result: list[int] = []
    while len(remaining) and len(result) < most:
        best, others = int(remaining[0]), remaining[1:]
        result.append(best)
        same = (classes[others] == classes[best]) & (overlaps(boxes[others], boxes[best]) > overlap)
        remaining = others[~same]
    return result
