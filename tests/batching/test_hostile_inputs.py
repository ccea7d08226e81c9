"""What users and files bring that nobody expects: it is refused in a line, or a row, and never a wrong table."""

from __future__ import annotations

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
from xcam.batching import storage
from xcam.batching.inputs import listing
from xcam.batching.output import Output, WriteError
from xcam.batching.worker import decoded

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
    with pytest.raises(xcam.InputError, match="no layer 'typo'"):
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
