"""Reading of arrays from files: .npy, and .npz with the array's name after a colon."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xcam.contract.files import check_file
from xcam.errors import InputError, nearest

SUFFIXES = (".npy", ".npz")


def is_array_file(source: object) -> bool:
    """Return whether a source is the path of an array: `x.npy`, `x.npz` or `x.npz:name`."""
    return isinstance(source, str | os.PathLike) and split(source)[0].suffix.lower() in SUFFIXES


def split(source: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """Return the file, and the name of the array in it: `x.npz:name` is (x.npz, name), any other path (path, None)."""
    text = os.fspath(source)
    match = re.fullmatch(r"(?i)(.*\.npz):([^/\\]+)", text)
    return (Path(match[1]), match[2]) if match and not os.path.exists(text) else (Path(text), None)


def read(source: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """Read an array.

    Args:
        source: A .npy file, or a .npz file of one array, or of several with the name of one after a colon.

    Raises:
        InputError: The file does not exist, is damaged, contains Python objects, or its array is not clear.
    """
    path, name = split(source)
    check_file(path, "an array")
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.lib.npyio.NpzFile):
                content = content[_chosen(path, name, content.files)]
            return np.asarray(content)
    except InputError:
        raise
    except (
        ValueError,
        OSError,
        EOFError,
        KeyError,
        MemoryError,
        OverflowError,
        SyntaxError,
        zipfile.BadZipFile,
    ) as error:
        text = " ".join(str(error).split())
        if "pickle" in text or "Object arrays" in text:
            reason = "it contains Python objects, which may run code, or is not an array; save numbers with np.save"
        else:
            reason = f"{text or type(error).__name__}; write it with np.save or np.savez"
        raise InputError(f"cannot read {path}: {reason}") from error


def _chosen(path: Path, name: str | None, names: list[str]) -> str:
    """Return the name of the array to read. Raises InputError."""
    if name is not None and name not in names:
        raise InputError(f"{path} has no array {name!r}; {nearest(name, names)}")
    if name is None and len(names) != 1:
        listed = ", ".join(names) or "none"
        raise InputError(
            f"{path} has {len(names)} arrays ({listed}); give one by its name: {path}:{next(iter(names), 'NAME')}"
        )
    return name if name is not None else names[0]
