"""The output folder: its lock, its record of the request, and parts that are damaged or incomplete."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import xcam
from sets import DEMO, write_csv, write_tar
from xcam.dataset import storage
from xcam.dataset.inputs import listing
from xcam.dataset.output import Output, WriteError


def hold(out: str, ready: Any, go: Any) -> None:
    from xcam.dataset.output import Output

    with Output(out).lock():
        ready.set()
        go.wait()  # until it is killed


def test_two_runs_on_one_output(mixed_folder: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, go = context.Event(), context.Event()
    other = context.Process(target=hold, args=(str(tmp_path / "out"), ready, go), daemon=True)
    other.start()
    assert ready.wait(300)
    with pytest.raises(
        xcam.InputError, match=r"another run is writing to .*; wait until it ends, or give another -o"
    ):
        xcam.batch(**DEMO, inputs=str(mixed_folder), out=tmp_path / "out")
    other.kill()  # the lock ends with the process
    other.join()
    assert xcam.batch(**DEMO, inputs=str(mixed_folder), out=tmp_path / "out").images == 20


def test_a_stopped_run_continues_and_writes_the_same_files(
    mixed_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    xcam.batch(**DEMO, inputs=str(mixed_folder), out=tmp_path / "whole", part=6)
    write, written = storage.write, []

    def full(path: str, data: bytes) -> None:
        if "part-00002" in path:
            raise xcam.InputError(f"cannot write {path}: {os.strerror(errno.ENOSPC)}; choose another path")
        written.append(Path(path).name)
        write(path, data)

    monkeypatch.setattr(storage, "write", full)
    with pytest.raises(xcam.InputError, match="No space left"):
        xcam.batch(**DEMO, inputs=str(mixed_folder), out=tmp_path / "out", part=6)
    assert written == ["run.json", "part-00000.parquet", "part-00001.parquet"]
    (tmp_path / "out/table/.part-00002.parquet.ab12").write_bytes(b"left by a killed run")
    monkeypatch.setattr(storage, "write", lambda path, data: (written.append(Path(path).name), write(path, data)))
    xcam.batch(**DEMO, inputs=str(mixed_folder), out=tmp_path / "out", part=6)
    assert written[3:] == ["part-00002.parquet", "part-00003.parquet"]
    names = sorted(os.listdir(tmp_path / "whole/table"))
    assert sorted(os.listdir(tmp_path / "out/table")) == names
    for name in names:
        assert (tmp_path / "out/table" / name).read_bytes() == (tmp_path / "whole/table" / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "layercam"}, "method is 'layercam', and was 'gradcam'"),
        ({"layer": "pool3"}, "layer is 'pool3', and was None"),
        ({"target": 1}, r"targets is \[1\], and was \[\]"),
        ({"model": "other.onnx", "backend": None}, "backend is None, and was 'onnx'; model is 'other.onnx'"),
        ({"inputs": "one"}, "count is 1, and was 20"),
    ],
)
def test_output_of_another_run_is_refused(
    change: dict[str, Any], message: str, mixed_folder: Path, tmp_path: Path
) -> None:
    request = {**DEMO, "inputs": str(mixed_folder), "out": tmp_path / "out"}
    xcam.batch(**request)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}
    if change.get("inputs"):
        change = {"inputs": str(min(mixed_folder.iterdir()))}
    with pytest.raises(xcam.InputError, match=message):
        xcam.batch(**request | change)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")} == before


@pytest.mark.parametrize("pattern", ["{}", "{}/", "{}/**/*.jpg"])
def test_overlays_are_not_images_of_the_set(
    pattern: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert xcam.batch(**DEMO, inputs=pattern.format("."), out="out", overlays=True).images == 12
    assert len(listing([str(tmp_path / "out/overlays")])) == 12  # another run may explain them


def test_a_misspelt_option_does_not_bind_the_next_run(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(xcam.InputError, match="unknown layer 'typo'"):
        xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out", layer="typo")
    assert xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out").failed == 0


def test_other_class_labels_are_another_run(folder: Path, tmp_path: Path) -> None:
    request = {**DEMO, "inputs": str(folder), "out": tmp_path / "out", "target": "b"}
    labels = {"labels": write_csv(tmp_path / "labels.txt", "a\nb\nc\nd\ne\nf\n")}
    xcam.batch(**request, load_options=labels)
    write_csv(tmp_path / "labels.txt", "b\na\nc\nd\ne\nf\n")
    with pytest.raises(xcam.InputError, match="labels_sha256 is "):
        xcam.batch(**request, load_options=labels)


def test_a_damaged_part_is_an_error(folder: Path, tmp_path: Path) -> None:
    xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out")
    part = tmp_path / "out/table/part-00000.parquet"
    os.truncate(part, 100)
    with pytest.raises(xcam.InputError, match=r"part-00000.parquet is damaged; remove it"):
        xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out")
    part.unlink()
    assert xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out").failed == 0


@pytest.fixture
def two_parts(folder: Path, tmp_path: Path) -> tuple[dict[str, Any], Path]:
    """The request, and the table of the run."""
    request = {**DEMO, "inputs": str(folder), "out": tmp_path / "out", "part": 6}
    xcam.batch(**request)
    return request, tmp_path / "out/table"


def test_damage_in_any_column_is_an_error_when_a_run_continues(two_parts: tuple[dict[str, Any], Path]) -> None:
    request, table = two_parts
    part = table / "part-00000.parquet"
    whole = part.read_bytes()
    columns = pq.ParquetFile(part).metadata.row_group(0)
    for k in range(columns.num_columns):
        column = columns.column(k)
        start = column.dictionary_page_offset or column.data_page_offset
        data = bytearray(whole)
        data[start + column.total_compressed_size - 1] ^= 0x10  # its last value
        part.write_bytes(data)
        with pytest.raises(
            xcam.InputError, match=r"part-00000.parquet is damaged; remove it, and start the same run"
        ):
            xcam.batch(**request)
    part.unlink()
    xcam.batch(**request)
    assert part.read_bytes() == whole


def test_a_part_with_other_columns_is_an_error(two_parts: tuple[dict[str, Any], Path]) -> None:
    request, table = two_parts
    pq.write_table(pa.table({"a": [1]}), table / "part-00001.parquet")
    with pytest.raises(xcam.InputError, match=r"part-00001.parquet has other columns than this run; move it away"):
        xcam.batch(**request)


@pytest.mark.parametrize("data", [b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_a_damaged_record_of_the_request_is_an_error(data: bytes, two_parts: tuple[dict[str, Any], Path]) -> None:
    request, table = two_parts
    (table.parent / "run.json").write_bytes(data)
    with pytest.raises(xcam.InputError, match=r"run.json is damaged; give -o a new folder"):
        xcam.batch(**request)


def deny(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let no file of this name be opened; file permissions do not apply to an administrator."""
    original = io.open

    def denied(path: Any, *args: Any, **options: Any) -> Any:
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *args, **options)

    monkeypatch.setattr("builtins.open", denied)


