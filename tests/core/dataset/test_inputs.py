"""The listing of images: tables and shards in many forms, and messages for those that cannot be read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import xcam
from sets import write_csv, write_tar
from systems import named_pipes
from xcam.dataset import storage
from xcam.dataset.inputs import listing


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: [], "no image is named"),
        (lambda t: [str(t)], ".* contains no images; names of images end in .jpg"),
        (lambda t: [str(t / "none")], "no such file or folder"),
        (lambda t: [f"{t}/*.jpg"], "no file matches .*; check the pattern"),
        (lambda t: [table(t, "file,class", "a,b")], "has no column 'path'; its columns: file, class"),
        (lambda t: [table(t, "path,x0,y0", "a,1,2")], "has the columns x0, y0; a box needs x0, y0, x1, y1"),
        (lambda t: [table(t, "path,x0,y0,x1,y1", "a,5,0,5,9")], "is 5, 0, 5, 9; give x0 < x1 and y0 < y1"),
        (lambda t: [table(t, "path,x0,y0,x1,y1", "a,z,0,5,9")], "row 1 of .* give four numbers"),
        (lambda t: [table(t, "path,class", "a,cat", "a,dog")], "has two classes for a, cat and dog; keep one"),
        (lambda t: [table(t, "path")], "has no rows"),
        (lambda t: [broken(t, "x.parquet")], "cannot read .*x.parquet"),
        (lambda t: [broken(t, "x.tar")], "cannot read .*x.tar.* give an uncompressed .tar"),
    ],
)
def test_inputs_that_cannot_be_used(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(xcam.InputError, match=message):
        listing(make(tmp_path))


def table(folder: Path, *lines: str) -> str:
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "t.csv")


def broken(folder: Path, name: str) -> str:
    (folder / name).write_bytes(b"not of this kind")
    return str(folder / name)


def test_a_damaged_parquet_table_is_an_error(tmp_path: Path) -> None:
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"path": [f"{k}.jpg" for k in range(100)]}), table, compression="zstd")
    data = bytearray(table.read_bytes())
    data[60:160] = bytes(100)
    table.write_bytes(data)
    with pytest.raises(xcam.InputError, match=r"cannot read .*t.parquet: OSError: .*; give a CSV"):
        listing([str(table)])


@named_pipes
@pytest.mark.parametrize(("name", "kind"), [("a.tar", "a shard"), ("t.csv", "a table"), ("t.parquet", "a table")])
def test_a_pipe_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(xcam.InputError, match=rf"{name}: it is not a regular file; give {kind}"):
        listing([str(tmp_path / name)])


def test_paths_in_tables_may_be_urls_of_files(tmp_path: Path) -> None:
    lines = ["path,mask", f"file://{tmp_path}/a.png,local://{tmp_path}/m.png", f"{tmp_path}/./a.png, "]
    (row,) = listing([write_csv(tmp_path / "t.csv", "\n".join(lines))]).to_pylist()
    assert (row["path"], row["mask"]) == (f"{tmp_path}/a.png", f"{tmp_path}/m.png")


def test_classes_keep_their_spelling(tmp_path: Path) -> None:
    text = "﻿path,class,x0,y0,x1,y1\n007,007,1,2,3,4\nb,NA,,,,\nc,nan,NA,NA,NA,NA\nd,,1,2,3,4\n"
    result = listing([write_csv(tmp_path / "t.csv", text)]).to_pylist()
    assert [Path(row["path"]).name for row in result] == ["007", "b", "c", "d"]
    assert [row["class"] for row in result] == ["007", "NA", "nan", None]
    assert [row["boxes"] for row in result] == [[[1, 2, 3, 4]], [], [], [[1, 2, 3, 4]]]


@pytest.mark.parametrize(
    ("labels", "expected"),
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
def test_integer_classes_in_the_notation_of_floats(
    labels: list[str], expected: list[str | None], tmp_path: Path
) -> None:
    lines = ["path,class", *(f"{k},{label}" for k, label in enumerate(labels))]
    result = listing([write_csv(tmp_path / "t.csv", "\n".join(lines) + "\n")]).to_pylist()
    assert [row["class"] for row in result] == expected


def test_classes_of_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a", "b", "c"], "class": [3.0, float("nan"), 0.5]}), tmp_path / "t.parquet")
    assert [row["class"] for row in listing([str(tmp_path / "t.parquet")]).to_pylist()] == ["3", None, "0.5"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [{"bytes": b"x", "path": "a"}]}, "'image' of .* has the type struct<.*>; give paths as text"),
        ({"path": [b"a"]}, "'path' of .* has the type binary; give paths as text"),
        ({"path": ["a"], "class": [["a"]]}, "'class' of .* has the type list<.*>; give text or numbers"),
        ({"path": ["a", "a"], "mask": ["b", "c"]}, "has two masks for a, .*b and .*c; keep one"),
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
        (b"file,class\na,b\n", "its columns: file, class; give the paths of the images in a column path"),
        (b"path,path\na,b\n", "has 2 columns 'path'"),
        ("path\nü\n".encode("latin-1"), "invalid UTF8 data"),
    ],
)
def test_text_that_is_not_a_table(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(xcam.InputError, match=message):
        listing([str(tmp_path / "t.csv")])


def test_no_member_of_a_shard_is_lost(tmp_path: Path) -> None:
    members: list[tuple[str, bytes | str]] = [
        ("a.jpg", b"1"), ("a.JPG", b"22"), ("a.cls", b"cat\n"), ("a.jpg", b"333"), ("h.jpg", "a.jpg"),
        ("../u.jpg", b"4444"), ("../u.cls", b""), ("b.x.jpg", b"5"), ("b.y.jpg", b"6"), ("b.cls", b"7\r\n"),
    ]  # fmt: skip
    shard = write_tar(tmp_path / "a.tar", members)
    result = listing([shard]).to_pylist()
    names = ["a.jpg", "a.JPG", "a.jpg", "h.jpg", "../u.jpg", "b.x.jpg", "b.y.jpg"]
    assert [row["path"] for row in result] == [f"{shard}/{name}" for name in names]
    assert [row["class"] for row in result] == [None, "cat", None, None, None, "7", "7"]
    data = [storage.read(row["file"], row["offset"], row["length"]) for row in result]
    assert data == [b"1", b"22", b"333", b"333", b"4444", b"5", b"6"]


def test_a_shard_that_is_damaged_in_the_middle(tmp_path: Path) -> None:
    shard = Path(write_tar(tmp_path / "a.tar", [(f"{k}.jpg", b"x") for k in range(4)]))
    data = bytearray(shard.read_bytes())
    data[2 * 1024 + 150] ^= 0xFF  # the checksum of the third header
    shard.write_bytes(data)
    with pytest.raises(xcam.InputError, match=r"cannot read .*a.tar: ReadError: damaged at byte 2048"):
        listing([str(shard)])


def test_two_spellings_of_a_path_are_one_image(tmp_path: Path) -> None:
    lines = ["./p/a.png,1,1,2,2", "p/a.png,3,3,4,4", "p//../p/a.png,5,5,6,6", f"{tmp_path}/p/a.png,7,7,8,8"]
    result = listing([write_csv(tmp_path / "t.csv", "path,x0,y0,x1,y1", *lines)]).to_pylist()
    assert [row["boxes"] for row in result] == [[[k, k, k + 1, k + 1] for k in (1, 3, 5, 7)]]
    same = write_csv(tmp_path / "m.csv", "path,mask", "./a.png,./m.png", "a.png,m.png")
    assert len(listing([same])) == 1
    two = write_csv(tmp_path / "m.csv", "path,mask", "./a.png,m.png", "a.png,n.png")
    with pytest.raises(xcam.InputError, match=r"has two masks for a.png, .*m.png and .*n.png; keep one"):
        listing([two])


def test_urls_are_not_normalized(tmp_path: Path) -> None:
    lines = ["s3://b//a.png,1,1,2,2", "s3://b/a.png,3,3,4,4"]
    result = listing([write_csv(tmp_path / "t.csv", "path,x0,y0,x1,y1", *lines)]).to_pylist()
    assert [row["path"] for row in result] == ["s3://b//a.png", "s3://b/a.png"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_blanks_around_paths_and_headers_in_capitals(kind: str, tmp_path: Path) -> None:
    columns = {
        "Path": [" a.png", "b.png "],
        "X0": [1, 2],
        "Y0": [1, 2],
        "X1": [3, 4],
        "Y1": [3, 4],
        " MASK" if kind == "csv" else "MASK": [" m.png ", "  "],
        "Other": ["x", "y"],
    }
    path = tmp_path / f"t.{kind}"
    if kind == "csv":
        write_csv(path, ",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True)))
    else:
        pq.write_table(pa.table(dict(reversed(columns.items()))), path)
    result = listing([str(path)]).to_pylist()
    assert [row["path"] for row in result] == [f"{tmp_path}/a.png", f"{tmp_path}/b.png"]
    assert [row["boxes"] for row in result] == [[[1, 1, 3, 3]], [[2, 2, 4, 4]]]
    assert [row["mask"] for row in result] == [f"{tmp_path}/m.png", None]


def test_a_path_of_blanks_is_empty(tmp_path: Path) -> None:
    with pytest.raises(xcam.InputError, match=r"row 2 of .* has an empty path"):
        listing([write_csv(tmp_path / "t.csv", "path,class", "a.png,1", "  ,1")])


@pytest.mark.parametrize("names", ["xmin,ymin,xmax,ymax", "x,y,w,h", "X,Y,Width,Height", "left,top,right,bottom"])
def test_a_warning_about_boxes_with_other_names(names: str, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", f"path,{names}", "a.png,1,1,2,2")
    message = rf"t.csv has the columns {names.lower().replace(',', ', ')}, which are not read; a box is read from x0, y0, x1"
    with pytest.warns(xcam.XcamWarning, match=message):
        listing([table])
    write_csv(tmp_path / "t.csv", f"path,{names},mask", "a.png,1,1,2,2,m.png")
    listing([table])  # a column of masks was chosen instead


def test_overlays_of_earlier_runs_are_left_out_and_counted(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.cam.jpg", "b.png", "b.cam.1.jpg", "c.cam.jpg"):
        (tmp_path / name).write_bytes(b"")
    every = [str(tmp_path / name) for name in ("a.jpg", "b.png", "c.cam.jpg")]
    for inputs in ([str(tmp_path)], [f"{tmp_path}/*"], sorted(map(str, tmp_path.iterdir()))):
        with pytest.warns(xcam.XcamWarning, match=r"left out 2 overlays of earlier runs \(a.cam.jpg, b.cam.1.jpg\)"):
            rows = listing(inputs)
        assert rows["path"].to_pylist() == every
    assert listing([str(tmp_path / "a.cam.jpg")])["path"].to_pylist() == [str(tmp_path / "a.cam.jpg")]
