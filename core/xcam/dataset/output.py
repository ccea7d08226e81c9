"""The output of a batch: a folder with a table in parts, each written whole or not at all, and a record of the request.

OUT/run.json                the request; a run that continues must make the same one
OUT/table/part-00000.parquet …
OUT/overlays/00000000-name.cam.jpg …
"""

from __future__ import annotations

import contextlib
import errno
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
from xcam.dataset.job import differences
from xcam.errors import BackendError, InputError

RUN, TABLE, OVERLAYS, LOCK = "run.json", "table", "overlays", ".lock"
PART = re.compile(r"part-(\d{5,})\.parquet")
OVERLAY = re.compile(r"\d{8,}-.*\.cam\.jpg", re.DOTALL)
LEFTOVERS = {TABLE: ".part-*", OVERLAYS: ".[0-9]*-*.????????", ".": ".run.json.????????"}
"""Temporary files, by folder, that a run leaves when it is killed while it writes."""
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
"""Errors of a drive that does not support locks."""


def schema(measures: Sequence[str], maps: bool, rivals: bool) -> Any:
    """Return the schema of the table, an Arrow schema.

    Args:
        measures: Names of measures: a column for each.
        maps: Include the raw maps.
        rivals: Include the comparison with the second best class.
    """
    pa = arrow()
    text, real, integer, boolean = pa.string(), pa.float32(), pa.int32(), pa.bool_()
    fields = [
        *(("path", text), ("class", text), ("prediction", text), ("prediction_index", integer)),
        *(("probability", real), ("correct", boolean)),
        *(("target", text), ("target_index", integer), ("score", real), ("zero", boolean)),
    ]
    fields += [("rival", text), ("rival_correlation", real)] if rivals else []
    fields += [(name, real) for name in measures]
    fields += (
        [("map_height", integer), ("map_width", integer), ("map", pa.list_(real)), ("map_box", pa.list_(real))]
        if maps
        else []
    )
    return pa.schema([*fields, ("error", text)])


class WriteError(InputError):
    """Error for a full or write-protected disk: the cause is not an image."""


class Output:
    """The output folder of one run.

    Args:
        path: A folder, or a URL that fsspec reaches.

    Raises:
        InputError: The path is empty.
    """

    def __init__(self, path: str) -> None:
        path = storage.local_path(path)
        if not path:
            raise InputError("the output has an empty name; give -o a folder")
        self.path = path.rstrip("/") or path

    @property
    def table(self) -> str:
        """The folder of the table's parts."""
        return storage.join(self.path, TABLE)

    @property
    def overlays(self) -> str:
        """The folder of the overlays."""
        return storage.join(self.path, OVERLAYS)

    def part(self, number: int) -> str:
        """Return the path of a part of the table."""
        return storage.join(self.table, f"part-{number:05d}.parquet")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of the folder: one run at a time. It ends with the process. Object stores have no locks.

        Raises:
            InputError: Another run holds it, or the folder cannot be written.
            BackendError: filelock is not installed.
        """
        if storage.exists(self.path) and not storage.is_folder(self.path):
            raise InputError(f"cannot write to {self.path}: it is a file; give -o a folder")
        storage.make_folder(self.table)
        if storage.is_remote(self.path):
            yield
            return
        lock = self._acquired()
        try:
            for folder, pattern in LEFTOVERS.items():
                for path in Path(self.path, folder).glob(pattern):
                    path.unlink()
            yield
        finally:
            lock.release()

    def _acquired(self) -> Any:
        """Return the lock of a local folder, acquired unless its drive does not support locks."""
        try:
            import filelock
        except ImportError as error:
            raise BackendError(
                'a batch needs filelock, which is not installed; run pip install "xcam-explain[batch]"'
            ) from error
        lock = filelock.FileLock(storage.join(self.path, LOCK), timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise InputError(
                f"another run is writing to {self.path}; wait until it ends, or give another -o"
            ) from error
        except NotImplementedError:
            pass
        except OSError as error:
            if error.errno not in NO_LOCKS:
                reason = f"{error.strerror}; {remedy(error, 'choose another -o')}"
                raise InputError(f"cannot write to {self.path}: {reason}") from error
        return lock

    def has_overlay(self, name: str) -> bool:
        """Return whether a file is an overlay of this output, rather than an image to explain."""
        if not OVERLAY.fullmatch(storage.base_name(name)):
            return False
        if storage.is_remote(self.path):
            return name.rpartition("/")[0] == self.overlays
        return os.path.realpath(os.path.dirname(name)) == os.path.realpath(self.overlays)

    def begin(self, request: Mapping[str, Any]) -> None:
        """Record the request of a new run, or compare it with that of the run to continue.

        Raises:
            InputError: The folder belongs to another run, or its record is damaged or missing.
        """
        path = storage.join(self.path, RUN)
        names = storage.walk(self.overlays) if storage.is_folder(self.overlays) else ()
        # The record of a run that failed before its first result (a misspelt option) is replaced.
        if not self.done() and not any(map(self.has_overlay, names)):
            data = json.dumps(request, indent=2, ensure_ascii=False).encode("utf-8", "surrogatepass")
            storage.write(path, data)
            return
        if not storage.exists(path):
            raise InputError(f"{self.path} holds results, and {path} is missing; give -o a new folder")
        data = storage.read(path)
        try:
            earlier = json.loads(data)
        except (ValueError, RecursionError):
            earlier = None
        if not isinstance(earlier, dict):
            raise InputError(f"{path} is damaged; give -o a new folder")
        if changes := differences(request, earlier):
            raise InputError(f"{self.path} belongs to another run: {'; '.join(changes)}; give -o a new folder")

    def done(self) -> set[int]:
        """Return the numbers of the parts that exist."""
        if not storage.is_folder(self.table):
            return set()
        names = map(storage.base_name, storage.walk(self.table))
        return {int(match[1]) for name in names if (match := PART.fullmatch(name))}

    def write(self, number: int, rows: Sequence[Mapping[str, Any]], columns: Any) -> None:
        """Write a part, with a checksum for each page.

        Args:
            number: The number of the part.
            rows: Its rows.
            columns: The schema of the table.

        Raises:
            InputError: The part cannot be written.
        """
        pa = arrow()
        import pyarrow.parquet

        buffer = io.BytesIO()
        table = pa.Table.from_pylist(list(rows), columns)
        pyarrow.parquet.write_table(table, buffer, compression="zstd", write_page_checksum=True)
        storage.write(self.part(number), buffer.getvalue())

    def write_overlay(self, name: str, data: bytes) -> None:
        """Write an overlay.

        Raises:
            WriteError: It cannot be written.
        """
        try:
            storage.write(storage.join(self.overlays, name), data)
        except (InputError, OSError) as error:
            raise WriteError(str(error)) from error

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """Yield the parts of the table, with all of its columns or some.

        Raises:
            InputError: A part is damaged.
        """
        for number in sorted(self.done()):
            with self._opened(number) as file:
                table = file.read(columns, use_threads=False)
            yield table

    def check(self, numbers: Iterable[int], columns: Any) -> bool:
        """Read parts of an earlier run completely, one after the other.

        Args:
            numbers: The numbers of the parts.
            columns: The schema of the table.

        Returns:
            Whether an image in them was explained.

        Raises:
            InputError: A part is damaged, or has other columns.
        """
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
        path = self.part(number)
        data = storage.read(path)
        try:
            with parquet(data) as file:
                yield file
        except (arrow().ArrowException, OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is damaged; remove it, and start the same run again") from error
