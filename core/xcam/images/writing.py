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
