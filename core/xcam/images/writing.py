"""Writing image files."""

from __future__ import annotations

import os
from pathlib import Path

from xcam.contract.files import write_whole
from xcam.errors import InputError
from xcam.images import opencv
from xcam.images.opencv import silenced
from xcam.images.reading import Image

WRITABLE = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


JPEG_QUALITY = 95


def write(path: str | os.PathLike[str], image: Image) -> None:
    """Write RGB uint8 [H, W, 3] to `path`, in the format that its suffix says. Raises InputError."""
    suffix = Path(path).suffix.lower()
    if suffix not in WRITABLE:
        raise InputError(f"cannot write {path}: no picture format {suffix!r}; use .jpg or .png")
    write_whole(path, encoded(image, suffix, str(path)))


def encoded(image: Image, suffix: str, name: str = "the picture") -> bytes:
    """RGB uint8 [H, W, 3] as a file of the format that the suffix says. Raises InputError."""
    cv2 = opencv.load()
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if suffix in (".jpg", ".jpeg") else []
    with silenced(cv2):
        done, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise InputError(
            f"cannot write {name}: a picture of {image.shape[1]}×{image.shape[0]} does not fit {suffix}; use .png"
        )
    return bytes(data.tobytes())
