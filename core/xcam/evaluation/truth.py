"""Where the objects are: boxes and masks, as they are given, held against the pictures."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from xcam.contract import Array
from xcam.errors import InputError, first_line
from xcam.images import reading

Rectangle = tuple[slice, slice]
"""Rows and columns of a picture."""
ONE_FOR_EACH = "give one for each, None where there is none"


class Truth:
    """Where the objects are. Raises InputError for what is no list."""

    def __init__(self, boxes: Sequence[Any] | None, masks: Sequence[Any] | None) -> None:
        self.boxes, self.masks = _listed("boxes", boxes), _listed("masks", masks)

    def check(self, count: int) -> None:
        """Raises InputError unless there is one for each picture."""
        for what, given in (("boxes", self.boxes), ("masks", self.masks)):
            if given is not None and len(given) != count:
                raise InputError(f"{len(given)} {what} for {count} pictures; {ONE_FOR_EACH}")

    def of(self, k: int, image: reading.Image, name: str) -> Array | None:
        """The mask [H, W] of the k-th picture; None where nothing is known. Raises InputError."""
        size = image.shape[0], image.shape[1]
        for what, given in (("boxes", self.boxes), ("masks", self.masks)):
            if given is not None and k >= len(given):
                raise InputError(f"{len(given)} {what}, and there are more pictures; {ONE_FOR_EACH}")
        boxes = [] if self.boxes is None else rectangles(self.boxes[k], size, name)
        mask = None if self.masks is None or self.masks[k] is None else _mask(self.masks[k], name)
        return located(boxes, mask, size, name)


def _listed(what: str, given: Any) -> Sequence[Any] | None:
    if given is None or (isinstance(given, Sequence) and not isinstance(given, str | bytes)):
        return given
    if getattr(given, "ndim", 0):
        return list(given)
    raise InputError(
        f"{what} is a {type(given).__name__}; give a list: one for each picture, None where there is none"
    )


def rectangles(boxes: Any, size: tuple[int, int], name: str) -> list[Rectangle]:
    """A picture's boxes (one, or a list of them, or None), x0, y0, x1, y1 in its pixels → its rows and columns.

    A pixel that a box touches belongs to it. Raises InputError.
    """
    try:
        numbers = np.asarray([] if boxes is None else boxes, np.float64)
        if numbers.size and numbers.shape[-1:] != (4,):
            raise ValueError("a box has four numbers")
    except (TypeError, ValueError) as error:
        said = " ".join(repr(boxes).split())[:80]
        raise InputError(
            f"the box of {name} is {said}; give four numbers, x0, y0, x1, y1, or a list of such"
        ) from error
    return [_rectangle(tuple(box), size, name) for box in numbers.reshape(-1, 4).tolist()]


def _rectangle(box: tuple[float, ...], size: tuple[int, int], name: str) -> Rectangle:
    x0, y0, x1, y1 = box
    height, width = size
    said = f"the box {x0:g}, {y0:g}, {x1:g}, {y1:g} of {name}"
    if all(v <= 1 for v in box) and not all(v.is_integer() for v in box):
        raise InputError(f"{said}: these look like shares of the picture; give pixels ({width}×{height})")
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise InputError(
            f"{said} does not lie within its {width}×{height} pixels (or is empty); give x0, y0, x1, y1 in pixels of the "
            "picture, from its left and its top"
        )
    return slice(math.floor(y0), math.ceil(y1)), slice(math.floor(x0), math.ceil(x1))


def located(boxes: Sequence[Rectangle], mask: Array | None, size: tuple[int, int], name: str) -> Array | None:
    """The object [H, W], in any of the boxes or in the mask; None where there is neither. Raises InputError."""
    if mask is not None and mask.shape != size:
        have = f"{mask.shape[1]}×{mask.shape[0]}" if mask.ndim == 2 else f"{list(mask.shape)}"
        raise InputError(
            f"the mask of {name} is {have}, the picture {size[1]}×{size[0]}; give a mask of the picture's size"
        )
    if mask is None and not boxes:
        return None
    found = np.zeros(size, bool) if mask is None else mask
    for box in boxes:
        found[box] = True
    return found


def _mask(given: Any, name: str) -> Array:
    if isinstance(given, str | os.PathLike):
        return reading.mask(given)
    try:
        values = np.asarray(given)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the mask of {name} is no array ({first_line(error)}); give one [h, w], or a file"
        ) from error
    return reading.inside(values, f"the mask of {name}")
