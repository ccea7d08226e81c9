"""What users and files bring that nobody expects: it is refused in a line, or a row, and never a wrong table."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import xcam
from sets import write_set
from systems import named_pipes, names_of_any_bytes
from xcam.dataset import storage
from xcam.dataset.inputs import listing
from xcam.dataset.output import Output, WriteError
from xcam.dataset.worker import decoded

DEMO: dict[str, Any] = {"model": "demo", "backend": "onnx"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("set")
    write_set(place, 12)
    return place


def rows(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "table").to_pylist()


def csv(place: Path, text: str) -> str:
    place.write_text(text)
    return str(place)


def packed(place: Path, members: list[tuple[str, bytes | str]]) -> str:
    """A tar; text instead of bytes is the name that a hard link stands for."""
    with tarfile.open(place, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            if isinstance(data, str):
                member.type, member.linkname = tarfile.LNKTYPE, data
            else:
                member.size = len(data)
            tar.addfile(member, None if isinstance(data, str) else io.BytesIO(data))
    return str(place)


def test_a_link_to_a_folder_above_is_followed_once(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/x.jpg").touch()
    (tmp_path / "a/b/up").symlink_to(tmp_path / "a")
    (tmp_path / "a/self").symlink_to("self")
    (tmp_path / "other").symlink_to(tmp_path / "a/b")
    found = [os.path.relpath(name, tmp_path) for name in storage.within(str(tmp_path))]
    assert found == ["a/self", "a/b/x.jpg", "other/x.jpg", "other/up/self"]


def test_a_folder_that_cannot_be_listed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def closed(place: str) -> Any:
        if place.endswith("closed"):
            raise PermissionError(13, "Permission denied", place)
        return scan(place)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(xcam.InputError, match=r"cannot list .*closed: Permission denied"):
        list(storage.within(str(tmp_path)))


@names_of_any_bytes
def test_a_name_that_is_no_text(folder: Path, tmp_path: Path) -> None:
    picture = (folder / "00000.jpg").read_bytes()
    (tmp_path / "in").mkdir()
    with open(os.path.join(os.fsencode(tmp_path), b"in", b"bad\xff.jpg"), "wb") as file:
        file.write(picture)
    (tmp_path / "in" / ("日" * 80 + ".jpg")).write_bytes(picture)
    xcam.batch(**DEMO, inputs=str(tmp_path / "in"), out=tmp_path / "out", pictures=True)
    bad, long = rows(tmp_path / "out")
    assert bad["path"].endswith("bad\\udcff.jpg")
    assert "is not UTF-8; rename the file" in bad["error"]
    assert long["error"] is None
    assert [place.name for place in (tmp_path / "out/pictures").iterdir()] == [f"00000001-{'日' * 26}.cam.jpg"]


@pytest.mark.parametrize("words", ["{}", "{}/", "{}/**/*.jpg"])
def test_overlays_are_no_pictures_of_the_set(
    words: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert xcam.batch(**DEMO, inputs=words.format("."), out="out", pictures=True).pictures == 12
    assert len(listing([str(tmp_path / "out/pictures")])) == 12  # another run may explain them


def test_a_wrong_word_does_not_bind_the_next_run(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(xcam.InputError, match="unknown layer 'typo'"):
        xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out", layer="typo")
    assert xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out").failed == 0


def test_other_names_of_classes_are_another_run(folder: Path, tmp_path: Path) -> None:
    asked = {**DEMO, "inputs": str(folder), "out": tmp_path / "out", "target": "b"}
    labels = {"labels": csv(tmp_path / "labels.txt", "a\nb\nc\nd\ne\nf\n")}
    xcam.batch(**asked, loading=labels)
    csv(tmp_path / "labels.txt", "b\na\nc\nd\ne\nf\n")
    with pytest.raises(xcam.InputError, match="labels_sha256 is "):
        xcam.batch(**asked, loading=labels)


def test_a_damaged_part_is_told(folder: Path, tmp_path: Path) -> None:
    xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out")
    part = tmp_path / "out/table/part-00000.parquet"
    os.truncate(part, 100)
    with pytest.raises(xcam.InputError, match=r"part-00000.parquet is damaged; remove it"):
        xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out")
    part.unlink()
    assert xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out").failed == 0


@pytest.fixture
def two_parts(folder: Path, tmp_path: Path) -> tuple[dict[str, Any], Path]:
    """What was asked for, and the table of the run."""
    asked = {**DEMO, "inputs": str(folder), "out": tmp_path / "out", "part": 6}
    xcam.batch(**asked)
    return asked, tmp_path / "out/table"


def test_damage_in_any_column_is_found_when_a_run_goes_on(two_parts: tuple[dict[str, Any], Path]) -> None:
    asked, table = two_parts
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
            xcam.batch(**asked)
    part.unlink()
    xcam.batch(**asked)
    assert part.read_bytes() == whole


def test_a_table_that_is_no_part_of_the_run(two_parts: tuple[dict[str, Any], Path]) -> None:
    asked, table = two_parts
    pq.write_table(pa.table({"a": [1]}), table / "part-00001.parquet")
    with pytest.raises(xcam.InputError, match=r"part-00001.parquet has other columns than this run; move it away"):
        xcam.batch(**asked)


@pytest.mark.parametrize("data", [b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_a_damaged_note_of_what_was_asked(data: bytes, two_parts: tuple[dict[str, Any], Path]) -> None:
    asked, table = two_parts
    (table.parent / "run.json").write_bytes(data)
    with pytest.raises(xcam.InputError, match=r"run.json is damaged; give -o a new folder"):
        xcam.batch(**asked)


def closed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A file of this name cannot be opened; rights alone do not keep an administrator out."""
    before = io.open

    def asked(place: Any, *words: Any, **options: Any) -> Any:
        if str(place).endswith(name):
            raise PermissionError(13, "Permission denied", str(place))
        return before(place, *words, **options)

    monkeypatch.setattr("builtins.open", asked)


