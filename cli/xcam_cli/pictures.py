"""The pictures that are named on the command line: files, folders, patterns, and tables that say more of them."""

from __future__ import annotations

import glob
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path


def expanded(words: list[str]) -> list[str]:
    """Files of this machine as they are; folders and patterns as the pictures in them. Raises InputError."""
    from xcam.errors import InputError
    from xcam.images.writing import WRITABLE

    if not words:
        raise InputError("no picture is named; give one or more, a folder, or a pattern")
    found: list[str] = []
    for word in words:
        _local(word)
        if os.path.isdir(word):
            inside = sorted(str(p) for p in Path(word).iterdir() if p.suffix.lower() in WRITABLE)
            if not inside:
                raise InputError(f"there are no pictures in {word}; they end in {', '.join(WRITABLE)}")
            found += inside
        elif not os.path.exists(word) and any(c in word for c in "*?["):
            inside = sorted(glob.glob(word, recursive=True))
            if not inside:
                raise InputError(f"no file is called {word}")
            found += inside
        else:
            found.append(word)
    return list(dict.fromkeys(found))


def _local(word: str) -> None:
    """Raises InputError for a place that only fsspec reaches."""
    from xcam.dataset.storage import remote
    from xcam.errors import InputError

    if remote(word):
        raise InputError(
            f"{word} is not a file of this machine; copy it here (only `xcam batch` reads from elsewhere)"
        )


@dataclass
class Told:
    """What a table says of one picture."""

    boxes: list[list[float]] = field(default_factory=list)
    mask: str | None = None
    label: str | None = None


def told(table: str) -> dict[str, Told]:
    """A CSV or Parquet table: for each picture boxes (columns x0, y0, x1, y1), or a mask (a file), and a class.

    A picture with several rows has several boxes. Paths start at the table's folder. Raises InputError.
    """
    from xcam.dataset.inputs import listing
    from xcam.errors import InputError, XcamWarning

    with warnings.catch_warnings(record=True) as hints:
        warnings.simplefilter("always", XcamWarning)
        rows = listing([table]).to_pylist()
    if not any(row["boxes"] or row["mask"] for row in rows):
        said = f"{table} does not say where the objects are; it needs columns x0, y0, x1, y1, or mask"
        raise InputError("; ".join([said, *(str(hint.message) for hint in hints)]))
    for row in rows:
        _local(row["path"])
        _local(row["mask"] or "")
    return {row["path"]: Told(row["boxes"] or [], row["mask"], row["class"]) for row in rows}
