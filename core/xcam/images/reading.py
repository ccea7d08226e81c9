"""Reading and writing pictures: RGB uint8 arrays inside, any Unicode path outside, never half a file on disk."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xcam.contract.files import check_file
from xcam.errors import InputError
from xcam.images import opencv
from xcam.images.opencv import silenced

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

REDUCED = {2: 16, 4: 32, 8: 64}
"""OpenCV's flags IMREAD_REDUCED_GRAYSCALE_2, …: beside a flag that asks for colours they say the size alone."""

PNG_COLOURS = 25
"""Where a PNG says its colour type: 4 and 6 have alpha."""
STRIP = 1 << 16
"""Pixels laid on white at once, so that a large picture takes little more than itself."""


def read(source: str | os.PathLike[str]) -> Image:
    """A picture file → uint8 [H, W, 3] RGB, turned upright by its EXIF orientation.

    Reads what OpenCV reads: JPEG (JFIF), PNG, WebP, BMP, TIFF and more. Grey becomes RGB, 16 bits become 8,
    transparent parts are laid on white. Raises InputError.
    """
    return decode(_content(Path(source)), str(Path(source)))


def mask(source: str | os.PathLike[str]) -> Mask:
    """A mask file → bool [H, W]: where it says that the object is. See `decode_mask`. Raises InputError."""
    return decode_mask(_content(Path(source), "a mask"), str(Path(source)))


def _content(path: Path, kind: str = "a picture") -> bytes:
    check_file(path, kind)
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check its permissions") from error


def decode(data: bytes, name: str, reduced: int = 1) -> Image:
    """The bytes of a picture file, as `read` gives it; `name` is what a message calls it.

    reduced: 2, 4 or 8: a JPEG is decoded at a half, a quarter, an eighth of its size, at a fraction of the cost.
    Raises InputError.
    """
    image = _decode(data, REDUCED.get(reduced, 0))
    if image is None:
        raise _unreadable(name)
    return check(image, name)


def decode_mask(data: bytes, name: str) -> Mask:
    """The bytes of a mask file → bool [H, W]: what `inside` says of its values, in the depth that the file has.

    Upright by the file's own EXIF orientation, as pictures are: a mask without one has to fit the picture as it is seen.
    Files that compression makes inexact (JPEG, lossy WebP) count from half of the range up. Raises InputError.
    """
    cv2 = opencv.load()
    lossy = data.startswith(b"\xff\xd8") or (data[8:12] == b"WEBP" and b"VP8L" not in data)
    raw, kinds, told = None, [], []
    if not data.startswith(b"\x89PNG") or _png_chunks(data) is not None:
        with silenced(cv2), contextlib.suppress(cv2.error):
            raw, kinds, told = cv2.imdecodeWithMetadata(np.frombuffer(data, np.uint8), flags=cv2.IMREAD_UNCHANGED)
    if raw is None:
        raise _unreadable(name)
    found = inside(raw, name, half=lossy)
    exif = [(kind, what) for kind, what in zip(kinds, told, strict=True) if kind == cv2.IMAGE_METADATA_EXIF]
    if not exif:
        return found
    # OpenCV turns no alpha: the mask is put into a file without one, and read again.
    _, turned = cv2.imencodeWithMetadata(".png", found.astype(np.uint8), *map(list, zip(*exif, strict=True)))
    return np.asarray(cv2.imdecode(turned, cv2.IMREAD_GRAYSCALE) != 0)


def inside(values: npt.NDArray[Any], name: str, half: bool = False) -> Mask:
    """The values of a mask, [H, W] or [H, W, channels] → bool [H, W]: where the object is.

    The object is where any colour is not 0 (`half`: is 128 or more). The last of two or four channels is alpha: what is
    transparent is no object; and where all that can be seen is black, alpha alone says it. Raises InputError.
    """
    if values.dtype.kind not in "biuf" or np.isnan(values).any():
        what = "NaN" if values.dtype.kind == "f" else f"{values.dtype} values"
        raise InputError(f"{name} holds {what}; give numbers, 0 where the object is not")
    alpha = values.dtype != bool and values.ndim == 3 and values.shape[2] in (2, 4)
    colours = values[..., :-1] if alpha else values
    bright = np.asarray(colours >= 128 if half else colours != 0)
    found = np.asarray(bright.any(axis=2) if values.ndim == 3 else bright)
    if not alpha:
        return found
    opaque = np.asarray(values[..., -1] != 0)
    seen = opaque & found
    return seen if seen.any() or opaque.all() else opaque


