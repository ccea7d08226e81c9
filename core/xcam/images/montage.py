"""Captions, notes and several images in one. Arrays and strings only: RGB uint8 [H, W, 3] in and out."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

import numpy as np

from xcam.images import opencv
from xcam.images.reading import Image

BACKGROUND = 255
TEXT = (20, 20, 20)
GAP = 8
"""Pixels between tiles."""
SIDE = (160, 480)
"""The smallest and the largest longer side of a tile, in pixels: captions stay readable, and the sheet small."""
ASCII = str.maketrans({"−": "-", "–": "-", "—": "-", "×": "x", "→": "->", "’": "'", "ß": "ss", "ø": "o", "ł": "l"})


def tiled(tiles: Sequence[Image], captions: Sequence[str], columns: int = 0) -> Image:
    """Arrange images in rows on a white sheet, each under its caption.

    All tiles get the size of the largest, scaled to `SIDE`; the aspect ratio of each is kept.

    Args:
        tiles: One or more images.
        captions: One for each tile.
        columns: The number of columns; 0 for a sheet that is about square.

    Returns:
        The sheet, uint8 [H, W, 3].
    """
    cv2 = opencv.load()
    height = max(tile.shape[0] for tile in tiles)
    width = max(tile.shape[1] for tile in tiles)
    factor = min(max(1.0, SIDE[0] / max(height, width)), SIDE[1] / max(height, width))
    height, width = max(1, round(height * factor)), max(1, round(width * factor))
    columns = columns or math.ceil(math.sqrt(len(tiles) * height / width * 1.2))
    columns = max(1, min(columns, len(tiles)))
    line = max(20, round(0.1 * width))
    rows = math.ceil(len(tiles) / columns)
    sheet = np.full((rows * (height + line + GAP) + GAP, columns * (width + GAP) + GAP, 3), BACKGROUND, np.uint8)
    for k, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        top = GAP + (k // columns) * (height + line + GAP)
        left = GAP + (k % columns) * (width + GAP)
        scale = min(height / tile.shape[0], width / tile.shape[1])
        size = (max(1, round(tile.shape[1] * scale)), max(1, round(tile.shape[0] * scale)))
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST if scale > 2 else cv2.INTER_LINEAR
        resized = cv2.resize(tile, size, interpolation=interpolation)
        sheet[top + line : top + line + size[1], left : left + size[0]] = resized
        write_line(sheet, caption, left, top, width, line)
    return sheet


def with_notes(image: Image, notes: Sequence[str]) -> Image:
    """Return the image with its notes in a dark strip below it, in a font size that fits its width."""
    if not notes:
        return image
    cv2 = opencv.load()
    width = image.shape[1]
    text = drawable("; ".join(notes))
    (length, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 1.0, 1)
    scale = min(max(width / 600, 0.5), 0.95 * width / max(length, 1))
    margin = max(4, round(10 * scale))
    strip = np.full((round(height * scale) + 2 * margin, width, 3), 32, np.uint8)
    origin = (round(0.025 * width), len(strip) - margin)
    thickness = max(1, round(1.5 * scale))
    cv2.putText(strip, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), thickness, cv2.LINE_AA)
    return np.vstack([image, strip])


def labelled(image: Image, text: str) -> Image:
    """Return the image with a line of text in white on dark in its upper left corner, as large as fits."""
    cv2 = opencv.load()
    out, text = image.copy(), drawable(text)
    (length, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 1.0, 1)
    line = max(12, round(min(image.shape[:2]) / 14))
    scale = min(0.5 * line / max(height, 1), 0.95 * image.shape[1] / max(length, 1))
    margin = max(2, round(0.25 * line))
    bottom = round(height * scale) + 2 * margin
    out[:bottom, : round(length * scale) + 2 * margin] = 32
    origin = (margin, bottom - margin)
    cv2.putText(
        out, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), max(1, round(scale * 1.4)), cv2.LINE_AA
    )
    return out


def drawable(text: str) -> str:
    """Return the text in the ASCII characters of OpenCV's fonts: accents are removed, other characters become `?`."""
    plain = unicodedata.normalize("NFKD", text.translate(ASCII))
    return "".join(c for c in plain if not unicodedata.combining(c)).encode("ascii", "replace").decode()


def write_line(sheet: Image, text: str, left: int, top: int, width: int, line: int) -> None:
    """Write one line of text into a box of `width` × `line` pixels, as large as fits."""
    cv2 = opencv.load()
    text = drawable(text)
    (length, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 1.0, 1)
    scale = min(0.55 * line / max(height, 1), width / max(length, 1))
    origin = (left, top + round(line / 2 + height * scale / 2))
    cv2.putText(sheet, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, TEXT, max(1, round(scale * 1.4)), cv2.LINE_AA)
