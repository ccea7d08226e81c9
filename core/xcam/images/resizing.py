"""Resizing of images, and of arrays of any number of axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xcam.images import opencv
from xcam.images.reading import Image

THUMBNAIL = 512
"""The longer side, in pixels, of an image that is kept for display."""


def shrunk(image: Image, side: int = THUMBNAIL) -> Image:
    """Return a copy whose longer side has `side` pixels, or the image itself where it is not larger."""
    height, width = image.shape[:2]
    factor = side / max(height, width)
    if factor >= 1:
        return image
    cv2 = opencv.load()
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def resize(image: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return an image at another size: area averaging where it shrinks, bilinear interpolation where it grows.

    Args:
        image: uint8 [height, width, 3].
        size: (H, W) in pixels.

    Returns:
        uint8 [H, W, 3]; the image itself where it has that size.
    """
    cv2 = opencv.load()
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    factor = _common_factor(image.shape[0], image.shape[1], height, width)
    if factor > 2:  # averages over whole pixels first: a fifth of the time for 12 megapixels
        small = (image.shape[1] // factor, image.shape[0] // factor)
        image = np.asarray(cv2.resize(image, small, interpolation=cv2.INTER_AREA))
    shrinks = height * width < image.shape[0] * image.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation))


def _common_factor(rows: int, columns: int, height: int, width: int) -> int:
    """Return the largest integer that divides both sides and leaves at least twice the requested size.

    The second step then keeps the rounding error small. OpenCV rounds averages over 2×2 pixels up, and others to the
    nearest integer.
    """
    most = min(rows // (2 * height), columns // (2 * width))
    return max((k for k in range(1, most + 1) if rows % k == 0 and columns % k == 0), default=1)


def linear(array: npt.NDArray[Any], size: Sequence[int]) -> npt.NDArray[np.float32]:
    """Resize an array of any number of axes by linear interpolation with half-pixel centres, one axis after the other.

    For two axes the result is that of `cv2.INTER_LINEAR`: the outermost values are repeated beyond the border, and no
    average is taken where an axis shrinks.

    Args:
        array: [*space].
        size: The new length of each axis.

    Returns:
        float32 of shape `size`.
    """
    counts = np.shape(array)
    positions = [
        None if count == length else (np.arange(length) + 0.5) * count / length - 0.5
        for count, length in zip(counts, size, strict=True)
    ]
    return sampled(array, positions)


def sampled(array: npt.NDArray[Any], positions: Sequence[npt.NDArray[np.float64] | None]) -> npt.NDArray[np.float32]:
    """Return an array's values at the positions of a grid, by linear interpolation.

    Args:
        array: [*space].
        positions: For each axis the positions, counted in values; None: the axis remains as it is. The outermost values
            are repeated beyond the border.

    Returns:
        float32 with one value for each position of each axis.
    """
    result = np.asarray(array, np.float32)
    for axis, at in enumerate(positions):
        if at is None:
            continue
        count = result.shape[axis]
        position = np.clip(at, 0, count - 1)
        below = np.minimum(position.astype(np.intp), max(count - 2, 0))
        share = (position - below).astype(np.float32).reshape(-1, *[1] * (result.ndim - axis - 1))
        lower, upper = (np.take(result, np.minimum(below + step, count - 1), axis) for step in (0, 1))
        result = lower + (upper - lower) * share
    return result


FILTERS = {"box": 0.5, "bilinear": 1.0, "hamming": 1.0, "bicubic": 2.0, "lanczos": 3.0}
"""The reach of each filter in pixels, on each side."""
BITS = 22
"""The fractional bits of PIL's weights."""
STRIP = 64
"""The number of rows that are filtered at once, which bounds the memory for temporaries."""


def filtered(image: Image, size: tuple[int, int], interpolation: str, rows_first: bool | None = False) -> Image:
    """Return an image at another size, by a filter that widens where the image shrinks, as PIL's `resize` does.

    The image is filtered along one axis, rounded to grey levels, and filtered along the other.

    Args:
        image: uint8 [height, width, 3].
        size: (H, W) in pixels.
        interpolation: `nearest`, or a name of FILTERS.
        rows_first: Whether the height is changed before the width; None: as PIL 13 chooses.

    Returns:
        uint8 [H, W, 3]; the image itself where it has that size.
    """
    height, width = image.shape[:2]
    if interpolation == "nearest":
        rows, columns = (
            np.cumsum([0.5 * count / n, *[count / n] * (n - 1)]).astype(np.intp)  # PIL's rounding
            for n, count in zip(size, (height, width), strict=True)
        )
        return image[rows[:, None], columns]
    if rows_first is None:
        rows_first = size[0] < height and height - size[0] > 2 * (width - size[1])
    for axis in (0, 1) if rows_first else (1, 0):
        if image.shape[axis] != size[axis]:
            image = _filtered_axis(image, axis, *_weights(image.shape[axis], size[axis], interpolation))
    return image


def _filtered_axis(image: Image, axis: int, indices: npt.NDArray[np.intp], weights: npt.NDArray[np.int32]) -> Image:
    """Return an image filtered along an axis.

    Args:
        image: uint8 [height, width, 3].
        axis: 0 or 1.
        indices: [taps, length], the positions that each result is computed from.
        weights: [taps, length].
    """
    result = np.empty((*image.shape[:axis], indices.shape[1], *image.shape[axis + 1 :]), np.uint8)
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    for start in range(0, image.shape[1 - axis], STRIP):
        strip = (slice(None),) * (1 - axis) + (slice(start, start + STRIP),)
        values = image[strip].astype(np.int32)
        total = np.full(result[strip].shape, 1 << (BITS - 1), np.int32)
        term = np.empty_like(total)
        for index, weight in zip(indices, weights, strict=True):
            np.take(values, index, axis, out=term, mode="clip")
            term *= weight.reshape(shape)
            total += term
        result[strip] = np.clip(total >> BITS, 0, 255)
    return result


def _weights(count: int, length: int, interpolation: str) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int32]]:
    """Return the positions and the weights [taps, length] of a filter from `count` pixels to `length`."""
    step = count / length
    spread = max(step, 1.0)
    reach = FILTERS[interpolation] * spread
    centres = (np.arange(length) + 0.5) * step
    indices = np.floor(centres - reach + 0.5).astype(np.intp) + np.arange(math.ceil(2 * reach) + 1)[:, None]
    shares = _kernel((indices + 0.5 - centres) / spread, interpolation)
    shares[(indices < 0) | (indices >= count)] = 0
    shares *= (1 << BITS) / shares.sum(axis=0)
    return np.clip(indices, 0, count - 1), np.trunc(shares + np.copysign(0.5, shares)).astype(np.int32)


def _kernel(x: npt.NDArray[np.float64], interpolation: str) -> npt.NDArray[np.float64]:
    """Return the values of a filter at distances from its centre."""
    d = np.abs(x)
    if interpolation == "box":
        return np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)
    if interpolation == "bilinear":
        return np.maximum(1 - d, 0)
    if interpolation == "hamming":
        return np.where(d < 1, np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x)), 0.0)
    if interpolation == "bicubic":
        return np.where(d < 1, (1.5 * d - 2.5) * d * d + 1, np.where(d < 2, ((2.5 - 0.5 * d) * d - 4) * d + 2, 0.0))
    return np.where(d < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
