"""Writing image files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from xcam.contract.files import write_whole
from xcam.errors import InputError
from xcam.images import opencv
from xcam.images.arrays import SUFFIXES
from xcam.images.opencv import silenced
from xcam.images.reading import VIDEOS, Image

WRITABLE = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
JPEG_QUALITY = 95
OVERLAY = re.compile(r"(.+)\.cam(\.[^./]+)?\.(jpg|mp4|m4v|mov|mkv|avi|webm|gif|webp)", re.DOTALL)
"""The name that an overlay gets where none is given: a.cam.jpg, a.cam.CLASS.jpg; a.cam.mp4 for a video."""
BATCH_OVERLAY = re.compile(r"(?:^|/)overlays/\d{8,}-([^/]+)$")
"""The name, without .cam.jpg, of an overlay of `xcam batch`: overlays/00000000-a.cam.jpg."""


def write(path: str | os.PathLike[str], image: Image) -> None:
    """Write an image file. The file is complete, or not written at all.

    Args:
        path: The file; its suffix, one of WRITABLE, determines the format.
        image: RGB uint8 [H, W, 3].

    Raises:
        InputError: The format is unknown or too small for the image, or the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in WRITABLE:
        raise InputError(f"cannot write {path}: unknown image format {suffix!r}; use .jpg or .png")
    write_whole(path, encoded(image, suffix, str(path)))


def overlays(paths: Iterable[str]) -> list[str]:
    """Return those paths that are overlays of others: `a.cam.jpg` of `a.png`. An overlay without its image is an image."""
    names = list(paths)
    stems = {
        os.path.splitext(name)[0] for name in names if name.lower().endswith((*WRITABLE, *SUFFIXES, *VIDEOS, ".gif"))
    }
    last = {os.path.basename(stem) for stem in stems}

    def is_overlay(name: str) -> bool:
        if not (match := OVERLAY.fullmatch(name)):
            return False
        in_batch = BATCH_OVERLAY.search(match[1])
        return match[1] in stems or (in_batch is not None and in_batch[1] in last)

    return [name for name in names if is_overlay(name)]


def left_out(names: list[str]) -> str:
    """Return the message about overlays of earlier runs that are not explained."""
    count = "1 overlay" if len(names) == 1 else f"{len(names)} overlays"
    listed = ", ".join(os.path.basename(name) for name in names[:3]) + (", …" if len(names) > 3 else "")
    return f"left out {count} of earlier runs ({listed}); name an overlay alone to explain it"


def encoded(image: Image, suffix: str, name: str = "the image") -> bytes:
    """Return the content of an image file.

    Args:
        image: RGB uint8 [H, W, 3].
        suffix: One of WRITABLE.
        name: The image's name in messages.

    Returns:
        The encoded image.

    Raises:
        InputError: The format cannot store an image of this size.
    """
    cv2 = opencv.load()
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if suffix in (".jpg", ".jpeg") else []
    with silenced(cv2):
        success, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not success:
        raise InputError(
            f"cannot write {name}: {image.shape[1]}×{image.shape[0]} pixels are too many for {suffix}; use .png"
        )
    return bytes(data.tobytes())