def test_files_that_may_not_be_read(
    two_parts: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, _ = two_parts
    shard = packed(tmp_path / "a.tar", [("a.jpg", b"1")])
    closed(monkeypatch, "run.json")
    with pytest.raises(
        xcam.InputError, match=r"run.json: .*Permission denied.*; check that it is there and may be read"
    ):
        xcam.batch(**asked)
    closed(monkeypatch, "a.tar")
    with pytest.raises(
        xcam.InputError, match=r"a.tar: .*Permission denied.*; check that it is there and may be read"
    ):
        listing([shard])


def test_a_picture_in_a_folder_that_may_not_be_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(place: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(place))

    monkeypatch.setattr(os, "stat", closed)
    with pytest.raises(xcam.InputError, match=r"a.jpg: Permission denied; check the permissions of its folder"):
        storage.read(f"{tmp_path}/a.jpg")


def test_a_damaged_table_of_pictures(tmp_path: Path) -> None:
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"path": [f"{k}.jpg" for k in range(100)]}), table, compression="zstd")
    data = bytearray(table.read_bytes())
    data[60:160] = bytes(100)
    table.write_bytes(data)
    with pytest.raises(xcam.InputError, match=r"cannot read .*t.parquet: OSError: .*; give a CSV"):
        listing([str(table)])


