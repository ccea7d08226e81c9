"""Drawings of arrays: curves of signals, slices of volumes, and images whose channels are not RGB."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xcam.images import opencv, resizing
from xcam.images.montage import BACKGROUND, GAP, TEXT, write_line
from xcam.images.reading import Image

Array = npt.NDArray[Any]

WIDTH = 960
"""The width of a drawn signal, and the largest width of a sheet of slices, in pixels."""
STRIP = (40, 200)
"""The smallest and the largest height of one channel's curve, in pixels."""
CURVES = 480
"""The height of all curves together, in pixels, within the limits of `STRIP`."""
MOST_CURVES = 32
"""Further channels are not drawn."""
TICKS = 5
"""Marked positions below a signal."""
LINE = 22
"""The height of a line of text, in pixels."""
SLICES = 16
"""The largest number of drawn slices of a volume."""
COLUMNS = 4


@dataclass(frozen=True, eq=False)
class View:
    """A drawing of an array, and how a map lies on it."""

    image: Image
    """RGB uint8 [H, W, 3]."""
    mask: npt.NDArray[np.bool_]
    """bool [H, W]: where the colours of a map are drawn, and not curves, captions or gaps."""
    spread: Callable[[Array], npt.NDArray[np.float32]]
    """A map of the array's spatial size → float32 [H, W], arranged as the drawing is."""


def view(values: Array, heatmap: Array | None = None) -> View:
    """Return the drawing of an input.

    Args:
        values: [C, *space] with one, two or three spatial axes.
        heatmap: [*space]. Of a volume, the slice with its largest value is drawn and marked.
    """
    if values.ndim == 2:
        return _signal(values)
    if values.ndim == 4:
        return _volume(values, heatmap)
    image = coloured(values)
    return View(image, np.ones(image.shape[:2], bool), lambda spread: np.asarray(spread, np.float32))


def coloured(values: Array) -> Image:
    """Return values [C, *space] as RGB uint8 [*space, 3].

    One channel is grey. Three are red, green and blue. Of any other number the mean is grey, after each channel is
    scaled to its range. uint8 values of one or three channels are unchanged; others are scaled to 0…255.
    """
    if values.dtype == np.uint8 and len(values) in (1, 3):
        return np.ascontiguousarray(np.moveaxis(np.broadcast_to(values, (3, *values.shape[1:])), 0, -1))
    is_colour = len(values) in (1, 3)
    level = _scaled(values) if is_colour else np.mean([_scaled(channel) for channel in values], axis=0)[None]
    pixels = np.rint(level * 255).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(np.broadcast_to(pixels, (3, *values.shape[1:])), 0, -1))


def _scaled(values: Array) -> npt.NDArray[np.float32]:
    """Return values scaled to 0…1; zero where they are constant."""
    low, high = float(values.min()), float(values.max())
    scale = (high - low) or 1.0
    return np.asarray((values.astype(np.float64) - low) / scale, np.float32)


