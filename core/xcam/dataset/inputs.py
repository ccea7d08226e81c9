"""What is to be explained: folders, patterns, tables and tar shards become one listing, an Arrow table with a row for each picture.

Columns: path (what a row of the output is called), file, offset, length (where the bytes are: a shard holds many
pictures), class, boxes ([x0, y0, x1, y1] in the picture's pixels, x1 and y1 not included), mask (a file).
"""

from __future__ import annotations

import csv
import io
import os
import tarfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from xcam.contract.files import check_file
from xcam.dataset import storage
from xcam.errors import BackendError, InputError, XcamWarning, first_line
from xcam.images.writing import WRITABLE

TABLES, SHARDS = (".csv", ".parquet"), (".tar",)
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")
CORNERS = ("x0", "y0", "x1", "y1")
OTHERS = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("x", "y", "w", "h"),
    ("x", "y", "width", "height"),
    ("left", "top", "right", "bottom"),
    ("bbox",),
)
"""Names of boxes elsewhere, of which a hint says that they are not read here."""
CLASS, MASK, PATHS = "class", "mask", ("path", "image")
WHOLE = r"^\s*(-?(0|[1-9]\d*)\.0)?\s*$"
"""A whole number as floats are written, or nothing."""
LABEL = 1000
"""Bytes of a `.cls` that are read: it holds a name or a number."""
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


def parquet(data: bytes) -> Any:
    """An open Parquet file, whose pages are held against their checksums, if they have some.

    Nothing is read ahead: Arrow's threads would keep a process that fails from ending.
    """
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(io.BytesIO(data), pre_buffer=False, page_checksum_verification=True)


def listing(words: Sequence[str], ours: Callable[[str], bool] = lambda name: False) -> Any:
    """The pictures that `words` name, in their order. Raises InputError, BackendError.

    ours: what a folder or a pattern has, and is no picture of the set: overlays that a batch wrote there.
    """
    pa = arrow()
    if not words:
        raise InputError("no picture is named; give a folder, a pattern, a table (.csv, .parquet) or shards (.tar)")
    batches = []
    block: list[dict[str, Any]] = []
    for word in words:
        for row in _rows(storage.plain(str(word)), ours):
            block.append(_written(row))
            if len(block) == BLOCK:
                batches.append(pa.RecordBatch.from_pylist(block, schema()))
                block = []
    if block:
        batches.append(pa.RecordBatch.from_pylist(block, schema()))
    found = pa.Table.from_batches(batches, schema())
    if not len(found):
        raise InputError(f"there is no picture in {', '.join(words)}; pictures end in {', '.join(WRITABLE)}")
    return found.combine_chunks()


def _written(row: dict[str, Any]) -> dict[str, Any]:
    """The row, its names as text: a name may be any bytes, and no file is told where it cannot be written down."""
    for key in ("path", "file"):
        try:
            row[key].encode()
        except UnicodeEncodeError:
            row[key] = row[key].encode("utf-8", "backslashreplace").decode() if key == "path" else None
    return row


