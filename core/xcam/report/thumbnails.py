"""Pictures as data: URIs: small, and of the size at which they are looked at."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xcam.explanation.result import Explanation
from xcam.images import opencv, resizing
from xcam.images.overlay import lookup_table
from xcam.images.reading import Image
from xcam.methods import maps

SIDE, SMALLEST = resizing.THUMBNAIL, 192
"""The longer side of an embedded photo, at most; and where a report on many pictures stops shrinking them."""
FULL = 12
"""So many pictures are embedded at full size."""
SMOOTH = 256
"""The longer side of a heatmap, at most: it is a few cells, interpolated."""
QUALITY = 80
HEAT, DIFFERENCE = "jet", "inferno"


@dataclass(frozen=True)
class Embedded:
    """A picture in the page."""

    uri: str
    width: int
    height: int


def side_for(n: int) -> int:
    """The longer side of a photo where there are `n`: what they weigh together grows no further until SMALLEST."""
    return SIDE if n <= FULL else max(SMALLEST, round(SIDE * math.sqrt(FULL / n)))


def photo(image: Image, side: int = SIDE) -> Embedded:
    """A photo of RGB uint8 [H, W, 3], shrunk to `side`, never enlarged."""
    small = resizing.shrunk(image, side)
    return Embedded(_encode(small), small.shape[1], small.shape[0])


def heat(values: npt.NDArray[np.float32], colormap: str = HEAT, side: int = SMOOTH) -> str:
    """A map [H, W] in 0…1 in colours, as a data: URI."""
    height, width = _fit(values.shape[0], values.shape[1], min(side, SMOOTH))
    small = np.nan_to_num(_shrink(values, height, width))
    level = np.rint(np.clip(small, 0, 1) * 255).astype(np.uint8)
    return _encode(lookup_table(colormap)[level, 0])


def heatmap(explanation: Explanation) -> npt.NDArray[np.float32]:
    """What an explanation shows in colours, in 0…1 however it was normalised."""
    values = explanation.heatmap
    return maps.normalize(values[None], "max")[0] if explanation.normalize == "none" else values


def difference(first: Explanation, second: Explanation) -> npt.NDArray[np.float32]:
    """|Δ| of two heatmaps [H, W], at the size of the first."""
    a, b = heatmap(first), heatmap(second)
    if a.shape != b.shape:
        b = maps.resize(b, (a.shape[0], a.shape[1]))
    return np.abs(a - b)


def stops(colormap: str, n: int = 17) -> list[tuple[str, str]]:
    """(offset, colour) of a gradient that shows a colormap."""
    table = lookup_table(colormap)
    places = [round(k * 255 / (n - 1)) for k in range(n)]
    return [(f"{p / 255:.4g}", "#{:02x}{:02x}{:02x}".format(*(int(v) for v in table[p, 0]))) for p in places]


def _fit(height: int, width: int, side: int) -> tuple[int, int]:
    factor = min(1.0, side / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def _shrink(values: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    cv2 = opencv.load()
    if values.shape[:2] == (height, width):
        return values
    return np.asarray(cv2.resize(values, (width, height), interpolation=cv2.INTER_AREA))


def _encode(image: Image) -> str:
    """As JPEG or PNG, whichever is smaller: drawings and flat maps are, without loss, smaller as PNG."""
    cv2 = opencv.load()
    bgr = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR)
    jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY, cv2.IMWRITE_JPEG_OPTIMIZE, 1])[1].tobytes()
    png = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 3])[1].tobytes()
    kind, data = ("png", png) if len(png) <= len(jpeg) else ("jpeg", jpeg)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
