"""The listing of images to explain: an Arrow table with a row for each image of folders, patterns, tables and tar shards.

Columns: path (the name of the image in the output), file, offset, length (the location of its bytes: a shard holds many
images), class, boxes ([x0, y0, x1, y1] in pixels of the image, x1 and y1 excluded), mask (a file).
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
from xcam.errors import BackendError, InputError, XcamWarning, first_line, warn
from xcam.images import writing
from xcam.images.writing import WRITABLE

TABLES, SHARDS = (".csv", ".parquet"), (".tar",)
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")
CORNERS = ("x0", "y0", "x1", "y1")
OTHER_CORNERS = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("x", "y", "w", "h"),
    ("x", "y", "width", "height"),
    ("left", "top", "right", "bottom"),
    ("bbox",),
)
"""Columns of boxes in other tools: a warning states that they are not read."""
CLASS, MASK, PATHS = "class", "mask", ("path", "image")
INTEGERS = r"^\s*(-?(0|[1-9]\d*)\.0)?\s*$"
"""An integer in the notation of a float, or nothing."""
LABEL = 1000
"""Bytes of a `.cls` file that are read: it holds a name or a number."""
BLOCK = 10_000
"""Rows of the listing in one Arrow batch: a list of a million dicts would not fit into memory."""


def arrow() -> Any:
    """Import pyarrow.

    Raises:
        BackendError: It is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise BackendError(
            'tables need pyarrow, which is not installed; run pip install "xcam-explain[batch]"'
        ) from error
    return pyarrow


def schema() -> Any:
    """Return the schema of the listing, an Arrow schema."""
    pa = arrow()
    text, integer = pa.string(), pa.int64()
    boxes = pa.list_(pa.list_(pa.float64()))
    fields = {"path": text, "file": text, "offset": integer, "length": integer}
    return pa.schema(list((fields | {CLASS: text, "boxes": boxes, MASK: text}).items()))


def parquet(data: bytes) -> Any:
    """Open a Parquet file. Its pages are compared with their checksums, if there are any.

    Nothing is read ahead, as Arrow's threads would prevent a failed process from exiting.
    """
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(io.BytesIO(data), pre_buffer=False, page_checksum_verification=True)


def listing(inputs: Sequence[str], is_excluded: Callable[[str], bool] = lambda name: False) -> Any:
    """Return the images of all inputs, in their order.

    Args:
        inputs: Folders, patterns, tables, shards and images.
        is_excluded: Whether a file in a folder or pattern is left out: an overlay of the same output.

    Returns:
        An Arrow table with the columns of the module's docstring.

    Raises:
        InputError: An input cannot be read, or no image is left.
        BackendError: A package is missing.

    Warns:
        XcamWarning: Overlays that `xcam` wrote next to images are left out.
    """
    pa = arrow()
    if not inputs:
        raise InputError("no image is named; give a folder, a pattern, a table (.csv, .parquet) or shards (.tar)")
    batches = []
    block: list[dict[str, Any]] = []
    names = [storage.local_path(str(name)) for name in inputs]
    overlays = list[str]()
    for name in _without_overlays(names, overlays):
        for row in _rows(name, is_excluded, overlays):
            block.append(_encodable(row))
            if len(block) == BLOCK:
                batches.append(pa.RecordBatch.from_pylist(block, schema()))
                block = []
    if block:
        batches.append(pa.RecordBatch.from_pylist(block, schema()))
    if overlays:
        warn(writing.left_out(overlays))
    table = pa.Table.from_batches(batches, schema())
    if not len(table):
        raise InputError(f"{', '.join(inputs)} contains no images; names of images end in {', '.join(WRITABLE)}")
    return table.combine_chunks()