def _signal(values: Array) -> View:
    """Return the curves of a signal [C, L], one channel below the other, in black on white."""
    cv2 = opencv.load()
    curves, length = values[:MOST_CURVES].astype(np.float64), values.shape[1]
    height = int(np.clip(CURVES // len(curves), *STRIP))
    top = 0 if len(curves) == len(values) else LINE
    bottom = top + height * len(curves)
    image = np.full((bottom + LINE, WIDTH, 3), BACKGROUND, np.uint8)
    if top:
        write_line(image, f"channels 1 to {MOST_CURVES} of {len(values)}", 0, 0, WIDTH, LINE)
    for k, curve in enumerate(curves):
        x, y = _points(curve)
        low, high = float(curve.min()), float(curve.max())
        share = (high - y) / (high - low) if high > low else np.full(len(y), 0.5)
        points = np.stack([x * WIDTH / length, top + height * (k + 0.1 + 0.8 * share)], axis=-1)
        points = np.rint(points * 16).astype(np.int32)  # four fractional bits
        cv2.polylines(image, [points[:, None]], False, (0, 0, 0), 1, cv2.LINE_AA, 4)
    for tick in range(TICKS):
        position = round(tick * (length - 1) / (TICKS - 1))
        left = round((position + 0.5) * WIDTH / length)
        cv2.line(image, (left, bottom), (left, bottom + 3), TEXT, 1)
        half = 4 * len(str(position))
        write_line(image, str(position), min(max(left - half, 0), WIDTH - 2 * half), bottom + 2, 50, LINE - 4)
    mask = image.min(axis=2) > BACKGROUND // 2
    mask[:top] = mask[bottom:] = False

    def spread(heatmap: Array) -> npt.NDArray[np.float32]:
        row = np.zeros(image.shape[:2], np.float32)
        row[:] = _columns(np.asarray(heatmap, np.float32))
        return row

    return View(image, mask, spread)


def _points(curve: Array) -> tuple[Array, Array]:
    """Return the corners of a curve: its samples at k + ½, or, of a long one, the extremes in each column of pixels."""
    if len(curve) <= 4 * WIDTH:
        return np.arange(len(curve)) + 0.5, curve
    starts = np.arange(WIDTH) * len(curve) // WIDTH
    extremes = np.stack([np.minimum.reduceat(curve, starts), np.maximum.reduceat(curve, starts)], axis=-1)
    return np.repeat((np.arange(WIDTH) + 0.5) * len(curve) / WIDTH, 2), extremes.ravel()


def _columns(heatmap: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return a map [L] at the width of the drawing: interpolated, or the largest magnitude in each column of pixels."""
    if len(heatmap) <= WIDTH:
        return resizing.linear(heatmap, (WIDTH,))
    starts = np.arange(WIDTH) * len(heatmap) // WIDTH
    low, high = np.minimum.reduceat(heatmap, starts), np.maximum.reduceat(heatmap, starts)
    return np.where(-low > high, low, high)


def _volume(values: Array, heatmap: Array | None) -> View:
    """Return slices of a volume [C, D, H, W] along its first spatial axis, in rows, each under its number."""
    cv2 = opencv.load()
    depth, height, width = values.shape[1:]
    peak = None if heatmap is None or not heatmap.any() else int(heatmap.reshape(depth, -1).max(axis=1).argmax())
    shown = slices(depth, peak)
    columns = min(COLUMNS, len(shown))
    scale = (WIDTH - GAP) / columns - GAP
    scale = min(scale / width, scale / height)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    rows = -(-len(shown) // columns)
    step = size[0] + LINE + GAP, size[1] + GAP
    shape = rows * step[0] + GAP, columns * step[1] + GAP
    image, mask = np.full((*shape, 3), BACKGROUND, np.uint8), np.zeros(shape, bool)
    corners = [(GAP + k // columns * step[0], GAP + k % columns * step[1]) for k in range(len(shown))]
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST if scale > 2 else cv2.INTER_LINEAR
    pixels = coloured(values)
    for index, (top, left) in zip(shown, corners, strict=True):
        tile = slice(top + LINE, top + LINE + size[0]), slice(left, left + size[1])
        image[tile] = cv2.resize(pixels[index], size[::-1], interpolation=interpolation)
        mask[tile] = True
        caption = f"slice {index}" + (": largest value" if index == peak else "")
        write_line(image, caption, left, top, size[1], LINE)

    def spread(heatmap: Array) -> npt.NDArray[np.float32]:
        sheet = np.zeros(shape, np.float32)
        for index, (top, left) in zip(shown, corners, strict=True):
            tile = slice(top + LINE, top + LINE + size[0]), slice(left, left + size[1])
            sheet[tile] = cv2.resize(
                np.asarray(heatmap[index], np.float32), size[::-1], interpolation=cv2.INTER_LINEAR
            )
        return sheet

    return View(image, mask, spread)


def slices(depth: int, peak: int | None = None) -> list[int]:
    """Return the indices of the drawn slices: all, or `SLICES` at equal distances, the nearest of them moved to `peak`."""
    if depth <= SLICES:
        return list(range(depth))
    shown = [int((k + 0.5) * depth / SLICES) for k in range(SLICES)]
    if peak is not None:
        nearest = min(range(SLICES), key=lambda k: abs(shown[k] - peak))
        shown[nearest] = peak
    return shown
