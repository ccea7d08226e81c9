"""Reading and writing of files: a path has its old content or all of the new content, never a part of it."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from xcam.errors import InputError

PAUSES = (0.01, 0.05, 0.2, 0.5) if os.name == "nt" else ()
"""Seconds between attempts to replace a file: on Windows virus scanners and indexers hold files open for a moment."""


def check_file(path: Path, kind: str = "an image") -> None:
    """Check that a path is a regular file, before any model is loaded.

    Args:
        path: The file.
        kind: The expected content, for messages.

    Raises:
        InputError: The file does not exist, is not accessible, or is not a regular file.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        reason = f"{getattr(error, 'strerror', error)}; give another file"
        if isinstance(error, FileNotFoundError):
            reason = "no such file; check the path"
        elif isinstance(error, PermissionError):
            reason = f"{error.strerror}; check the permissions of its folder"
        raise InputError(f"cannot read {path}: {reason}") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"cannot read {path}: it is a directory; give {kind} in it")
    if not stat.S_ISREG(mode):
        raise InputError(f"cannot read {path}: it is not a regular file; give {kind}")


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file under a temporary name in the same folder, then rename it.

    Args:
        path: The file. Its permissions are kept where it exists; a symbolic link is followed.
        data: The content.

    Raises:
        InputError: The file cannot be written; the old content is unchanged.
    """
    path = Path(os.path.realpath(path))
    try:
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a directory; give a file name in it")
        if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
            raise InputError(
                f"cannot write {path}: it is write-protected, or not a regular file; choose another path"
            )
        temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}")
        try:
            with open(temporary, "xb") as file:
                file.write(data)
            if path.exists():
                with contextlib.suppress(OSError):  # some file systems have no permissions
                    shutil.copymode(path, temporary)
            _replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except FileNotFoundError as error:
        raise InputError(
            f"cannot write {path}: the folder {path.parent} does not exist; create it first, or choose another path"
        ) from error
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; {remedy(error, 'choose another path')}"
        ) from error


def remedy(error: OSError, otherwise: str) -> str:
    """Return the remedy for a failed write: to free space where the disk is full, else `otherwise`."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "free space there, and start the same command again" if full else otherwise


@contextlib.contextmanager
def whole_or_not(path: Path) -> Iterator[Path]:
    """Write a model, which may consist of several files, completely or not at all.

    Args:
        path: The model's file.

    Yields:
        A file of the same name in a temporary folder next to it. After the `with` block all files in that folder are
        moved to the folder of `path`, the model last: it cannot be read without its weights.

    Raises:
        InputError: The files cannot be written.
    """
    try:
        # On Windows a file that is still open cannot be deleted; the result is complete nevertheless.
        with tempfile.TemporaryDirectory(prefix=".xcam-", dir=path.parent, ignore_cleanup_errors=True) as folder:
            file = Path(folder, path.name)
            yield file
            for part in sorted(Path(folder).iterdir(), key=lambda part: part == file):
                _replace(part, path.with_name(part.name))
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; give an existing folder with enough free space"
        ) from error


def _replace(source: Path, target: Path) -> None:
    """Rename a file within a folder; an existing target is replaced."""
    for pause in PAUSES:
        try:
            os.replace(source, target)
        except PermissionError:
            time.sleep(pause)
        else:
            return
    os.replace(source, target)
