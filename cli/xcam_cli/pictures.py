"""The pictures that are named on the command line: files, folders, patterns, and tables that say more of them."""

from __future__ import annotations

import csv
import glob
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CORNERS = ("x0", "y0", "x1", "y1")
PATHS = ("path", "image")
"""What the column with the pictures is called."""


def expanded(words: list[str]) -> list[str]:
    """Files as they are; folders and patterns as the pictures in them. Raises InputError."""
    from xcam.errors import InputError
    from xcam.pictures import WRITABLE

    if not words:
        raise InputError("no picture is named; give one or more, a folder, or a pattern")
    found: list[str] = []
    for word in words:
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


@dataclass
class Told:
    """What a table says of one picture."""

    boxes: list[tuple[float, ...]] = field(default_factory=list)
    mask: str | None = None
    label: str | None = None


def told(table: str) -> dict[str, Told]:
    """A CSV file: for each picture boxes (columns x0, y0, x1, y1), or a mask (a file), and a class.

    A picture with several rows has several boxes. Paths start at the table's folder. Raises InputError.
    """
    from xcam.errors import InputError

    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            names = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = names
            rows: list[dict[str, Any]] = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {table}: {error}; give a CSV file") from error
    path = next((name for name in PATHS if name in names), None)
    if path is None:
        raise InputError(f"{table} has no column 'path'; its columns: {', '.join(names) or 'none'}")
    corners = all(name in names for name in CORNERS)
    if not corners and "mask" not in names:
        raise InputError(
            f"{table} does not say where the objects are; it needs columns x0, y0, x1, y1, or mask, and has "
            f"{', '.join(names)}"
        )
    folder = Path(table).parent
    found: dict[str, Told] = {}
    for number, row in enumerate(rows, 2):
        if not row[path]:
            raise InputError(f"line {number} of {table} names no picture; fill in the column {path!r}")
        one = found.setdefault(str(folder / row[path].strip()), Told())
        given = [(row[name] or "").strip() for name in CORNERS] if corners else [""]
        if any(given):
            try:
                one.boxes.append(tuple(float(value) for value in given))
            except ValueError as error:
                raise InputError(
                    f"the box in line {number} of {table} is {', '.join(given)}; give four numbers"
                ) from error
        if (row.get("mask") or "").strip():
            one.mask = str(folder / row["mask"].strip())
        if (row.get("class") or "").strip():
            label = row["class"].strip()
            if one.label not in (None, label):
                raise InputError(f"{table} gives {row[path]} two classes, {one.label} and {label}; give one")
            one.label = label
    if not found:
        raise InputError(f"{table} has no rows; give one for each picture")
    return found
