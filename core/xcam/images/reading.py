"""Reading of images and masks from files: any Unicode path in, upright RGB uint8 arrays out."""

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
from xcam.images.arrays import is_array_file
from xcam.images.opencv import silenced

Image = npt.NDArray[np.uint8]
"""RGB uint8 [H, W, 3]."""
Mask = npt.NDArray[np.bool_]
"""bool [H, W], true where the object is."""

REDUCED = {2: 16, 4: 32, 8: 64}
"""OpenCV's flags IMREAD_REDUCED_GRAYSCALE_2, …: combined with a flag for colours they change the size only."""

VIDEOS = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm", ".mpg", ".mpeg"),
    *(".wmv", ".flv", ".ts", ".mts", ".3gp", ".ogv"),
)
"""Suffixes of files that are videos: see xcam.images.video."""
PNG_COLOUR_TYPE = 25
"""The offset of a PNG's colour type in bytes; types 4 and 6 have alpha."""
STRIP = 1 << 16
"""The number of pixels that are blended at once, which bounds the memory for temporaries."""


def read(source: str | os.PathLike[str]) -> Image:
    """Read an image file.

    Args:
        source: A file in a format that OpenCV reads: JPEG (JFIF), PNG, WebP, BMP, TIFF and more.

    Returns:
        RGB uint8 [H, W, 3], upright according to the EXIF orientation. Grey becomes RGB, 16 bits become 8, transparent
        pixels are blended with white.

    Raises:
        InputError: The file does not exist, or cannot be read or decoded.
    """
    if is_array_file(source):
        raise InputError(
            f"cannot use {source} as an image: it contains an array, which only `explain` takes; give an image"
        )
    return decode(_content(Path(source)), str(Path(source)))


def mask(source: str | os.PathLike[str]) -> Mask:
    """Read a mask file; see `decode_mask`.

    Returns:
        bool [H, W], true where the object is.

    Raises:
        InputError: The file does not exist, or cannot be read or decoded.
    """
    return decode_mask(_content(Path(source), "a mask"), str(Path(source)))


def _content(path: Path, kind: str = "an image") -> bytes:
    check_file(path, kind)
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check its permissions") from error


def decode(data: bytes, name: str, reduced: int = 1) -> Image:
    """Decode the content of an image file; see `read`.

    Args:
        data: The content.
        name: The image's name in messages.
        reduced: 2, 4 or 8 to decode a JPEG at a half, a quarter or an eighth of its size, in a fraction of the time.

    Returns:
        RGB uint8 [H, W, 3].

    Raises:
        InputError: The content cannot be decoded.
    """
    image = _decode(data, REDUCED.get(reduced, 0))
    if image is None:
        raise _unreadable(name)
    return check(image, name)


def decode_mask(data: bytes, name: str) -> Mask:
    """Decode the content of a mask file; see `inside` for the meaning of its values.

    In files with lossy compression (JPEG, lossy WebP), pixels of at least half of the range belong to the object.

    Args:
        data: The content.
        name: The mask's name in messages.

    Returns:
        bool [H, W], true where the object is; upright according to the EXIF orientation of the mask file itself.

    Raises:
        InputError: The content cannot be decoded, or contains NaN.
    """
    cv2 = opencv.load()
    lossy = data.startswith(b"\xff\xd8") or (data[8:12] == b"WEBP" and b"VP8L" not in data)
    raw, kinds, contents = None, [], []
    if not data.startswith(b"\x89PNG") or _png_chunks(data) is not None:
        with silenced(cv2), contextlib.suppress(cv2.error):
            raw, kinds, contents = cv2.imdecodeWithMetadata(np.frombuffer(data, np.uint8), flags=cv2.IMREAD_UNCHANGED)
    if raw is None:
        raise _unreadable(name)
    result = inside(raw, name, half=lossy)
    exif = [item for item in zip(kinds, contents, strict=True) if item[0] == cv2.IMAGE_METADATA_EXIF]
    if not exif:
        return result
    # OpenCV does not turn images with alpha: the mask is written to a file without alpha, and read again.
    _, turned = cv2.imencodeWithMetadata(".png", result.astype(np.uint8), *map(list, zip(*exif, strict=True)))
    return np.asarray(cv2.imdecode(turned, cv2.IMREAD_GRAYSCALE) != 0)


def inside(values: npt.NDArray[Any], name: str, half: bool = False) -> Mask:
    """Return where the object is, from the values of a mask.

    Pixels belong to the object where any colour is not 0. The last of two or four channels is alpha: transparent pixels
    do not belong to the object; where all visible pixels are black, the opaque pixels are the object.

    Args:
        values: [H, W] or [H, W, channels], of numbers or bool.
        name: The mask's name in messages.
        half: Whether a colour must be at least 128 instead of not 0.

    Returns:
        bool [H, W].

    Raises:
        InputError: The values contain NaN, or are not numbers.
    """
    if values.dtype.kind not in "biuf" or np.isnan(values).any():
        content = "NaN" if values.dtype.kind == "f" else f"{values.dtype} values"
        raise InputError(f"cannot use {name}: it contains {content}; give numbers, 0 outside the object")
    alpha = values.dtype != bool and values.ndim == 3 and values.shape[2] in (2, 4)
    colours = values[..., :-1] if alpha else values
    bright = np.asarray(colours >= 128 if half else colours != 0)
    coloured = np.asarray(bright.any(axis=2) if values.ndim == 3 else bright)
    if not alpha:
        return coloured
    opaque = np.asarray(values[..., -1] != 0)
    visible = opaque & coloured
    return visible if visible.any() or opaque.all() else opaque


