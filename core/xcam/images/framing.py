"""Fitting an image to the size of a model's input, and maps, points and boxes on the input back to the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xcam.contract.fit import STRETCH, Fit
from xcam.errors import InputError
from xcam.images import opencv, resizing
from xcam.images.reading import Image, Mask

Array = npt.NDArray[Any]
Pair = tuple[float, float]
MOST = 1 << 28
"""The largest number of pixels of a resized image."""
OPENCV = {
    "nearest": "INTER_NEAREST",
    "bilinear": "INTER_LINEAR",
    "bicubic": "INTER_CUBIC",
    "lanczos": "INTER_LANCZOS4",
}
"""OpenCV's interpolations without antialiasing."""


@dataclass(frozen=True)
class Frame:
    """The location of an image on a model's input: input = image · scale + offset, for each axis.

    Coordinates are in pixels from the top left corner, as (x, y): the centre of the first pixel is (0.5, 0.5).
    """

    image: tuple[int, int]
    """(height, width) of the image."""
    input: tuple[int, int]
    """(height, width) of the input."""
    scale: Pair
    """(y, x)."""
    offset: Pair
    """(y, x), in pixels of the input."""

    @property
    def is_whole(self) -> bool:
        """Whether the image fills the input, and all of it is visible."""
        return self.offset == (0, 0) and all(
            math.isclose(n * s, m) for n, s, m in zip(self.image, self.scale, self.input, strict=True)
        )

    @property
    def seen(self) -> tuple[slice, slice]:
        """The rows and columns of the image that are on the input: those whose pixels have their centres there."""
        rows, columns = (
            slice(
                min(max(math.ceil(-offset / scale - 0.5 - 1e-6), 0), n),
                min(max(math.ceil((length - offset) / scale - 0.5 - 1e-6), 0), n),
            )
            for n, length, scale, offset in zip(self.image, self.input, self.scale, self.offset, strict=True)
        )
        return rows, columns

    @property
    def mask(self) -> Mask:
        """Where the image is on the input, bool [H, W] of the image's size."""
        mask = np.zeros(self.image, bool)
        mask[self.seen] = True
        return mask

    def to_input(self, points: npt.ArrayLike) -> Array:
        """Return points (x, y) of the image, [..., 2], as points on the input."""
        return np.asarray(points, np.float64) * self.scale[::-1] + self.offset[::-1]

    def to_image(self, points: npt.ArrayLike) -> Array:
        """Return points (x, y) on the input, [..., 2], as points of the image, which may be outside it."""
        return np.asarray((np.asarray(points, np.float64) - self.offset[::-1]) / self.scale[::-1])

    def boxes_to_input(self, boxes: npt.ArrayLike) -> Array:
        """Return boxes (x0, y0, x1, y1) of the image, [..., 4], as boxes on the input."""
        corners = np.asarray(boxes, np.float64)
        return self.to_input(corners.reshape(*corners.shape[:-1], 2, 2)).reshape(corners.shape)

    def boxes_to_image(self, boxes: npt.ArrayLike, clip: bool = True) -> Array:
        """Return boxes (x0, y0, x1, y1) on the input, [..., 4], as boxes of the image.

        Args:
            boxes: Corners in pixels of the input.
            clip: Whether the boxes are cut at the image's border.
        """
        corners = np.asarray(boxes, np.float64)
        result = self.to_image(corners.reshape(*corners.shape[:-1], 2, 2))
        if clip:
            result = np.clip(result, 0, self.image[::-1])
        return result.reshape(corners.shape)

    def resized(self, image: Sequence[int]) -> Frame:
        """Return the frame of the same image at another size (height, width)."""
        height, width = image[:2]
        scale = self.scale[0] * self.image[0] / height, self.scale[1] * self.image[1] / width
        return Frame((height, width), self.input, scale, self.offset)

    def map_to_image(self, cam: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
        """Return a map of the whole input as a map of the image: linear interpolation, and 0 outside the input.

        Args:
            cam: [h, w], of any size.

        Returns:
            float32 [H, W], the image's size.
        """
        if self.is_whole:
            cv2 = opencv.load()
            return np.asarray(
                cv2.resize(cam.astype(np.float32), self.image[::-1], interpolation=cv2.INTER_LINEAR), np.float32
            )
        seen = self.seen
        positions = [
            ((np.arange(part.start, part.stop) + 0.5) * scale + offset) * count / length - 0.5
            for part, scale, offset, count, length in zip(
                seen, self.scale, self.offset, cam.shape, self.input, strict=True
            )
        ]
        rows, columns = (
            resizing.sampled(np.eye(count), [at, None]) for count, at in zip(cam.shape, positions, strict=True)
        )
        result = np.zeros(self.image, np.float32)
        result[seen] = rows @ cam.astype(np.float32) @ columns.T
        return result


@dataclass(frozen=True)
class _Steps:
    """The steps from an image to an input: a window of it is cut out, resized, and a window of the result cut out.

    A window (top, left, height, width) may exceed the image: it is filled there.
    """

    first: tuple[int, int, int, int]
    resized: tuple[int, int]
    second: tuple[int, int, int, int]


def frame(image: Sequence[int], size: tuple[int, int], fit: Fit | None) -> Frame:
    """Return the location of an image on the input.

    Args:
        image: The image's shape, (height, width, …).
        size: (H, W) of the input.
        fit: How the image fits; None: it is stretched.
    """
    height, width = image[0], image[1]
    steps = _steps((height, width), size, fit or STRETCH)
    scale = steps.resized[0] / steps.first[2], steps.resized[1] / steps.first[3]
    offset = -steps.first[0] * scale[0] - steps.second[0], -steps.first[1] * scale[1] - steps.second[1]
    return Frame((height, width), size, scale, (offset[0] + 0.0, offset[1] + 0.0))


def fitted(
    image: Image, size: tuple[int, int], fit: Fit | None, mean: Sequence[int] | None = None
) -> npt.NDArray[np.uint8]:
    """Return an image as an input of the model's size.

    Args:
        image: uint8 [height, width, 3].
        size: (H, W) of the input.
        fit: How the image fits; None: it is stretched.
        mean: The colour that replaces the fill `mean`.

    Returns:
        uint8 [H, W, 3].
    """
    fit = fit or STRETCH
    steps = _steps((image.shape[0], image.shape[1]), size, fit)
    colour = fit.fill if isinstance(fit.fill, tuple) else tuple(mean or (0, 0, 0))
    return _window(
        _resampled(_window(image, steps.first, colour), steps.resized, fit),
        steps.second,
        colour,
    )


def fitted_size(image: Sequence[int], fit: Fit) -> tuple[int, int] | None:
    """Return the input's size for a model that takes any, where the fit states it; else None.

    Args:
        image: The image's shape, (height, width, …).
        fit: How the image fits: `resize` of `pad` or `letterbox` states the size of the image on the input.
    """
    if fit.mode not in ("pad", "letterbox") or fit.resize is None:
        return None
    box = fit.resize if isinstance(fit.resize, tuple) else (1, 1)
    height, width = _kept_ratio((image[0], image[1]), box, fit)
    return -(-height // fit.multiple) * fit.multiple, -(-width // fit.multiple) * fit.multiple


def _steps(image: tuple[int, int], size: tuple[int, int], fit: Fit) -> _Steps:
    """Return the steps from an image of a size to an input of a size."""
    whole = (0, 0, *image)
    if fit.like == "keras" and fit.mode != "stretch" and fit.resize is None and fit.crop_pct is None and fit.enlarge:
        return _Steps(_window_of_ratio(image, size, fit), size, (0, 0, *size))
    box = size
    if isinstance(fit.resize, tuple):
        box = fit.resize
    elif fit.crop_pct is not None:
        box = math.floor(size[0] / fit.crop_pct), math.floor(size[1] / fit.crop_pct)
    resized = box if fit.mode == "stretch" else _kept_ratio(image, box, fit, size)
    if resized[0] * resized[1] > MOST:
        raise InputError(
            f"cannot fit an image of {image[1]}×{image[0]} pixels: it would be resized to {resized[1]}×{resized[0]} first; "
            "choose fit letterbox or stretch (--fit)"
        )
    top, left = (
        0 if not fit.centred and n <= length else _start(n, length, fit)
        for n, length in zip(resized, size, strict=True)
    )
    return _Steps(whole, resized, (top, left, *size))


def _kept_ratio(
    image: tuple[int, int], box: tuple[int, int], fit: Fit, limit: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Return the size of a resized image: its shorter side, or the size that covers a box, or fits into it.

    With a border, `resize` never exceeds the limit.
    """
    short, long = min(image), max(image)
    square = box[0] == box[1] and fit.mode == "crop"
    if isinstance(fit.resize, int) or (square and fit.like != "keras"):  # the rule of torchvision's Resize
        side = fit.resize if isinstance(fit.resize, int) else box[0]
        if not fit.enlarge:
            side = min(side, short)
        other = int(side * long / short)
        if fit.longest is not None and other > fit.longest:
            if fit.like == "transformers":
                exact = fit.longest * short / long
                side, other = round(exact), int(exact * long / short)
            else:
                side, other = int(fit.longest * side / other), fit.longest
        side, other = max(side, 1), max(other, 1)
        result = (side, other) if image[0] <= image[1] else (other, side)
        if fit.mode == "crop" or limit is None or (result[0] <= limit[0] and result[1] <= limit[1]):
            return result
        box = limit  # a border is never negative
    ratios = box[0] / image[0], box[1] / image[1]
    ratio = max(ratios) if fit.mode == "crop" else min(ratios)
    if not fit.enlarge:
        ratio = min(ratio, 1.0)
    if fit.like == "transformers":
        return max(int(image[0] * ratio), 1), max(int(image[1] * ratio), 1)
    return max(round(image[0] * ratio), 1), max(round(image[1] * ratio), 1)


def _start(resized: int, length: int, fit: Fit) -> int:
    """Return the first position of the input on the resized image; negative: the width of the border."""
    rest = resized - length
    if rest < 0:
        return -round(-rest / 2 - 0.1) if fit.like == "ultralytics" else -(-rest // 2)
    return rest // 2 if fit.like == "transformers" else round(rest / 2)


def _window_of_ratio(image: tuple[int, int], size: tuple[int, int], fit: Fit) -> tuple[int, int, int, int]:
    """Return the window of the input's ratio that Keras cuts out before it resizes, or pads the image to."""
    height, width = int(image[1] * size[0] / size[1]), int(image[0] * size[1] / size[0])
    if fit.mode == "crop":
        height, width = min(image[0], height), min(image[1], width)
    else:
        height, width = max(image[0], height), max(image[1], width)
        if fit.centred:  # both borders are equal
            height, width = height - (height - image[0]) % 2, width - (width - image[1]) % 2
    height, width = max(height, 1), max(width, 1)
    top, left = (
        int((n - length) / 2) if fit.centred else 0 for n, length in zip(image, (height, width), strict=True)
    )
    return top, left, height, width


def _window(image: Image, window: tuple[int, int, int, int], colour: tuple[int, ...]) -> Image:
    """Return a window (top, left, height, width) of an image, filled where it exceeds the image."""
    top, left, height, width = window
    rows, columns = slice(max(top, 0), max(top + height, 0)), slice(max(left, 0), max(left + width, 0))
    inner = image[rows, columns]
    if inner.shape[:2] == (height, width):
        return inner
    result = np.empty((height, width, 3), np.uint8)
    result[:] = colour
    y, x = max(-top, 0), max(-left, 0)
    result[y : y + inner.shape[0], x : x + inner.shape[1]] = inner
    return result


def _resampled(image: Image, size: tuple[int, int], fit: Fit) -> Image:
    """Return an image at another size, by the interpolation of the fit."""
    if fit.interpolation == "area":
        return resizing.resize(image, size)
    if image.shape[:2] == size:
        return image
    if not fit.antialias:
        cv2 = opencv.load()
        return np.asarray(cv2.resize(image, size[::-1], interpolation=getattr(cv2, OPENCV[str(fit.interpolation)])))
    return resizing.filtered(image, size, str(fit.interpolation), False if fit.like == "transformers" else None)