@named_pipes
@pytest.mark.parametrize(("name", "kind"), [("a.tar", "a shard"), ("t.csv", "a table"), ("t.parquet", "a table")])
def test_a_pipe_is_not_waited_for(name: str, kind: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(xcam.InputError, match=rf"{name}: it is not a regular file; give {kind}"):
        listing([str(tmp_path / name)])


@pytest.mark.parametrize("scheme", ["file://", "local://"])
def test_a_url_of_a_file_is_its_path(scheme: str, folder: Path, tmp_path: Path) -> None:
    out = f"{scheme}{tmp_path}/out"
    for words in (f"{scheme}{folder}", f"{scheme}{folder}/*.jpg"):
        assert [row["file"] for row in listing([words]).to_pylist()] == sorted(map(str, folder.iterdir()))
    for _ in range(2):  # its own overlays are none of the set
        asked = {**DEMO, "inputs": [f"{scheme}{folder}", f"{scheme}{tmp_path}"], "out": out, "pictures": True}
        found = xcam.batch(**asked)
        assert (found.pictures, found.table) == (12, str(tmp_path / "out/table"))
    with Output(out).held(), pytest.raises(xcam.InputError, match="another run is writing to"):
        xcam.batch(**asked)
    assert Output("memory://file://a").place == "memory://file://a"


def test_paths_in_tables_may_be_urls_of_files(tmp_path: Path) -> None:
    lines = ["path,mask", f"file://{tmp_path}/a.png,local://{tmp_path}/m.png", f"{tmp_path}/./a.png, "]
    (row,) = listing([csv(tmp_path / "t.csv", "\n".join(lines))]).to_pylist()
    assert (row["path"], row["mask"]) == (f"{tmp_path}/a.png", f"{tmp_path}/m.png")


def test_a_package_that_is_missing_ends_the_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    def lacking(place: str) -> Any:
        raise ImportError("HTTPFileSystem requires aiohttp")

    monkeypatch.setattr(fsspec.core, "url_to_fs", lacking)
    table = csv(tmp_path / "t.csv", f"path\n{folder}/00000.jpg\nhttp://host/a.jpg\n")
    with pytest.raises(
        xcam.BackendError, match=r"cannot open http://host/a.jpg: .*requires aiohttp; install what it"
    ):
        xcam.batch(**DEMO, inputs=table, out=tmp_path / "out")
    assert not Output(str(tmp_path / "out")).done()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_where_no_space_is_left(number: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(xcam.InputError, match=f"{os.strerror(number)}; free space there, and start the same command"):
        xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out")
    assert not [place for place in (tmp_path / "out").rglob("*.*") if place.name != ".lock"]


def test_a_full_disk_is_no_fault_of_the_pictures(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = storage.write

    def full(place: str, data: bytes) -> None:
        if "00000009-" in place:
            raise xcam.InputError(f"cannot write {place}: No space left on device")
        write(place, data)

    monkeypatch.setattr(storage, "write", full)
    with pytest.raises(WriteError, match="No space left"):
        xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out", pictures=True, part=6)
    assert Output(str(tmp_path / "out")).done() == {0}
    monkeypatch.setattr(storage, "write", write)
    assert xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out", pictures=True, part=6).failed == 0


def test_the_best_classes_as_targets(folder: Path, tmp_path: Path) -> None:
    xcam.batch(**DEMO, inputs=str(folder / "00000.jpg"), out=tmp_path / "out", target=["top2", 1])
    expected = [e.index for e in xcam.explain(xcam.load("demo", "onnx"), folder / "00000.jpg", target="top2")]
    assert [row["target_index"] for row in rows(tmp_path / "out")] == [*expected, 1]


@pytest.mark.filterwarnings("ignore::xcam.ZeroHeatmapWarning")
def test_pictures_without_a_class_are_rows_wherever_they_stand(folder: Path, tmp_path: Path) -> None:
    told = ["", "zebra", "-1", "", "", "", "", "", "", "STAR", "3", "3"]
    lines = [f"{path},{word}" for path, word in zip(sorted(folder.iterdir()), told, strict=True)]
    table = csv(tmp_path / "t.csv", "\n".join(["path,class", *lines]))
    xcam.batch(**DEMO, inputs=table, out=tmp_path / "out", target="@class", batch=2, part=3)
    found = rows(tmp_path / "out")
    assert [row["target_index"] for row in found] == [None] * 9 + [3, 3, 3]
    assert "no class 'zebra'" in found[1]["error"]
    assert "no class -1" in found[2]["error"]
    assert [row["correct"] for row in found[9:]] == [row["prediction_index"] == 3 for row in found[9:]]
    os.unlink(tmp_path / "out/table/part-00000.parquet")  # a run that goes on there
    xcam.batch(**DEMO, inputs=table, out=tmp_path / "out", target="@class", batch=2, part=3)
    assert rows(tmp_path / "out") == found


def test_a_class_is_right_however_it_is_spelled(folder: Path, tmp_path: Path) -> None:
    path = folder / "00000.jpg"
    e = xcam.explain(xcam.load("demo", "onnx"), path)
    for k, word in enumerate([e.label, e.label.upper(), str(e.index), f" {e.label} "]):
        xcam.batch(**DEMO, inputs=csv(tmp_path / "t.csv", f"path, class\n{path},{word}\n"), out=tmp_path / f"{k}")
        assert rows(tmp_path / f"{k}")[0]["correct"] is True


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_a_class_that_the_model_has_not_ends_the_run(batch: int, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(xcam.InputError, match=r"^no class 99: the model has 6 classes"):
        xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out", target=99, batch=batch)
    assert not Output(str(tmp_path / "out")).done()


def test_classes_keep_their_spelling(tmp_path: Path) -> None:
    text = "﻿path,class,x0,y0,x1,y1\n007,007,1,2,3,4\nb,NA,,,,\nc,nan,NA,NA,NA,NA\nd,,1,2,3,4\n"
    found = listing([csv(tmp_path / "t.csv", text)]).to_pylist()
    assert [Path(row["path"]).name for row in found] == ["007", "b", "c", "d"]
    assert [row["class"] for row in found] == ["007", "NA", "nan", None]
    assert [row["boxes"] for row in found] == [[[1, 2, 3, 4]], [], [], [[1, 2, 3, 4]]]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (["2.0", "", " 0.0 ", "-1.0"], ["2", None, "0", "-1"]),  # whole numbers with a gap, as pandas writes them
        (["2.0", "11.0"], ["2", "11"]),
        (["1.0", "beta", ""], ["1.0", "beta", None]),
        (["1.0", "2", ""], ["1.0", "2", None]),
        (["1.0", "2.5"], ["1.0", "2.5"]),
        (["1.0", "NA"], ["1.0", "NA"]),
        (["007", "08.0"], ["007", "08.0"]),
        (["08.0", "1.0"], ["08.0", "1.0"]),
        (["", ""], [None, None]),
    ],
)
def test_classes_that_are_numbers_of_floats(told: list[str], expected: list[str | None], tmp_path: Path) -> None:
    lines = ["path,class", *(f"{k},{word}" for k, word in enumerate(told))]
    found = listing([csv(tmp_path / "t.csv", "\n".join(lines) + "\n")]).to_pylist()
    assert [row["class"] for row in found] == expected


def test_classes_of_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a", "b", "c"], "class": [3.0, float("nan"), 0.5]}), tmp_path / "t.parquet")
    assert [row["class"] for row in listing([str(tmp_path / "t.parquet")]).to_pylist()] == ["3", None, "0.5"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [{"bytes": b"x", "path": "a"}]}, "'image' of .* holds struct<.*>; give paths as text"),
        ({"path": [b"a"]}, "'path' of .* holds binary; give paths as text"),
        ({"path": ["a"], "class": [["a"]]}, "'class' of .* holds list<.*>; give text or numbers"),
        ({"path": ["a", "a"], "mask": ["b", "c"]}, "gives a two masks, .*b and .*c; give one"),
    ],
)
def test_columns_that_cannot_be_used(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(xcam.InputError, match=message):
        listing([str(tmp_path / "t.parquet")])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"path;class\na;b\n", "its columns: path;class; separate them by commas"),
        (b"file,class\na,b\n", "its columns: file, class; name the pictures in a column path"),
        (b"path,path\na,b\n", "has 2 columns 'path'"),
        ("path\nü\n".encode("latin-1"), "invalid UTF8 data"),
    ],
)
def test_text_that_is_no_table(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(xcam.InputError, match=message):
        listing([str(tmp_path / "t.csv")])


def test_no_member_of_a_shard_is_lost(tmp_path: Path) -> None:
    members: list[tuple[str, bytes | str]] = [
        ("a.jpg", b"1"), ("a.JPG", b"22"), ("a.cls", b"cat\n"), ("a.jpg", b"333"), ("h.jpg", "a.jpg"),
        ("../u.jpg", b"4444"), ("../u.cls", b""), ("b.x.jpg", b"5"), ("b.y.jpg", b"6"), ("b.cls", b"7\r\n"),
    ]  # fmt: skip
    shard = packed(tmp_path / "a.tar", members)
    found = listing([shard]).to_pylist()
    names = ["a.jpg", "a.JPG", "a.jpg", "h.jpg", "../u.jpg", "b.x.jpg", "b.y.jpg"]
    assert [row["path"] for row in found] == [f"{shard}/{name}" for name in names]
    assert [row["class"] for row in found] == [None, "cat", None, None, None, "7", "7"]
    data = [storage.read(row["file"], row["offset"], row["length"]) for row in found]
    assert data == [b"1", b"22", b"333", b"333", b"4444", b"5", b"6"]


def test_a_shard_that_is_damaged_in_the_middle(tmp_path: Path) -> None:
    shard = Path(packed(tmp_path / "a.tar", [(f"{k}.jpg", b"x") for k in range(4)]))
    data = bytearray(shard.read_bytes())
    data[2 * 1024 + 150] ^= 0xFF  # the checksum of the third header
    shard.write_bytes(data)
    with pytest.raises(xcam.InputError, match=r"cannot read .*a.tar: ReadError: damaged at byte 2048"):
        listing([str(shard)])


@pytest.mark.parametrize("size", [(1600, 1597), (1597, 1600)])
def test_a_picture_that_is_nearly_square_keeps_its_size(size: tuple[int, int]) -> None:
    data = cv2.imencode(".jpg", np.zeros((*size, 3), np.uint8))[1].tobytes()
    assert decoded(data, "p", 224)[1] == size
