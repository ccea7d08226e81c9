"""Where a batch goes: a folder with a table in parts, each written whole or not at all, and with what was asked for.

OUT/run.json                what was done; a run that goes on must ask for the same
OUT/table/part-00000.parquet …
OUT/pictures/00000000-name.cam.jpg …
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from xcam.batching import storage
from xcam.batching.inputs import arrow
from xcam.batching.job import differing
from xcam.errors import InputError

RUN, TABLE, PICTURES, LOCK = "run.json", "table", "pictures", ".lock"
PART = re.compile(r"part-(\d{5,})\.parquet")


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


class Output:
    """The folder of one run."""

    def __init__(self, place: str) -> None:
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
            raise InputError(f"cannot write to {self.place}: {error.strerror}; choose another -o") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(
                    f"another run is writing to {self.place}; wait until it is done, or give another -o"
                ) from error
            for left in Path(self.table).glob(".part-*"):  # of a run that was killed while it wrote
                left.unlink()
            yield

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Begin a run, or go on with one that asked for the same. Raises InputError."""
        place = storage.joined(self.place, RUN)
        if not storage.exists(place):
            if self.done():
                raise InputError(f"{self.table} holds parts, and {place} is gone; give -o a new folder")
            storage.write(place, json.dumps(facts, indent=2, ensure_ascii=False).encode())
            return
        try:
            then = json.loads(storage.read(place))
        except ValueError as error:
            raise InputError(f"{place} is damaged; give -o a new folder") from error
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
        """One part. Raises InputError."""
        pa = arrow()
        import pyarrow.parquet

        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pa.Table.from_pylist(list(rows), columns), buffer, compression="zstd")
        storage.write(self.part(number), buffer.getvalue())

    def parts(self) -> Iterator[Any]:
        """The table, part by part."""
        import pyarrow.parquet

        for number in sorted(self.done()):
            yield pyarrow.parquet.read_table(io.BytesIO(storage.read(self.part(number))))
