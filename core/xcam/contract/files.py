"""Checking and writing files: the old content or all of the new, never a part."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xcam.errors import InputError


def check_file(path: Path, kind: str = "a picture") -> None:
    """Raise InputError unless there is an ordinary file at `path`: quick, before any model is loaded."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        what = f"{getattr(error, 'strerror', error)}; give another file"
        if isinstance(error, FileNotFoundError):
            what = "no such file; check the path"
        elif isinstance(error, PermissionError):
            what = f"{error.strerror}; check the permissions of its folder"
        raise InputError(f"cannot read {path}: {what}") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{path} is a directory; give {kind} in it")
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is no ordinary file; give {kind}")


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that its name holds the old content or all of the new: beside it, then rename.

    Raises InputError.
    """
    path = Path(os.path.realpath(path))
    try:
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a directory; give a file name in it")
        if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
            raise InputError(f"cannot write {path}: it is write-protected, or no ordinary file; choose another -o")
        temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}")
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
        what = remedy(error, "choose another place")
        raise InputError(f"cannot write {path}: {error.strerror or error}; {what}") from error


def remedy(error: OSError, otherwise: str) -> str:
    """What to do when something cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "free space there, and start the same command again" if full else otherwise


@contextmanager
def whole_or_not(path: Path) -> Iterator[Path]:
    """Write a model so that `path` holds the old content or all of the new.

    Gives a file of the same name in a folder beside `path`. When the block has ended, whatever lies in that folder moves
    to its place: weights first, for a model without them could not be read. Raises InputError.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".xcam-", dir=path.parent) as folder:
            file = Path(folder, path.name)
            yield file
            for part in sorted(Path(folder).iterdir(), key=lambda part: part == file):
                os.replace(part, path.with_name(part.name))
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; give a folder that exists and has room"
        ) from error
