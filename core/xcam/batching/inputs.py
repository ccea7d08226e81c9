"""What is to be explained: folders, patterns, tables and tar shards become one listing, an Arrow table with a row for each picture.

Columns: path (what a row of the output is called), file, offset, length (where the bytes are: a shard holds many
pictures), class, boxes ([x0, y0, x1, y1] in the picture's pixels, x1 and y1 not included), mask (a file).
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from xcam.batching import storage
from xcam.errors import BackendError, InputError, first_line
from xcam.pictures import WRITABLE

TABLES, SHARDS = (".csv", ".parquet"), (".tar",)
CORNERS = ("x0", "y0", "x1", "y1")
CLASS, MASK, PATHS = "class", "mask", ("path", "image")
BLOCK = 10_000
"""Rows of the listing that become an Arrow batch at once: a list of a million dicts would not fit."""


def arrow() -> Any:
    """pyarrow. Raises BackendError where it is not installed."""
    try:
        import pyarrow
    except ImportError as error:
        raise BackendError('tables need pyarrow, not installed here: pip install "xcam-explain[batch]"') from error
    return pyarrow


def schema() -> Any:
    pa = arrow()
    text, whole = pa.string(), pa.int64()
    boxes = pa.list_(pa.list_(pa.float64()))
    fields = {"path": text, "file": text, "offset": whole, "length": whole, CLASS: text, "boxes": boxes, MASK: text}
    return pa.schema(list(fields.items()))


def listing(words: Sequence[str]) -> Any:
    """The pictures that `words` name, in their order. Raises InputError, BackendError."""
    pa = arrow()
    if not words:
        raise InputError("no picture is named; give a folder, a pattern, a table (.csv, .parquet) or shards (.tar)")
    batches = []
    block: list[dict[str, Any]] = []
    for word in words:
        for row in _rows(str(word)):
            block.append(row)
            if len(block) == BLOCK:
                batches.append(pa.RecordBatch.from_pylist(block, schema()))
                block = []
    if block:
        batches.append(pa.RecordBatch.from_pylist(block, schema()))
    found = pa.Table.from_batches(batches, schema())
    if not len(found):
        raise InputError(f"there is no picture in {', '.join(words)}; pictures end in {', '.join(WRITABLE)}")
    return found.combine_chunks()


def _rows(word: str) -> Iterator[dict[str, Any]]:
    if not storage.exists(word) and any(c in word for c in "*?["):
        names = storage.matching(word)
        if not names:
            raise InputError(f"no file is called {word}")
        for name in names:
            yield from _file(name)
    elif storage.is_folder(word):
        for name in storage.within(word):
            if _ends(name, WRITABLE) or _ends(name, SHARDS):
                yield from _file(name)
    elif not storage.exists(word):
        raise InputError(f"cannot read {word}: no such file or folder; check the path")
    else:
        yield from _file(word)


def _file(name: str) -> Iterator[dict[str, Any]]:
    if _ends(name, TABLES):
        yield from _table(name)
    elif _ends(name, SHARDS):
        yield from _shard(name)
    else:
        yield {"path": name, "file": name}


def _ends(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(suffixes)


def _shard(name: str) -> Iterator[dict[str, Any]]:
    """The pictures of a WebDataset shard: files of one key belong together, and `.cls` holds the class.

    Only the headers are read, and where each picture's bytes are is noted. Raises InputError.
    """
    try:
        with _opened(name) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            key, group = "", dict[str, tarfile.TarInfo]()
            for member in tar:
                if not member.isreg():
                    continue
                folder, _, last = member.name.rpartition("/")
                stem, _, suffix = last.partition(".")
                if (here := f"{folder}/{stem}") != key:
                    yield from _sample(name, tar, group)
                    key, group = here, {}
                group[suffix.lower()] = member
            yield from _sample(name, tar, group)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"cannot read {name}: {first_line(error)}; give an uncompressed .tar") from error


def _sample(name: str, tar: tarfile.TarFile, group: Mapping[str, tarfile.TarInfo]) -> Iterator[dict[str, Any]]:
    label = None
    if "cls" in group and (file := tar.extractfile(group["cls"])):
        label = file.read().decode("utf-8", "replace").strip()
    for suffix, member in group.items():
        if _ends(f".{suffix}", WRITABLE):
            at = {"offset": member.offset_data, "length": member.size}
            yield {"path": f"{name}/{member.name}", "file": name, CLASS: label, **at}


def _opened(name: str) -> Any:
    if storage.remote(name):
        import fsspec

        return fsspec.open(name, "rb").open()
    return open(name, "rb")


def _table(name: str) -> Iterator[dict[str, Any]]:
    """The rows of a CSV or Parquet table; a picture with several rows has several boxes. Paths start at its folder.

    Raises InputError.
    """
    data = _read_table(name)
    columns = data.column_names
    path = next((column for column in PATHS if column in columns), None)
    if path is None:
        raise InputError(f"{name} has no column 'path'; its columns: {', '.join(columns) or 'none'}")
    corners = [column for column in CORNERS if column in columns]
    if corners and len(corners) < len(CORNERS):
        raise InputError(f"{name} has the columns {', '.join(corners)}; a box needs {', '.join(CORNERS)}")
    folder = name.rpartition("/")[0] if storage.remote(name) else str(PurePath(name).parent)
    rows: dict[str, dict[str, Any]] = {}
    number = 0
    for batch in data.to_batches(max_chunksize=BLOCK):
        for row in batch.to_pylist():
            number += 1
            if not row[path]:
                raise InputError(f"row {number} of {name} names no picture; fill in the column {path!r}")
            place = _at(folder, str(row[path]))
            one = rows.setdefault(place, {"path": place, "file": place, "boxes": []})
            one["boxes"] += _box(row, number, name) if corners else []
            if row.get(MASK):
                one[MASK] = _at(folder, str(row[MASK]))
            label = row.get(CLASS)
            label = "" if label is None else str(label).strip()
            if label and one.setdefault(CLASS, label) != label:
                raise InputError(f"{name} gives {row[path]} two classes, {one[CLASS]} and {label}; give one")
    if not rows:
        raise InputError(f"{name} has no rows; give one for each picture")
    yield from rows.values()


def _at(folder: str, path: str) -> str:
    if storage.remote(path) or PurePath(path).is_absolute():
        return path
    return storage.joined(folder, path) if folder not in ("", ".") else path


def _box(row: Mapping[str, Any], number: int, name: str) -> list[list[float]]:
    given = [row[corner] for corner in CORNERS]
    if all(value is None or value == "" for value in given):
        return []
    said = ", ".join(map(str, given))
    try:
        x0, y0, x1, y1 = (float(value) for value in given)
    except (TypeError, ValueError) as error:
        raise InputError(f"the box in row {number} of {name} is {said}; give four numbers") from error
    if not (x0 < x1 and y0 < y1):
        raise InputError(f"the box in row {number} of {name} is {said}; x0 < x1 and y0 < y1 are needed")
    return [[x0, y0, x1, y1]]


def _read_table(name: str) -> Any:
    pa = arrow()
    import pyarrow.csv
    import pyarrow.parquet

    data = io.BytesIO(storage.read(name))
    try:
        if _ends(name, (".parquet",)):
            return pyarrow.parquet.read_table(data)
        options = pyarrow.csv.ConvertOptions(strings_can_be_null=True)
        return pyarrow.csv.read_csv(data, convert_options=options)
    except pa.ArrowException as error:
        raise InputError(f"cannot read {name}: {first_line(error)}; give a CSV or Parquet table") from error