def _unreadable(name: str) -> InputError:
    if name.lower().endswith(VIDEOS):
        return InputError(
            f"cannot read {name} as an image: it is a video, which only `xcam explain` takes; give images"
        )
    return InputError(f"cannot read {name}: empty, truncated, or not an image; give a JPEG, PNG, WebP, BMP or TIFF")


def check(image: object, name: str = "the image") -> Image:
    """Return `image` if it is an image of at least 2×2 pixels.

    Args:
        image: Any value.
        name: The image's name in messages.

    Raises:
        InputError: It is not a uint8 array [H, W, 3], or smaller.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        remedy = "give a path, or RGB as uint8 [H, W, 3]"
        if isinstance(image, np.ndarray):
            kind, remedy = f"{image.dtype} {list(image.shape)}", f"{remedy}; only `explain` takes other arrays"
        else:
            kind = type(image).__name__
            remedy += ", or another array of NumPy" if hasattr(image, "__array__") else ""
        raise InputError(f"cannot use {name} as an image: it is {kind}; {remedy}")
    height, width = image.shape[:2]
    if min(height, width) < 2:
        raise InputError(f"cannot explain {name}: {width}×{height} pixels are too few; give at least 2×2 pixels")
    return image


def _decode(data: bytes, reduced: int = 0) -> Image | None:
    """Return the image, or None where it cannot be decoded; `reduced` is a flag of OpenCV."""
    cv2 = opencv.load()
    chunks = _png_chunks(data) if data.startswith(b"\x89PNG") else ()
    if chunks is None:
        return None  # libpng would print an error
    encoded = np.frombuffer(data, np.uint8)
    with silenced(cv2):
        try:
            if _may_have_alpha(data, chunks):
                raw = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
                if raw is not None and raw.ndim == 3 and raw.shape[2] == 4 and not _turned(data):
                    return _on_white(raw)
                del raw  # frees its memory before the image is decoded again
            image = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB | reduced)
        except cv2.error:
            return None
    return None if image is None else np.asarray(image)


def _may_have_alpha(data: bytes, chunks: Collection[bytes]) -> bool:
    """Return whether the file may have alpha; `chunks` are the types of a PNG's chunks."""
    if chunks:
        return data[PNG_COLOUR_TYPE] in (4, 6) or b"tRNS" in chunks
    return not data.startswith(b"\xff\xd8")


def _turned(data: bytes) -> bool:
    """Return whether OpenCV turns the image upright: it turns the colours only, and alpha would not match them."""
    if not re.search(rb"(?i)exif", data) and not data.startswith((b"II*\0", b"MM\0*")):
        return False
    cv2 = opencv.load()
    encoded = np.frombuffer(data, np.uint8)
    upright, lying = (
        cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB | flag) for flag in (0, cv2.IMREAD_IGNORE_ORIENTATION)
    )
    return not np.array_equal(upright, lying)


def _png_chunks(data: bytes) -> set[bytes] | None:
    """Return the types of a PNG's chunks; None where it is truncated, a checksum is wrong, or the image is too large."""
    kinds: set[bytes] = set()
    offset = 8
    while offset + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, offset)
        kind, end = data[offset + 4 : offset + 8], offset + 8 + length
        if end + 4 > len(data) or zlib.crc32(data[offset + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            return None
        if offset == 8 and kind != b"IHDR":
            return None
        kinds.add(kind)
        if kind == b"IHDR":
            width, height = struct.unpack_from(">II", data, offset + 8)
            if not 0 < width * height < 2**30 or max(width, height) > 1_000_000:
                return None
        if kind == b"IEND":
            return kinds
        offset = end + 4
    return None


def _on_white(raw: npt.NDArray[Any]) -> Image:
    """Return `raw`, BGRA [H, W, 4] of any depth, blended with white, as RGB."""
    top = np.iinfo(raw.dtype).max if np.issubdtype(raw.dtype, np.integer) else 1.0
    image = np.empty((*raw.shape[:2], 3), np.uint8)
    rows = max(1, STRIP // raw.shape[1])
    for start in range(0, len(raw), rows):
        share = (raw[start : start + rows] / top).astype(np.float32)
        alpha = share[..., 3:]
        image[start : start + rows] = np.rint(255 * (alpha * share[..., 2::-1] + (1 - alpha)))
    return image
