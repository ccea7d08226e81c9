"""Images as data: URIs, small, and of the size at which they are shown."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xcam.images import opencv, resizing
from xcam.images.overlay import lookup_table
from xcam.images.reading import Image

SIDE = resizing.THUMBNAIL
"""The largest longer side of an embedded image, in pixels."""
SMALLEST_SIDE = 192
"""The smallest longer side to which many images are reduced."""
FULL = 12
"""The number of images up to which each is embedded at `SIDE`."""
HEATMAP_SIDE = 256
"""The largest longer side of a heatmap, which is interpolated from a few cells."""
TINY = 96
"""Images with a smaller longer side are enlarged without interpolation, which would blur them beyond recognition."""
QUALITY = 80
"""JPEG quality."""
HEAT, DIFFERENCE = "jet", "inferno"
"""The colormaps of heatmaps and of their differences."""


@dataclass(frozen=True)
class Embedded:
    """An image in the page."""

    uri: str
    width: int
    height: int

    @property
    def is_tiny(self) -> bool:
        """Whether the image is enlarged without interpolation."""
        return max(self.width, self.height) < TINY


def side_for(n: int) -> int:
    """Return the longer side for `n` images: their total size stays bounded down to `SMALLEST_SIDE`."""
    return SIDE if n <= FULL else max(SMALLEST_SIDE, round(SIDE * math.sqrt(FULL / n)))


def embed(image: Image, side: int = SIDE) -> Embedded:
    """Embed RGB uint8 [H, W, 3], shrunk to `side`, never enlarged."""
    small = resizing.shrunk(image, side)
    return Embedded(_encode(small), small.shape[1], small.shape[0])


def heat(values: npt.NDArray[np.float32], colormap: str = HEAT, side: int = HEATMAP_SIDE) -> str:
    """Return the data: URI of a map [H, W] in 0…1, in colours; transparent where it is NaN."""
    height, width = _fit(values.shape[0], values.shape[1], min(side, HEATMAP_SIDE))
    unseen = np.isnan(values)
    small = _shrink(np.where(unseen, np.float32(0), values), height, width)
    level = np.rint(np.clip(small, 0, 1) * 255).astype(np.uint8)
    colours = lookup_table(colormap)[level, 0]
    if not unseen.any():
        return _encode(colours)
    cv2 = opencv.load()
    opacity = 255 - cv2.resize(unseen.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_NEAREST)
    encoded = cv2.imencode(".png", np.dstack([colours[..., ::-1], opacity]), [cv2.IMWRITE_PNG_COMPRESSION, 3])[1]
    return f"data:image/png;base64,{base64.b64encode(encoded.tobytes()).decode()}"


def stops(colormap: str, n: int = 17) -> list[tuple[str, str]]:
    """Return (offset, colour) for each stop of an SVG gradient that shows a colormap."""
    table = lookup_table(colormap)
    levels = [round(k * 255 / (n - 1)) for k in range(n)]
    return [(f"{p / 255:.4g}", "#{:02x}{:02x}{:02x}".format(*(int(v) for v in table[p, 0]))) for p in levels]


def _fit(height: int, width: int, side: int) -> tuple[int, int]:
    factor = min(1.0, side / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def _shrink(values: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    cv2 = opencv.load()
    if values.shape[:2] == (height, width):
        return values
    return np.asarray(cv2.resize(values, (width, height), interpolation=cv2.INTER_AREA))


def _encode(image: Image) -> str:
    """Encode as JPEG or PNG, whichever is smaller: PNG, which is lossless, for drawings and flat maps."""
    cv2 = opencv.load()
    bgr = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR)
    jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY, cv2.IMWRITE_JPEG_OPTIMIZE, 1])[1].tobytes()
    png = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 3])[1].tobytes()
    kind, data = ("png", png) if len(png) <= len(jpeg) else ("jpeg", jpeg)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
