"""Marks on an image: boxes with their labels, and the outline of a region. RGB in, RGB out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xcam.images import opencv
from xcam.images.montage import drawable
from xcam.images.reading import Image, Mask

CHOSEN = (255, 255, 255)
"""The colour of the chosen box and of the outline, on a dark edge: none of the heatmap's colours is white."""
OTHER = (200, 200, 200)
EDGE = (0, 0, 0)
LETTERS = (9.0, 0.022)
"""The height of letters: at least that many pixels, and this share of the image's longer side."""


@dataclass(frozen=True)
class Box:
    """A box to draw."""

    corners: tuple[float, float, float, float]
    """(x0, y0, x1, y1) in pixels."""
    label: str = ""
    chosen: bool = False
    """Whether it is drawn with a thick line and with its label; others are thin."""


def with_boxes(image: Image, boxes: Sequence[Box]) -> Image:
    """Return a copy of the image with boxes: the chosen one last, in a line that is visible on every colour."""
    cv2 = opencv.load()
    out = image.copy()
    height, width = out.shape[:2]
    line = max(1, round(max(height, width) / 300))
    for box in sorted(boxes, key=lambda box: box.chosen):
        x0, y0, x1, y1 = (round(v) for v in box.corners)
        first = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
        last = min(max(x1 - 1, 0), width - 1), min(max(y1 - 1, 0), height - 1)
        if box.chosen:
            cv2.rectangle(out, first, last, EDGE, line + 2, cv2.LINE_8)
        cv2.rectangle(out, first, last, CHOSEN if box.chosen else OTHER, line if box.chosen else 1, cv2.LINE_8)
    for box in boxes:
        if box.chosen and box.label:
            _write_label(out, box)
    return out


def _write_label(out: Image, box: Box) -> None:
    """Write a label on a dark strip above the box, or inside it where it does not fit above."""
    cv2 = opencv.load()
    height, width = out.shape[:2]
    text, font = drawable(box.label), cv2.FONT_HERSHEY_SIMPLEX
    (length, letter), _ = cv2.getTextSize(text, font, 1.0, 1)
    scale = max(LETTERS[0], LETTERS[1] * max(height, width)) / letter
    scale = min(scale, (width - 4) / max(length, 1))
    thickness = max(1, round(1.6 * scale))
    (length, letter), below = cv2.getTextSize(text, font, scale, thickness)
    margin = max(2, round(0.3 * letter))
    strip = letter + below + margin
    x0, y0 = round(box.corners[0]), round(box.corners[1])
    left = min(max(x0, 0), max(width - length - 2 * margin, 0))
    top = y0 - strip if y0 - strip >= 0 else min(max(y0, 0), max(height - strip, 0))
    out[top : top + strip, left : left + length + 2 * margin] = 24
    cv2.putText(
        out, text, (left + margin, top + letter + margin // 2 + 1), font, scale, CHOSEN, thickness, cv2.LINE_AA
    )


def with_outline(image: Image, mask: Mask) -> Image:
    """Return a copy of the image with the outline of a region, bool [H, W], in a line that is visible on every colour."""
    cv2 = opencv.load()
    out = image.copy()
    line = max(1, round(max(image.shape[:2]) / 300))
    lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(out, lines, -1, EDGE, line + 2, cv2.LINE_8)
    cv2.drawContours(out, lines, -1, CHOSEN, line, cv2.LINE_8)
    return out