def test_files_without_read_permission(
    two_parts: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, _ = two_parts
    shard = write_tar(tmp_path / "a.tar", [("a.jpg", b"1")])
    deny(monkeypatch, "run.json")
    with pytest.raises(
        xcam.InputError, match=r"run.json: .*Permission denied.*; check that it exists and is readable"
    ):
        xcam.batch(**request)
    deny(monkeypatch, "a.tar")
    with pytest.raises(xcam.InputError, match=r"a.tar: .*Permission denied.*; check that it exists and is readable"):
        listing([shard])


@pytest.mark.parametrize("scheme", ["file://", "local://"])
def test_a_file_url_is_a_path(scheme: str, folder: Path, tmp_path: Path) -> None:
    out = f"{scheme}{tmp_path}/out"
    for name in (f"{scheme}{folder}", f"{scheme}{folder}/*.jpg"):
        assert [row["file"] for row in listing([name]).to_pylist()] == sorted(map(str, folder.iterdir()))
    for _ in range(2):  # its own overlays are not images of the set
        request = {**DEMO, "inputs": [f"{scheme}{folder}", f"{scheme}{tmp_path}"], "out": out, "overlays": True}
        result = xcam.batch(**request)
        assert (result.images, result.table) == (12, str(tmp_path / "out/table"))
    with Output(out).lock(), pytest.raises(xcam.InputError, match="another run is writing to"):
        xcam.batch(**request)
    assert Output("memory://file://a").path == "memory://file://a"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_while_the_request_is_recorded(
    number: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(xcam.InputError, match=f"{os.strerror(number)}; free space there, and start the same command"):
        xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*.*") if path.name != ".lock"]


def test_a_full_disk_while_overlays_are_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = storage.write

    def full(path: str, data: bytes) -> None:
        if "00000009-" in path:
            raise xcam.InputError(f"cannot write {path}: No space left on device")
        write(path, data)

    monkeypatch.setattr(storage, "write", full)
    with pytest.raises(WriteError, match="No space left"):
        xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out", overlays=True, part=6)
    assert Output(str(tmp_path / "out")).done() == {0}
    monkeypatch.setattr(storage, "write", write)
    assert xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out", overlays=True, part=6).failed == 0
