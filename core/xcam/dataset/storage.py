"""Files on this machine, or anywhere that fsspec reaches: `s3://bucket/set`, `gs://…`, `memory://…`."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from xcam.contract import files
from xcam.errors import BackendError, InputError, XcamError, first_line

# On Windows, the URL of C:\data is file:///C:/data.
LOCAL_URL = re.compile("(?:file|local)://" + ("(?:/(?=[A-Za-z]:))?" if os.name == "nt" else ""))


def local_path(path: str) -> str:
    """Return `file:///data/set` as a path: only local files are written atomically and locked."""
    return LOCAL_URL.sub("", path, count=1) if LOCAL_URL.match(path) else path


def is_remote(path: str) -> bool:
    """Return whether a path is a URL that fsspec has to open."""
    return "://" in path


def base_name(path: str) -> str:
    """Return the last part of a path or URL."""
    return path.rpartition("/")[2] if is_remote(path) else os.path.basename(path)


def join(folder: str, *names: str) -> str:
    """Join a folder and names, by `/` in URLs."""
    return "/".join([folder.rstrip("/"), *names]) if is_remote(folder) else os.path.join(folder, *names)


def read(path: str, offset: int | None = None, length: int | None = None, kind: str = "a file") -> bytes:
    """Return the content of a file.

    Args:
        path: A path or URL.
        offset: The first byte to read.
        length: The number of bytes to read; all by default.
        kind: The kind of file that a message asks for instead.

    Raises:
        InputError: The file cannot be read.
        BackendError: A package that fsspec needs is missing.
    """
    try:
        if is_remote(path):
            fs, inner = _filesystem(path)
            return bytes(fs.cat_file(inner, offset, None if length is None else (offset or 0) + length))
        files.check_file(Path(path), kind)
        with open(path, "rb") as file:
            file.seek(offset or 0)
            return file.read(-1 if length is None else length)
    except XcamError:
        raise
    except Exception as error:
        raise InputError(f"cannot read {path}: {first_line(error)}; check that it exists and is readable") from error


def write(path: str, data: bytes) -> None:
    """Write a file, which appears whole or not at all.

    Raises:
        InputError: The file cannot be written.
    """
    if not is_remote(path):
        files.write_whole(path, data)
        return
    fs, inner = _filesystem(path)
    try:
        fs.makedirs(fs._parent(inner), exist_ok=True)
        fs.pipe_file(inner, data)  # an object store shows an object only when it is whole
    except Exception as error:
        raise InputError(f"cannot write {path}: {first_line(error)}; check the path and your permissions") from error


def make_folder(path: str) -> None:
    """Create a folder and its parents; nothing for a URL.

    Raises:
        InputError: The folder cannot be created.
    """
    if is_remote(path):
        return
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = files.remedy(error, "choose another -o")
        raise InputError(f"cannot create the folder {path}: {error.strerror}; {remedy}") from error


def walk(folder: str) -> Iterator[str]:
    """Yield the files in a folder and its subfolders, sorted.

    Raises:
        InputError: A folder cannot be listed.
    """
    if is_remote(folder):
        fs, inner = _filesystem(folder)
        yield from (fs.unstrip_protocol(name) for name in sorted(_list(folder, lambda: fs.find(inner))))
        return
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while pending:
        current, parents = pending.pop()
        try:
            status = os.stat(current)
            identity = status.st_dev, status.st_ino
            if identity in parents:  # a link to one of its own parents
                continue
            with os.scandir(current) as entries:
                names = sorted((entry.name, _is_folder(entry)) for entry in entries)
        except OSError as error:
            raise InputError(
                f"cannot list {current}: {error.strerror}; check your permissions, or list the images in a table"
            ) from error
        yield from (os.path.join(current, name) for name, is_folder in names if not is_folder)
        pending += [
            (os.path.join(current, name), parents | {identity}) for name, is_folder in reversed(names) if is_folder
        ]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: reading it reports the error
        return False


def exists(path: str) -> bool:
    """Return whether a file or folder exists. Raises InputError if the store does not answer."""
    if not is_remote(path):
        return os.path.exists(path)
    fs, inner = _filesystem(path)
    return bool(_list(path, lambda: fs.exists(inner)))


def is_folder(path: str) -> bool:
    """Return whether a path is a folder. Raises InputError if the store does not answer."""
    if not is_remote(path):
        return os.path.isdir(path)
    fs, inner = _filesystem(path)
    return bool(_list(path, lambda: fs.isdir(inner)))


def matches(pattern: str) -> list[str]:
    """Return the files that match a pattern, sorted. Raises InputError if the store does not answer."""
    if is_remote(pattern):
        fs, inner = _filesystem(pattern)
        return sorted(fs.unstrip_protocol(name) for name in _list(pattern, lambda: fs.glob(inner)))
    return sorted(name for name in glob.glob(pattern, recursive=True) if os.path.isfile(name))


def _list(path: str, request: Callable[[], Any]) -> Any:
    try:
        return request()
    except Exception as error:
        raise InputError(f"cannot list {path}: {first_line(error)}; check the path and your permissions") from error


def _filesystem(path: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path in it."""
    try:
        import fsspec
    except ImportError as error:
        raise BackendError(
            f'{path} needs fsspec, which is not installed; run pip install "xcam-explain[batch]"'
        ) from error
    try:
        fs, inner = fsspec.core.url_to_fs(path)
    except ImportError as error:
        raise BackendError(
            f"cannot open {path}: {first_line(error)}; install the package it names, or copy the files to this machine"
        ) from error
    except ValueError as error:
        raise InputError(f"cannot open {path}: {first_line(error)}; give a path or a known protocol") from error
    return fs, str(inner)
