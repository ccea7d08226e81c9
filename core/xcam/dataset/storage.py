"""Files that lie here, or anywhere that fsspec reaches: `s3://bucket/set`, `gs://…`, `memory://…`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from xcam.contract import files
from xcam.errors import BackendError, InputError, XcamError, first_line

HERE = re.compile("(?:file|local)://")


def plain(place: str) -> str:
    """`file:///data/set` as the path that it is: files of this machine are written whole, and locked."""
    return HERE.sub("", place, count=1) if HERE.match(place) else place


def remote(place: str) -> bool:
    return "://" in place


def read(place: str, offset: int | None = None, length: int | None = None, kind: str = "a file") -> bytes:
    """A whole file, or `length` bytes of it from `offset` on; `kind`: what a message asks for instead.

    Raises InputError, BackendError where a package is missing.
    """
    try:
        if remote(place):
            fs, path = _filesystem(place)
            return bytes(fs.cat_file(path, offset, None if length is None else (offset or 0) + length))
        files.check_file(Path(place), kind)
        with open(place, "rb") as file:
            file.seek(offset or 0)
            return file.read(-1 if length is None else length)
    except XcamError:
        raise
    except Exception as error:
        raise InputError(
            f"cannot read {place}: {first_line(error)}; check that it is there and may be read"
        ) from error


def write(place: str, data: bytes) -> None:
    """A file appears whole or not at all. Raises InputError."""
    if not remote(place):
        files.write_whole(place, data)
        return
    fs, path = _filesystem(place)
    try:
        fs.makedirs(fs._parent(path), exist_ok=True)
        fs.pipe_file(path, data)  # an object store shows an object when it is whole
    except Exception as error:
        raise InputError(
            f"cannot write {place}: {first_line(error)}; check the place and your rights there"
        ) from error


def make_folder(place: str) -> None:
    """Raises InputError."""
    if remote(place):
        return
    try:
        Path(place).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = files.remedy(error, "choose another -o")
        raise InputError(f"cannot make the folder {place}: {error.strerror}; {remedy}") from error


def within(folder: str) -> Iterator[str]:
    """The files in a folder and in those below it, sorted. Raises InputError."""
    if remote(folder):
        fs, path = _filesystem(folder)
        yield from (fs.unstrip_protocol(found) for found in sorted(_asked(folder, lambda: fs.find(path))))
        return
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while waiting:
        here, above = waiting.pop()
        try:
            status = os.stat(here)
            mark = status.st_dev, status.st_ino
            if mark in above:  # a link to a folder that it lies in
                continue
            with os.scandir(here) as entries:
                names = sorted((entry.name, _is_folder(entry)) for entry in entries)
        except OSError as error:
            raise InputError(
                f"cannot list {here}: {error.strerror}; check your rights there, or name the pictures in a table"
            ) from error
        yield from (os.path.join(here, name) for name, is_folder in names if not is_folder)
        waiting += [(os.path.join(here, name), above | {mark}) for name, is_folder in reversed(names) if is_folder]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: what reads it says so
        return False


def exists(place: str) -> bool:
    if not remote(place):
        return os.path.exists(place)
    fs, path = _filesystem(place)
    return bool(_asked(place, lambda: fs.exists(path)))


def is_folder(place: str) -> bool:
    if not remote(place):
        return os.path.isdir(place)
    fs, path = _filesystem(place)
    return bool(_asked(place, lambda: fs.isdir(path)))


def matching(pattern: str) -> list[str]:
    """The files that a pattern names, sorted."""
    if remote(pattern):
        fs, path = _filesystem(pattern)
        return sorted(fs.unstrip_protocol(found) for found in _asked(pattern, lambda: fs.glob(path)))
    import glob

    return sorted(found for found in glob.glob(pattern, recursive=True) if os.path.isfile(found))


def joined(folder: str, *names: str) -> str:
    return "/".join([folder.rstrip("/"), *names]) if remote(folder) else os.path.join(folder, *names)


def _asked(place: str, question: Callable[[], Any]) -> Any:
    """The answer of a store. Raises InputError where it gives none: no network, no rights."""
    try:
        return question()
    except Exception as error:
        raise InputError(f"cannot list {place}: {first_line(error)}; check the place and your rights") from error


def _filesystem(place: str) -> tuple[Any, str]:
    """Raises BackendError where a package is missing, InputError for a protocol that nobody knows."""
    try:
        import fsspec
    except ImportError as error:
        raise BackendError(f'{place} needs fsspec, not installed here: pip install "xcam-explain[batch]"') from error
    try:
        fs, path = fsspec.core.url_to_fs(place)
    except ImportError as error:
        raise BackendError(
            f"cannot open {place}: {first_line(error)}; install what it names, or copy the files here"
        ) from error
    except ValueError as error:
        raise InputError(f"cannot open {place}: {first_line(error)}; give a path or a known protocol") from error
    return fs, str(path)
