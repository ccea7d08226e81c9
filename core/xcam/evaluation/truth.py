"""Locations of objects: boxes and masks in the forms that users give, checked against the images."""

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
"""Rows and columns of an image."""
ONE_EACH = "give one for each image, None where it is unknown"


class Truth:
    """Boxes and masks of all images.

    Args:
        boxes: As for `evaluate`.
        masks: As for `evaluate`.

    Raises:
        InputError: One of them is not a list.
    """

    def __init__(self, boxes: Sequence[Any] | None, masks: Sequence[Any] | None) -> None:
        self.boxes, self.masks = _as_list("boxes", boxes), _as_list("masks", masks)

    def check(self, count: int) -> None:
        """Check that there is one entry for each of `count` images.

        Raises:
            InputError: There are more or fewer entries.
        """
        for name, entries in (("boxes", self.boxes), ("masks", self.masks)):
            if entries is not None and len(entries) != count:
                raise InputError(f"{len(entries)} {name} for {count} images; {ONE_EACH}")

    def of(self, k: int, image: reading.Image, name: str) -> Array | None:
        """Return the object's mask [H, W] of the k-th image, or None where it is unknown.

        Raises:
            InputError: The box or mask does not fit the image.
        """
        size = image.shape[0], image.shape[1]
        for kind, entries in (("boxes", self.boxes), ("masks", self.masks)):
            if entries is not None and k >= len(entries):
                raise InputError(f"{len(entries)} {kind}, and there are more images; {ONE_EACH}")
        boxes = [] if self.boxes is None else rectangles(self.boxes[k], size, name)
        mask = None if self.masks is None or self.masks[k] is None else _mask(self.masks[k], name)
        return located(boxes, mask, size, name)


def _as_list(name: str, entries: Any) -> Sequence[Any] | None:
    if entries is None or (isinstance(entries, Sequence) and not isinstance(entries, str | bytes)):
        return entries
    if getattr(entries, "ndim", 0):
        return list(entries)
    raise InputError(
        f"cannot use {name} of type {type(entries).__name__}; give a list: {ONE_EACH.removeprefix('give ')}"
    )


def rectangles(boxes: Any, size: tuple[int, int], name: str) -> list[Rectangle]:
    """Return the rows and columns of the boxes of one image. A pixel that a box touches belongs to it.

    Args:
        boxes: One box x0, y0, x1, y1 in pixels, or a list of boxes, or None.
        size: Height and width of the image.
        name: The image's name, for messages.

    Raises:
        InputError: It is not four numbers, or outside the image.
    """
    try:
        numbers = np.asarray([] if boxes is None else boxes, np.float64)
        if numbers.size and numbers.shape[-1:] != (4,):
            raise ValueError("a box has four numbers")
    except (TypeError, ValueError) as error:
        text = " ".join(repr(boxes).split())[:80]
        raise InputError(
            f"cannot read {text} as a box of {name}; give four numbers, x0, y0, x1, y1, or a list of boxes"
        ) from error
    return [_rectangle(tuple(box), size, name) for box in numbers.reshape(-1, 4).tolist()]


def _rectangle(box: tuple[float, ...], size: tuple[int, int], name: str) -> Rectangle:
    x0, y0, x1, y1 = box
    height, width = size
    text = f"the box {x0:g}, {y0:g}, {x1:g}, {y1:g} of {name}"
    if all(v <= 1 for v in box) and not all(v.is_integer() for v in box):
        raise InputError(f"{text} looks like shares of the image; give pixels ({width}×{height})")
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise InputError(
            f"{text} is empty, or not within the image's {width}×{height} pixels; give x0, y0, x1, y1 in pixels, from the "
            "left and the top"
        )
    return slice(math.floor(y0), math.ceil(y1)), slice(math.floor(x0), math.ceil(x1))


def located(boxes: Sequence[Rectangle], mask: Array | None, size: tuple[int, int], name: str) -> Array | None:
    """Return the union [H, W] of the boxes and the mask, or None where there is neither.

    Args:
        boxes: Rows and columns.
        mask: Boolean [H, W], or None.
        size: Height and width of the image.
        name: The image's name, for messages.

    Raises:
        InputError: The mask has another size than the image.
    """
    if mask is not None and mask.shape != size:
        shape = f"{mask.shape[1]}×{mask.shape[0]}" if mask.ndim == 2 else f"{list(mask.shape)}"
        raise InputError(
            f"the mask of {name} is {shape}, the image {size[1]}×{size[0]}; give a mask of the image's size"
        )
    if mask is None and not boxes:
        return None
    result = np.zeros(size, bool) if mask is None else mask.copy()
    for box in boxes:
        result[box] = True
    return result


def _mask(mask: Any, name: str) -> Array:
    if isinstance(mask, str | os.PathLike):
        return reading.mask(mask)
    try:
        values = np.asarray(mask)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"cannot read the mask of {name} as an array: {first_line(error)}; give an array [h, w], or a file"
        ) from error
    return reading.inside(values, f"the mask of {name}")