def _unreadable(name: str) -> InputError:
    return InputError(
        f"{name} is not a picture that can be read (empty, cut off, or another kind of file); "
        "give a JPEG, PNG, WebP, BMP or TIFF"
    )


def check(image: object, name: str = "the image") -> Image:
    """An array given as a picture, if it is uint8 [H, W, 3] with places to point at. Raises InputError."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"{name} is {what}; expected a path, or RGB as uint8 [H, W, 3]")
    height, width = image.shape[:2]
    if min(height, width) < 2:
        raise InputError(f"{name} is {width}×{height} pixels: too small to show where; give at least 2×2 pixels")
    return image


def _decode(data: bytes, reduced: int = 0) -> Image | None:
    cv2 = opencv.load()
    chunks = _png_chunks(data) if data.startswith(b"\x89PNG") else ()
    if chunks is None:
        return None  # libpng would print a complaint of its own
    encoded = np.frombuffer(data, np.uint8)
    with silenced(cv2):
        try:
            if _may_have_alpha(data, chunks):
                raw = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
                if raw is not None and raw.ndim == 3 and raw.shape[2] == 4 and not _turned(data):
                    return _on_white(raw)
                del raw  # before the same picture is made again
            image = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB | reduced)
        except cv2.error:
            return None
    return None if image is None else np.asarray(image)


def _may_have_alpha(data: bytes, chunks: Collection[bytes]) -> bool:
    if chunks:
        return data[PNG_COLOURS] in (4, 6) or b"tRNS" in chunks
    return not data.startswith(b"\xff\xd8")


def _turned(data: bytes) -> bool:
    """Whether OpenCV turns the picture upright: it does so to colours alone, and alpha no longer fits them."""
    if not re.search(rb"(?i)exif", data) and not data.startswith((b"II*\0", b"MM\0*")):
        return False
    cv2 = opencv.load()
    encoded = np.frombuffer(data, np.uint8)
    upright, lying = (
        cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB | flag) for flag in (0, cv2.IMREAD_IGNORE_ORIENTATION)
    )
    return not np.array_equal(upright, lying)


def _png_chunks(data: bytes) -> set[bytes] | None:
    """The kinds of chunks in a PNG; None unless every checksum is right, up to the end, and the size can be decoded."""
    kinds: set[bytes] = set()
    place = 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        kind, end = data[place + 4 : place + 8], place + 8 + length
        if end + 4 > len(data) or zlib.crc32(data[place + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            return None
        if place == 8 and kind != b"IHDR":
            return None
        kinds.add(kind)
        if kind == b"IHDR":
            width, height = struct.unpack_from(">II", data, place + 8)
            if not 0 < width * height < 2**30 or max(width, height) > 1_000_000:
                return None
        if kind == b"IEND":
            return kinds
        place = end + 4
    return None


def _on_white(raw: npt.NDArray[Any]) -> Image:
    """Lay `raw`, BGRA of any depth, on white: RGB."""
    top = np.iinfo(raw.dtype).max if np.issubdtype(raw.dtype, np.integer) else 1.0
    image = np.empty((*raw.shape[:2], 3), np.uint8)
    rows = max(1, STRIP // raw.shape[1])
    for start in range(0, len(raw), rows):
        share = (raw[start : start + rows] / top).astype(np.float32)
        alpha = share[..., 3:]
        image[start : start + rows] = np.rint(255 * (alpha * share[..., 2::-1] + (1 - alpha)))
    return image
