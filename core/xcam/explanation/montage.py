"""Several pictures as one, each with a caption: classes, methods or layers side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xcam.errors import InputError
from xcam.explanation.result import Explanation, captioned, drawable
from xcam.images import opencv, reading, resizing

PAPER, INK, GAP = 255, (20, 20, 20), 8
SIDE = (160, 480)
"""A tile's longer side is at least and at most this long: captions must be readable, and the whole not too large."""


def grid(
    explanations: Sequence[Explanation], captions: Sequence[str] | None = None, columns: int = 0, **drawing: Any
) -> reading.Image:
    """The overlays of several explanations in one picture, uint8 [H, W, 3] RGB.

    captions: one for each; default: what tells them apart (class, method, layer, model). columns: 0: as square as can be.
    drawing: the arguments of `Explanation.overlay`. What a reader must know (`notes`) stands in a strip below.
    Raises InputError.
    """
    if not explanations:
        raise InputError("there is nothing to draw; give one explanation or more")
    if not isinstance(columns, int) or columns < 0:
        raise InputError(f"columns is {columns!r}; give a whole number, 0 for as square as can be")
    words = list(captions) if captions is not None else distinct(explanations)
    if len(words) != len(explanations):
        raise InputError(f"{len(words)} captions for {len(explanations)} pictures; give one for each")
    sheet = tiled([_small(e).overlay(**drawing) for e in explanations], words, columns)
    return captioned(sheet, tuple(dict.fromkeys(note for e in explanations for note in e.notes)))


def _small(e: Explanation) -> Explanation:
    """The same over a picture that is no larger than a tile: a dozen of 48 megapixels would fill the memory."""
    height, width = e.image.shape[:2]
    factor = SIDE[1] / max(height, width)
    if factor >= 1:
        return e
    return replace(e, image=resizing.resize(e.image, (max(1, round(height * factor)), max(1, round(width * factor)))))


def distinct(explanations: Sequence[Explanation]) -> list[str]:
    """For each explanation, what tells it from the others."""
    rows = [(_name(e), e.method, e.layer, e.model, e.backend) for e in explanations]
    told = [k for k in range(5) if len({row[k] for row in rows}) > 1] or [0]
    names = [", ".join(row[k] for k in told) for row in rows]
    chances = [float(e.scores[e.index]) if e.index is not None else None for e in explanations]
    if told == [0]:
        return [n if p is None else f"{n} {p:.0%}" for n, p in zip(names, chances, strict=True)]
    return names


def _name(e: Explanation) -> str:
    """The label; the index, where the letters cannot be drawn."""
    lost = drawable(e.label).count("?") > e.label.count("?")
    return f"class {e.index}" if lost and e.index is not None else e.label


def tiled(tiles: Sequence[reading.Image], captions: Sequence[str], columns: int = 0) -> reading.Image:
    """Pictures under their captions, in rows."""
    cv2 = opencv.load()
    height = max(tile.shape[0] for tile in tiles)
    width = max(tile.shape[1] for tile in tiles)
    factor = min(max(1.0, SIDE[0] / max(height, width)), SIDE[1] / max(height, width))
    height, width = max(1, round(height * factor)), max(1, round(width * factor))
    columns = columns or math.ceil(math.sqrt(len(tiles) * height / width * 1.2))
    columns = max(1, min(columns, len(tiles)))
    line = max(20, round(0.1 * width))
    rows = math.ceil(len(tiles) / columns)
    sheet = np.full((rows * (height + line + GAP) + GAP, columns * (width + GAP) + GAP, 3), PAPER, np.uint8)
    for k, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        top = GAP + (k // columns) * (height + line + GAP)
        left = GAP + (k % columns) * (width + GAP)
        inner = min(height / tile.shape[0], width / tile.shape[1])
        size = (max(1, round(tile.shape[1] * inner)), max(1, round(tile.shape[0] * inner)))
        how = cv2.INTER_AREA if inner < 1 else cv2.INTER_NEAREST if inner > 2 else cv2.INTER_LINEAR
        small = cv2.resize(tile, size, interpolation=how)
        sheet[top + line : top + line + size[1], left : left + size[0]] = small
        _write(sheet, caption, left, top, width, line)
    return sheet


def _write(sheet: reading.Image, text: str, left: int, top: int, width: int, line: int) -> None:
    """One line of text, as large as fits."""
    cv2 = opencv.load()
    shown = drawable(text)
    (length, height), _ = cv2.getTextSize(shown, cv2.FONT_HERSHEY_SIMPLEX, 1.0, 1)
    scale = min(0.55 * line / max(height, 1), width / max(length, 1))
    origin = (left, top + round(line / 2 + height * scale / 2))
    cv2.putText(sheet, shown, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, INK, max(1, round(scale * 1.4)), cv2.LINE_AA)
