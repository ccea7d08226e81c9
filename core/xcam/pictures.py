"""Reading and writing pictures: RGB uint8 arrays inside, any Unicode path outside, never half a file on disk."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xcam import opencv
from xcam.errors import InputError

Picture = npt.NDArray[np.uint8]

WRITABLE = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
JPEG_QUALITY = 95


def read(source: str | os.PathLike[str]) -> Picture:
    """A picture file → uint8 [H, W, 3] RGB, turned upright by its EXIF orientation.

    Reads what OpenCV reads: JPEG (JFIF), PNG, WebP, BMP, TIFF and more. Grey becomes RGB, 16 bits become 8,
    transparent parts are laid on white. Raises InputError.
    """
    path = Path(source)
    try:
        data = path.read_bytes()
    except IsADirectoryError as error:
        raise InputError(f"{path} is a directory; give a picture in it") from error
    except OSError as error:
        what = "no such file; check the path" if isinstance(error, FileNotFoundError) else error.strerror
        raise InputError(f"cannot read {path}: {what}") from error
    except ValueError as error:
        raise InputError(f"{str(path)!r} is no file name: {error}") from error
    image = _decode(data)
    if image is None:
        raise InputError(
            f"{path} is not a picture that can be read (empty, cut off, or another kind of file); "
            "give a JPEG, PNG, WebP, BMP or TIFF"
        )
    return check(image, str(path))


def check(image: object, name: str = "the image") -> Picture:
    """An array given as a picture, if it is uint8 [H, W, 3] with places to point at. Raises InputError."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"{name} is {what}; expected a path, or RGB as uint8 [H, W, 3]")
    height, width = image.shape[:2]
    if min(height, width) < 2:
        raise InputError(f"{name} is {width}×{height} pixels: too small to show where; give at least 2×2 pixels")
    return image


def _decode(data: bytes) -> Picture | None:
    cv2 = opencv.load()
    if data.startswith(b"\x89PNG") and b"IEND" not in data[-4096:]:
        return None  # libpng would print its own complaint
    encoded = np.frombuffer(data, np.uint8)
    with _silent(cv2):
        try:
            if _may_have_alpha(data):
                raw = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
                if raw is not None and raw.ndim == 3 and raw.shape[2] == 4:
                    image = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
                    lying = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
                    # Only colours are turned upright: where that moved them, alpha no longer fits, and is left out.
                    return _on_white(raw, image) if np.array_equal(image, lying) else image
            image = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
        except cv2.error:
            return None
    return None if image is None else np.asarray(image)


def _may_have_alpha(data: bytes) -> bool:
    return not data.startswith(b"\xff\xd8")


def _on_white(raw: npt.NDArray[Any], rgb: Picture) -> Picture:
    """Lay `raw` (BGRA, 8 or 16 bits) on white; `rgb` is the same picture without its alpha."""
    top = np.iinfo(raw.dtype).max if np.issubdtype(raw.dtype, np.integer) else 1.0
    alpha = (raw[..., 3:] / top).astype(np.float32)
    return np.rint(alpha * rgb + (1 - alpha) * 255).astype(np.uint8)


@contextlib.contextmanager
def _silent(cv2: Any) -> Iterator[None]:
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


def write(path: str | os.PathLike[str], image: Picture) -> None:
    """Write RGB uint8 [H, W, 3] to `path`, in the format that its suffix says. Raises InputError."""
    cv2 = opencv.load()
    suffix = Path(path).suffix.lower()
    if suffix not in WRITABLE:
        raise InputError(f"cannot write {path}: no picture format {suffix!r}; use .jpg or .png")
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if suffix in (".jpg", ".jpeg") else []
    done, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise InputError(
            f"cannot write {path}: a picture of {image.shape[1]}×{image.shape[0]} does not fit {suffix}; use .png"
        )
    write_whole(path, data.tobytes())


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that its name holds the old content or all of the new: beside it, then rename.

    Raises InputError.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a directory; give a file name in it")
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}")
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(data)
            if path.exists():
                shutil.copymode(path, temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except FileNotFoundError as error:
        raise InputError(
            f"cannot write {path}: there is no folder {path.parent}; make it first, or choose another -o"
        ) from error
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