def _encodable(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row whose names can be stored as text: a file name may be any bytes. Such a file is not read."""
    for key in ("path", "file"):
        try:
            row[key].encode()
        except UnicodeEncodeError:
            row[key] = row[key].encode("utf-8", "backslashreplace").decode() if key == "path" else None
    return row


def _rows(name: str, is_excluded: Callable[[str], bool], overlays: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of one input; overlays of earlier runs in a folder or pattern are added to `overlays` instead."""
    if not storage.exists(name) and any(c in name for c in "*?["):
        matches = [match for match in storage.matches(name) if not is_excluded(match)]
        if not matches:
            raise InputError(f"no file matches {name}; check the pattern")
        for match in _without_overlays(matches, overlays):
            yield from _file(match)
    elif storage.is_folder(name):
        files = [file for file in storage.walk(name) if _ends(file, WRITABLE + SHARDS) and not is_excluded(file)]
        for file in _without_overlays(files, overlays):
            yield from _file(file)
    elif not storage.exists(name):
        raise InputError(f"cannot read {name}: no such file or folder; check the path")
    else:
        yield from _file(name)


def _without_overlays(names: list[str], overlays: list[str]) -> list[str]:
    left_out = set(writing.overlays(names))
    overlays += sorted(left_out)
    return [name for name in names if name not in left_out]


def _file(name: str) -> Iterator[dict[str, Any]]:
    if _ends(name, TABLES):
        yield from _table(name)
    elif _ends(name, SHARDS):
        yield from _shard(name)
    elif _ends(name, COMPRESSED):
        raise InputError(f"cannot read {name}: it is compressed; give an uncompressed .tar, or the extracted folder")
    else:
        yield {"path": name, "file": name}


def _ends(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(suffixes)


def _shard(name: str) -> Iterator[dict[str, Any]]:
    """Yield the images of a WebDataset shard: files with the same key are one sample, and `.cls` holds its class.

    Only the headers are read, and the location of each image's bytes is recorded. A repeated name begins a new sample.
    """
    try:
        with _opened(name) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            key, group = "", dict[str, tuple[str, tarfile.TarInfo]]()
            for member in tar:
                member_name = member.name
                if member.islnk():  # the bytes are those of an earlier member
                    member = tar.getmember(member.linkname)
                if not member.isreg():
                    continue
                folder, _, last = member_name.rpartition("/")
                stem, _, suffix = last.partition(".")
                if (member_key := f"{folder}/{stem}") != key or suffix.lower() in group:
                    yield from _sample(name, tar, group)
                    key, group = member_key, {}
                group[suffix.lower()] = member_name, member
            yield from _sample(name, tar, group)
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError(f"damaged at byte {tar.offset}")
    except (tarfile.TarError, KeyError, EOFError) as error:
        raise InputError(f"cannot read {name}: {first_line(error)}; give an uncompressed .tar") from error
    except OSError as error:
        raise InputError(f"cannot read {name}: {first_line(error)}; check that it exists and is readable") from error


def _sample(
    name: str, tar: tarfile.TarFile, group: Mapping[str, tuple[str, tarfile.TarInfo]]
) -> Iterator[dict[str, Any]]:
    label = None
    if "cls" in group and (file := tar.extractfile(group["cls"][1])):
        label = file.read(LABEL).decode("utf-8", "replace").strip() or None
    for suffix, (member_name, member) in group.items():
        if _ends(f".{suffix}", WRITABLE):
            location = {"offset": member.offset_data, "length": member.size}
            yield {"path": f"{name}/{member_name}", "file": name, CLASS: label, **location}


def _opened(name: str) -> Any:
    if storage.is_remote(name):
        import fsspec

        return fsspec.open(name, "rb").open()
    check_file(Path(name), "a shard")
    return open(name, "rb")


def _table(name: str) -> Iterator[dict[str, Any]]:
    """Yield the images of a CSV or Parquet table. Several rows of an image are several boxes.

    Relative paths start at the folder of the table.
    """
    data = _read_table(name)
    columns = data.column_names
    path_column = next(column for column in PATHS if column in columns)
    has_boxes = CORNERS[0] in columns
    folder = name.rpartition("/")[0] if storage.is_remote(name) else str(PurePath(name).parent)
    images: dict[str, dict[str, Any]] = {}
    number = 0
    for batch in data.to_batches(max_chunksize=BLOCK):
        for row in batch.to_pylist():
            number += 1
            if not (row[path_column] or "").strip():
                raise InputError(f"row {number} of {name} has an empty path; fill in the column {path_column!r}")
            path = _resolved(folder, row[path_column])
            image = images.setdefault(_normalized(path), {"path": path, "file": path, "boxes": []})
            image["boxes"] += _box(row, number, name) if has_boxes else []
            fields = {
                MASK: _resolved(folder, row[MASK]) if (row.get(MASK) or "").strip() else "",
                CLASS: _label(row.get(CLASS)),
            }
            for key, value in fields.items():
                if value and _normalized(image.setdefault(key, value)) != _normalized(value):
                    kind = "classes" if key == CLASS else "masks"
                    raise InputError(
                        f"{name} has two {kind} for {row[path_column]}, {image[key]} and {value}; keep one"
                    )
    if not images:
        raise InputError(f"{name} has no rows; add one for each image")
    yield from images.values()


def _resolved(folder: str, path: str) -> str:
    """Return a path relative to a folder. Blanks around it are removed: authors of tables align columns."""
    path = storage.local_path(path.strip())
    if storage.is_remote(path) or PurePath(path).is_absolute():
        return path
    return storage.join(folder, path) if folder not in ("", ".") else path


def _normalized(path: str) -> str:
    """Return one spelling of a path: `./p/a.png` is `p/a.png`. URLs are unchanged, and links are not followed."""
    return path if storage.is_remote(path) else os.path.normpath(path)


def _label(value: Any) -> str:
    """Return a class as text, empty where it is missing. A column of integers with gaps is often one of floats."""
    if value is None or value != value:
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def _box(row: Mapping[str, Any], number: int, name: str) -> list[list[float]]:
    values = [row[corner] for corner in CORNERS]
    if all(value is None or value == "" or value != value for value in values):
        return []
    text = f"the box in row {number} of {name} is {', '.join(map(str, values))}"
    try:
        x0, y0, x1, y1 = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{text}; give four numbers") from error
    if not (x0 < x1 and y0 < y1):
        raise InputError(f"{text}; give x0 < x1 and y0 < y1")
    return [[x0, y0, x1, y1]]


def _read_table(name: str) -> Any:
    """Return the known columns of a table."""
    pa = arrow()
    import pyarrow.csv

    data = storage.read(name, kind="a table")
    try:
        if _ends(name, (".parquet",)):
            with parquet(data) as file:
                types = file.schema_arrow
                names = [column.lower() for column in types.names]
                known = _known(name, names)
                fields = [types.field(names.index(column)) for column in known]
                for column, field in zip(known, fields, strict=True):
                    _check_type(name, column, field.type)
                table = file.read([field.name for field in fields], use_threads=False)
                return table.rename_columns({f.name: column for column, f in zip(known, fields, strict=True)})
        header = io.BytesIO(data).readline().decode("utf-8-sig", "replace").splitlines()[:1]
        names = [column.strip().lower() for column in next(csv.reader(header), [])]
        known = _known(name, names)
        texts = {column: pa.string() for column in known if column not in CORNERS}  # 007 and NA are names
        table = pyarrow.csv.read_csv(
            io.BytesIO(data),
            pyarrow.csv.ReadOptions(use_threads=False, column_names=names, skip_rows=1),
            pyarrow.csv.ParseOptions(newlines_in_values=True),
            pyarrow.csv.ConvertOptions(column_types=texts, include_columns=known),
        )
        return _with_integer_classes(table) if CLASS in known else table
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {name}: {first_line(error)}; give a CSV (UTF-8) or Parquet table") from error


def _with_integer_classes(table: Any) -> Any:
    """Return a CSV table with `.0` removed from its classes, if all of them have it: integers with gaps, stored as floats.

    A `1.0` among names stays a name.
    """
    import pyarrow.compute

    pc, classes = pyarrow.compute, table[CLASS]
    if not pc.all(pc.match_substring_regex(classes, INTEGERS), min_count=0).as_py():
        return table
    index = table.column_names.index(CLASS)
    return table.set_column(index, CLASS, pc.replace_substring_regex(classes, r"\.0\s*$", ""))


def _known(name: str, columns: Sequence[str]) -> list[str]:
    """Return the columns of a table that are read: the path, and all other known columns."""
    path = next((column for column in PATHS if column in columns), None)
    if path is None:
        joined = len(columns) == 1 and any(c in columns[0] for c in ";\t|")
        remedy = "separate them by commas" if joined else "give the paths of the images in a column path"
        raise InputError(f"{name} has no column 'path'; its columns: {', '.join(columns) or 'none'}; {remedy}")
    corners = [column for column in CORNERS if column in columns]
    if corners and len(corners) < len(CORNERS):
        raise InputError(f"{name} has the columns {', '.join(corners)}; a box needs {', '.join(CORNERS)}")
    for others in () if corners or MASK in columns else OTHER_CORNERS:
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
            raise InputError(f"{name} has {columns.count(column)} columns {column!r}; keep one")
    return known


def _check_type(name: str, column: str, kind: Any) -> None:
    """Raise InputError for a column whose values are not text (nor numbers, where these are allowed)."""
    types = arrow().types
    value_type = kind.value_type if types.is_dictionary(kind) else kind
    is_text = types.is_string(value_type) or types.is_large_string(value_type) or types.is_null(value_type)
    is_number = types.is_integer(value_type) or types.is_floating(value_type) or types.is_boolean(value_type)
    if not is_text and not (is_number and column not in (*PATHS, MASK)):
        expected = "paths as text" if column in (*PATHS, MASK) else "text or numbers"
        raise InputError(f"the column {column!r} of {name} has the type {str(kind)[:80]}; give {expected}")
