"""Where a batch goes: a folder with a table in parts, each written whole or not at all, and with what was asked for.

OUT/run.json                what was done; a run that goes on must ask for the same
OUT/table/part-00000.parquet …
OUT/pictures/00000000-name.cam.jpg …
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from xcam.contract.files import remedy
from xcam.dataset import storage
from xcam.dataset.inputs import arrow, parquet
from xcam.dataset.job import differing
from xcam.errors import InputError

RUN, TABLE, PICTURES, LOCK = "run.json", "table", "pictures", ".lock"
PART = re.compile(r"part-(\d{5,})\.parquet")
DRAWN = re.compile(r"\d{8,}-.*\.cam\.jpg", re.DOTALL)
LEFT = {TABLE: ".part-*", PICTURES: ".[0-9]*-*.????????", ".": ".run.json.????????"}
"""What a run that is killed while it writes leaves, by folder."""


def schema(measures: Sequence[str], maps: bool, rivals: bool) -> Any:
    """The table's columns."""
    pa = arrow()
    text, real, whole = pa.string(), pa.float32(), pa.int32()
    fields = [
        ("path", text),
        ("class", text),
        ("prediction", text),
        ("prediction_index", whole),
        ("probability", real),
    ]
    fields += [
        ("correct", pa.bool_()),
        ("target", text),
        ("target_index", whole),
        ("score", real),
        ("zero", pa.bool_()),
    ]
    fields += [("rival", text), ("rival_correlation", real)] if rivals else []
    fields += [(name, real) for name in measures]
    fields += [("map_height", whole), ("map_width", whole), ("map", pa.list_(real))] if maps else []
    return pa.schema([*fields, ("error", text)])


class WriteError(InputError):
    """No picture's fault: the place is full, or write-protected."""


class Output:
    """The folder of one run."""

    def __init__(self, place: str) -> None:
        place = storage.plain(place)
        if not place:
            raise InputError("the output has no name; give -o a folder")
        self.place = place.rstrip("/") or place

    @property
    def table(self) -> str:
        return storage.joined(self.place, TABLE)

    @property
    def pictures(self) -> str:
        return storage.joined(self.place, PICTURES)

    def part(self, number: int) -> str:
        return storage.joined(self.table, f"part-{number:05d}.parquet")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """This run's alone, as long as it lasts; a killed one lets go. (An object store knows no locks.) Raises InputError."""
        if storage.exists(self.place) and not storage.is_folder(self.place):
            raise InputError(f"{self.place} is a file; give -o a folder")
        storage.make_folder(self.table)
        if storage.remote(self.place):
            yield
            return
        import fcntl

        try:
            file = open(storage.joined(self.place, LOCK), "w")  # noqa: SIM115  # closed below
        except OSError as error:
            what = remedy(error, "choose another -o")
            raise InputError(f"cannot write to {self.place}: {error.strerror}; {what}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"another run is writing to {self.place}; wait until it is done, or give another -o"
                ) from error
            except OSError:  # some network drives know no locks either
                pass
            for folder, pattern in LEFT.items():
                for left in Path(self.place, folder).glob(pattern):
                    left.unlink()
            yield

    def own(self, name: str) -> bool:
        """Whether a file is an overlay of this output: no picture to explain."""
        folder, _, last = name.rpartition("/")
        if not DRAWN.fullmatch(last):
            return False
        if storage.remote(self.place):
            return folder == self.pictures
        return os.path.realpath(folder) == os.path.realpath(self.pictures)

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Begin a run, or go on with one that asked for the same. Raises InputError."""
        place = storage.joined(self.place, RUN)
        drawn = storage.within(self.pictures) if storage.is_folder(self.pictures) else ()
        if not self.done() and not any(
            map(self.own, drawn)
        ):  # what failed before it made anything, by a wrong word, binds nobody
            data = json.dumps(facts, indent=2, ensure_ascii=False).encode("utf-8", "surrogatepass")
            storage.write(place, data)
            return
        if not storage.exists(place):
            raise InputError(f"{self.place} holds results, and {place} is gone; give -o a new folder")
        data = storage.read(place)
        try:
            then = json.loads(data)
        except (ValueError, RecursionError):
            then = None
        if not isinstance(then, dict):
            raise InputError(f"{place} is damaged; give -o a new folder")
        apart = differing(facts, then)
        if apart:
            raise InputError(f"{self.place} belongs to another run: {'; '.join(apart)}; give -o a new folder")

    def done(self) -> set[int]:
        """The numbers of the parts that are there."""
        if not storage.is_folder(self.table):
            return set()
        names = (place.rpartition("/")[2] for place in storage.within(self.table))
        return {int(found[1]) for name in names if (found := PART.fullmatch(name))}

    def write(self, number: int, rows: Sequence[Mapping[str, Any]], columns: Any) -> None:
        """One part, with a checksum for each page, which `check` looks at. Raises InputError."""
        pa = arrow()
        import pyarrow.parquet

        buffer = io.BytesIO()
        table = pa.Table.from_pylist(list(rows), columns)
        pyarrow.parquet.write_table(table, buffer, compression="zstd", write_page_checksum=True)
        storage.write(self.part(number), buffer.getvalue())

    def draw(self, name: str, data: bytes) -> None:
        """One overlay. Raises WriteError."""
        try:
            storage.write(storage.joined(self.pictures, name), data)
        except (InputError, OSError) as error:
            raise WriteError(str(error)) from error

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """The table, part by part; all of its columns, or some. Raises InputError for a part that is damaged."""
        for number in sorted(self.done()):
            with self._opened(number) as file:
                table = file.read(columns, use_threads=False)
            yield table

    def check(self, numbers: Iterable[int], columns: Any) -> bool:
        """Read parts that were there before, all of them and one after the other. Whether a picture in them was
        explained. Raises InputError."""
        explained = False
        for number in sorted(numbers):
            with self._opened(number) as file:
                if not file.schema_arrow.equals(columns):
                    raise InputError(
                        f"{self.part(number)} has other columns than this run; move it away, and start the same run again"
                    )
                table = file.read(use_threads=False)
                table.validate(full=True)
                explained |= table["error"].null_count > 0
        return explained

    @contextlib.contextmanager
    def _opened(self, number: int) -> Iterator[Any]:
        place = self.part(number)
        data = storage.read(place)
        try:
            with parquet(data) as file:
                yield file
        except (arrow().ArrowException, OSError, UnicodeDecodeError) as error:
            raise InputError(f"{place} is damaged; remove it, and start the same run again") from error