def _rows(word: str, ours: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
    if not storage.exists(word) and any(c in word for c in "*?["):
        names = [name for name in storage.matching(word) if not ours(name)]
        if not names:
            raise InputError(f"no file is called {word}")
        for name in names:
            yield from _file(name)
    elif storage.is_folder(word):
        for name in storage.within(word):
            if (_ends(name, WRITABLE) or _ends(name, SHARDS)) and not ours(name):
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
    elif _ends(name, PACKED):
        raise InputError(f"{name} is compressed; give an uncompressed .tar, or the folder that was packed")
    else:
        yield {"path": name, "file": name}


def _ends(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(suffixes)


def _shard(name: str) -> Iterator[dict[str, Any]]:
    """The pictures of a WebDataset shard: files of one key belong together, and `.cls` holds the class.

    Only the headers are read, and where each picture's bytes are is noted. A name that comes again begins a new sample.
    Raises InputError.
    """
    try:
        with _opened(name) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            key, group = "", dict[str, tuple[str, tarfile.TarInfo]]()
            for member in tar:
                name_in = member.name
                if member.islnk():  # the bytes were packed before, under another name
                    member = tar.getmember(member.linkname)
                if not member.isreg():
                    continue
                folder, _, last = name_in.rpartition("/")
                stem, _, suffix = last.partition(".")
                if (here := f"{folder}/{stem}") != key or suffix.lower() in group:
                    yield from _sample(name, tar, group)
                    key, group = here, {}
                group[suffix.lower()] = name_in, member
            yield from _sample(name, tar, group)
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a broken header for the end
                raise tarfile.ReadError(f"damaged at byte {tar.offset}")
    except (tarfile.TarError, KeyError, EOFError) as error:
        raise InputError(f"cannot read {name}: {first_line(error)}; give an uncompressed .tar") from error
    except OSError as error:
        raise InputError(
            f"cannot read {name}: {first_line(error)}; check that it is there and may be read"
        ) from error


def _sample(
    name: str, tar: tarfile.TarFile, group: Mapping[str, tuple[str, tarfile.TarInfo]]
) -> Iterator[dict[str, Any]]:
    label = None
    if "cls" in group and (file := tar.extractfile(group["cls"][1])):
        label = file.read(LABEL).decode("utf-8", "replace").strip() or None
    for suffix, (name_in, member) in group.items():
        if _ends(f".{suffix}", WRITABLE):
            at = {"offset": member.offset_data, "length": member.size}
            yield {"path": f"{name}/{name_in}", "file": name, CLASS: label, **at}


def _opened(name: str) -> Any:
    if storage.remote(name):
        import fsspec

        return fsspec.open(name, "rb").open()
    check_file(Path(name), "a shard")
    return open(name, "rb")


def _table(name: str) -> Iterator[dict[str, Any]]:
    """The rows of a CSV or Parquet table; a picture with several rows has several boxes. Paths start at its folder.

    Raises InputError.
    """
    data = _read_table(name)
    columns = data.column_names
    path = next(column for column in PATHS if column in columns)
    corners = CORNERS[0] in columns
    folder = name.rpartition("/")[0] if storage.remote(name) else str(PurePath(name).parent)
    rows: dict[str, dict[str, Any]] = {}
    number = 0
    for batch in data.to_batches(max_chunksize=BLOCK):
        for row in batch.to_pylist():
            number += 1
            if not (row[path] or "").strip():
                raise InputError(f"row {number} of {name} names no picture; fill in the column {path!r}")
            place = _at(folder, row[path])
            one = rows.setdefault(_plain(place), {"path": place, "file": place, "boxes": []})
            one["boxes"] += _box(row, number, name) if corners else []
            said = {
                MASK: _at(folder, row[MASK]) if (row.get(MASK) or "").strip() else "",
                CLASS: _label(row.get(CLASS)),
            }
            for key, value in said.items():
                if value and _plain(one.setdefault(key, value)) != _plain(value):
                    raise InputError(
                        f"{name} gives {row[path]} two {key}{'es' * (key == CLASS) or 's'}, {one[key]} and {value}; give one"
                    )
    if not rows:
        raise InputError(f"{name} has no rows; give one for each picture")
    yield from rows.values()


def _at(folder: str, path: str) -> str:
    """Blanks around it are no part of a name: people who write tables align columns."""
    path = storage.plain(path.strip())
    if storage.remote(path) or PurePath(path).is_absolute():
        return path
    return storage.joined(folder, path) if folder not in ("", ".") else path


def _plain(place: str) -> str:
    """However it is spelled: `./p/a.png` is `p/a.png`. URLs stay as they are, and links are not followed."""
    return place if storage.remote(place) else os.path.normpath(place)


def _label(value: Any) -> str:
    """A class as text; empty where none is told. A column of whole numbers with gaps is often one of floats."""
    if value is None or value != value:
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def _box(row: Mapping[str, Any], number: int, name: str) -> list[list[float]]:
    given = [row[corner] for corner in CORNERS]
    if all(value is None or value == "" or value != value for value in given):
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
    """The columns of a table that are known here. Raises InputError."""
    pa = arrow()
    import pyarrow.csv

    data = storage.read(name, kind="a table")
    try:
        if _ends(name, (".parquet",)):
            with parquet(data) as file:
                types = file.schema_arrow
                names = [word.lower() for word in types.names]
                known = _known(name, names)
                fields = [types.field(names.index(column)) for column in known]
                for column, one in zip(known, fields, strict=True):
                    _check_type(name, column, one.type)
                found = file.read([one.name for one in fields], use_threads=False)
                return found.rename_columns({one.name: column for column, one in zip(known, fields, strict=True)})
        header = io.BytesIO(data).readline().decode("utf-8-sig", "replace").splitlines()[:1]
        names = [word.strip().lower() for word in next(csv.reader(header), [])]
        known = _known(name, names)
        texts = {column: pa.string() for column in known if column not in CORNERS}  # 007 is no number, and NA a name
        found = pyarrow.csv.read_csv(
            io.BytesIO(data),
            pyarrow.csv.ReadOptions(use_threads=False, column_names=names, skip_rows=1),
            pyarrow.csv.ParseOptions(newlines_in_values=True),
            pyarrow.csv.ConvertOptions(column_types=texts, include_columns=known),
        )
        return _whole(found) if CLASS in known else found
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {name}: {first_line(error)}; give a CSV (UTF-8) or Parquet table") from error


def _whole(table: Any) -> Any:
    """The classes of a CSV without their `.0`, if all that are told end so: whole numbers with gaps, written as floats.

    A `1.0` among names stays a name.
    """
    import pyarrow.compute

    pc, classes = pyarrow.compute, table[CLASS]
    if not pc.all(pc.match_substring_regex(classes, WHOLE), min_count=0).as_py():
        return table
    place = table.column_names.index(CLASS)
    return table.set_column(place, CLASS, pc.replace_substring_regex(classes, r"\.0\s*$", ""))


def _known(name: str, columns: Sequence[str]) -> list[str]:
    """Those of a table's columns that are used: a path, and what else is told. Raises InputError."""
    path = next((column for column in PATHS if column in columns), None)
    if path is None:
        joined = len(columns) == 1 and any(c in columns[0] for c in ";\t|")
        remedy = "separate them by commas" if joined else "name the pictures in a column path"
        raise InputError(f"{name} has no column 'path'; its columns: {', '.join(columns) or 'none'}; {remedy}")
    corners = [column for column in CORNERS if column in columns]
    if corners and len(corners) < len(CORNERS):
        raise InputError(f"{name} has the columns {', '.join(corners)}; a box needs {', '.join(CORNERS)}")
    for others in () if corners or MASK in columns else OTHERS:
        if set(others) <= set(columns):
            warnings.warn(
                f"{name} has the columns {', '.join(others)}, which are not read; a box is read from {', '.join(CORNERS)}: "
                "left, top, right, bottom in pixels",
                XcamWarning,
                stacklevel=2,
            )
    known = [path, *(column for column in (CLASS, *CORNERS, MASK) if column in columns)]
    for column in known:
        if columns.count(column) > 1:
            raise InputError(f"{name} has {columns.count(column)} columns {column!r}; leave one")
    return known


def _check_type(name: str, column: str, kind: Any) -> None:
    """Raises InputError for a column whose values are no words (and no numbers, where these will do)."""
    is_ = arrow().types
    plain = kind.value_type if is_.is_dictionary(kind) else kind
    words = is_.is_string(plain) or is_.is_large_string(plain) or is_.is_null(plain)
    numbers = is_.is_integer(plain) or is_.is_floating(plain) or is_.is_boolean(plain)
    if not words and not (numbers and column not in (*PATHS, MASK)):
        wanted = "paths as text" if column in (*PATHS, MASK) else "text or numbers"
        raise InputError(f"the column {column!r} of {name} holds {str(kind)[:80]}; give {wanted}")
