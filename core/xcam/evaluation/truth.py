"""Where the objects are: boxes and masks, as they are given, held against the pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from xcam import pictures
from xcam.contract import Array
from xcam.errors import InputError


class Truth:
    """Where the objects are."""

    def __init__(self, boxes: Sequence[Any] | None, masks: Sequence[Any] | None) -> None:
        self.boxes, self.masks = boxes, masks

    def check(self, count: int) -> None:
        """Raises InputError unless there is one for each picture."""
        for what, given in (("boxes", self.boxes), ("masks", self.masks)):
            if given is not None and len(given) != count:
                raise InputError(
                    f"{len(given)} {what} for {count} pictures; give one for each, None where there is none"
                )

    def of(self, k: int, image: pictures.Picture, name: str) -> Array | None:
        """The mask [H, W] of the k-th picture; None where nothing is known. Raises InputError."""
        found: Array | None = None
        size = image.shape[:2]
        if self.masks is not None and k < len(self.masks) and self.masks[k] is not None:
            found = _mask(self.masks[k], size, name)
        if self.boxes is not None and k < len(self.boxes) and self.boxes[k] is not None:
            given = self.boxes[k]
            found = np.asarray(np.zeros(size, bool)) if found is None else found
            for box in given if len(given) and np.ndim(given[0]) else [given]:
                found = np.asarray(found | _boxed(box, size, name))
        return found


def _boxed(box: Any, size: tuple[int, ...], name: str) -> Array:
    try:
        x0, y0, x1, y1 = (float(v) for v in box)
    except (TypeError, ValueError) as error:
        raise InputError(f"the box of {name} is {box!r}; give four numbers, x0, y0, x1, y1") from error
    height, width = size
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise InputError(
            f"the box {x0:g}, {y0:g}, {x1:g}, {y1:g} of {name} does not lie within its {width}×{height} pixels (or is "
            "empty); give x0, y0, x1, y1 in pixels of the picture, from its left and its top"
        )
    mask = np.zeros(size, bool)
    mask[int(np.floor(y0)) : int(np.ceil(y1)), int(np.floor(x0)) : int(np.ceil(x1))] = True
    return mask


def _mask(given: Any, size: tuple[int, ...], name: str) -> Array:
    if isinstance(given, str | os.PathLike):
        given = pictures.read(given)
    array = np.asarray(given)
    found = np.asarray(array.any(axis=-1) if array.ndim == 3 else array != 0)
    if found.shape != tuple(size):
        have, want = (f"{s[1]}×{s[0]}" if len(s) == 2 else f"{list(s)}" for s in (found.shape, tuple(size)))
        raise InputError(f"the mask of {name} is {have}, the picture {want}; give a mask of the picture's size")
    return found
