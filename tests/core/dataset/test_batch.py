"""A set of pictures becomes a table: what is in it, and what happens when something is wrong."""

from __future__ import annotations

import csv
import errno
import io
import json
import multiprocessing
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
from sets import BROKEN, write_set
from xcam.dataset import storage
from xcam.dataset.inputs import listing
from xcam.dataset.worker import decoded
from xcam.images import reading

DEMO: dict[str, Any] = {"model": "demo", "backend": "onnx"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("set")
    write_set(place, 20, broken=2)
    return place


def rows(out: Path | str) -> list[dict[str, Any]]:
    return pq.read_table(f"{out}/table").to_pylist()


def test_rows_are_what_explain_gives(folder: Path, tmp_path: Path) -> None:
    done = xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out", part=7, measures=["increase"])
    assert (done.pictures, done.failed) == (20, 2)
    assert sorted(os.listdir(done.table)) == [f"part-{k:05d}.parquet" for k in range(3)]
    found = rows(tmp_path / "out")
    assert [row["path"] for row in found] == sorted(str(path) for path in folder.iterdir())
    model = xcam.load("demo", "onnx")
    for row in found:
        if row["error"] is not None:
            assert Path(row["path"]).read_bytes() == BROKEN
            assert "empty, truncated, or not an image" in row["error"]
            assert row["map"] is None
            continue
        e = xcam.explain(model, row["path"])
        assert (row["prediction"], row["target_index"], row["class"]) == (e.label, e.index, None)
        assert row["score"] == pytest.approx(e.score, rel=1e-5)
        assert row["probability"] == pytest.approx(e.scores.max(), rel=1e-4)
        assert (row["map_height"], row["map_width"]) == e.cam.shape
        np.testing.assert_allclose(row["map"], e.cam.ravel(), atol=1e-5)
        assert row["zero"] == (not e.positive.any())
        assert row["increase"] in (0, 1)


@pytest.mark.filterwarnings("ignore::xcam.ZeroHeatmapWarning")
def test_a_table_tells_classes_boxes_and_masks(folder: Path, tmp_path: Path) -> None:
    good = [path for path in sorted(folder.iterdir()) if path.read_bytes() != BROKEN][:4]
    model = xcam.load("demo", "onnx")
    truth = [xcam.explain(model, path, target=k) for k, path in enumerate(good)]
    cv2.imwrite(str(tmp_path / "mask.png"), np.pad(np.full((64, 128), 255, np.uint8), ((64, 0), (0, 0))))
    lines = [
        ["path", "class", "x0", "y0", "x1", "y1", "mask"],
        [os.path.relpath(good[0], tmp_path), truth[0].label, 0, 0, 64, 128, ""],
        [os.path.relpath(good[0], tmp_path), truth[0].label, 64, 0, 128, 128, ""],  # with the first: all of it
        [good[1], truth[1].label, 0, 0, 32, 128, ""],
        [good[2], truth[2].label, "", "", "", "", "mask.png"],
        [good[3], truth[3].label, 0, 0, 500, 20, ""],
    ]
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows(lines)
    xcam.batch(**DEMO, inputs=[str(tmp_path / "t.csv")], out=tmp_path / "out", target="@class", measures=["energy"])
    found = rows(tmp_path / "out")
    assert [row["target_index"] for row in found] == [0, 1, 2, None]
    assert [row["class"] for row in found] == [e.label for e in truth]
    assert [row["correct"] for row in found[:3]] == [row["prediction"] == row["class"] for row in found[:3]]
    heat = [e.heatmap for e in truth]
    inside = [heat[0].sum(), heat[1][:, :32].sum(), heat[2][64:].sum()]
    for row, share, whole in zip(found, inside, heat, strict=False):
        expected = share / whole.sum() if whole.any() else 0
        assert row["energy"] == pytest.approx(expected, abs=2e-3)
    assert any(whole.any() for whole in heat[:3])
    assert "0, 0, 500, 20" in found[3]["error"]
    assert "128×128" in found[3]["error"]


def test_the_same_pictures_in_a_folder_a_pattern_a_table_and_a_shard(folder: Path, tmp_path: Path) -> None:
    paths = sorted(folder.iterdir())
    pq.write_table(pa.table({"image": [str(p) for p in paths]}), tmp_path / "t.parquet")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for k, path in enumerate(paths):
            for name, data in ((path.name, path.read_bytes()), (f"{path.stem}.cls", str(k % 6).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    tables = []
    for k, word in enumerate([str(folder), f"{folder}/*.jpg", str(tmp_path / "t.parquet"), str(tmp_path / "a.tar")]):
        xcam.batch(**DEMO, inputs=word, out=tmp_path / f"out{k}")
        tables.append(pq.read_table(tmp_path / f"out{k}/table"))
    alike = ["prediction", "score", "map"]
    assert all(table.select(alike).equals(tables[0].select(alike)) for table in tables[1:])
    assert tables[0].equals(tables[1])
    assert tables[3]["path"].to_pylist() == [f"{tmp_path / 'a.tar'}/{path.name}" for path in paths]
    assert tables[3]["class"].to_pylist() == [str(k % 6) for k in range(20)]


def test_overlays_and_rivals(folder: Path, tmp_path: Path) -> None:
    first = sorted(str(path) for path in folder.iterdir() if path.read_bytes() != BROKEN)[0]
    xcam.batch(**DEMO, inputs=first, out=tmp_path / "out", pictures={"alpha": 1.0}, rivals=True, maps=False)
    (row,) = rows(tmp_path / "out")
    model = xcam.load("demo", "onnx")
    one, other = xcam.explain(model, first, target=["top2"][0])
    assert (row["target"], row["rival"]) == (one.label, other.label)
    assert row["rival_correlation"] == pytest.approx(
        np.corrcoef(one.positive.ravel(), other.positive.ravel())[0, 1], abs=1e-3
    )
    assert "map" not in row
    (drawn,) = (tmp_path / "out" / "pictures").iterdir()
    assert drawn.name == f"00000000-{Path(first).stem}.cam.jpg"
    assert np.abs(reading.read(drawn).astype(int) - one.overlay(alpha=1.0)).mean() < 8  # a JPEG of jet


def test_a_single_class_has_no_rival(folder: Path, tmp_path: Path) -> None:
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)
    model = xcam.load(nn.Sequential(*layers), preprocess="unit", size=(16, 16))
    xcam.batch(model, str(folder), tmp_path / "out", rivals=True)
    good = [row for row in rows(tmp_path / "out") if row["error"] is None]
    assert len(good) == 18
    assert {row["rival"] for row in good} == {None}


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    image = cv2.resize(noise, (2400, 1600), interpolation=cv2.INTER_CUBIC)
    data = cv2.imencode(".jpg", image)[1].tobytes()
    for least, shape in (
        (128, (200, 300)),
        (224, (400, 600)),
        (500, (800, 1200)),
        (900, (1600, 2400)),
        (1, (1600, 2400)),
    ):
        small, size = decoded(data, "p", least)
        assert (small.shape[:2], size) == (shape, (1600, 2400))
        whole = cv2.resize(image[..., ::-1], shape[::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(small.astype(int) - whole).mean() < 2
    turned = data[:2] + exif(6) + data[2:]
    assert (decoded(turned, "p", 224)[0].shape, decoded(turned, "p", 224)[1]) == ((600, 400, 3), (2400, 1600))


def exif(orientation: int) -> bytes:
    """An APP1 segment with nothing but the orientation."""
    tiff = (
        b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01" + bytes([0, orientation, 0, 0]) + bytes(4)
    )
    body = b"Exif\x00\x00" + tiff
    return b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body


def test_a_stopped_run_goes_on_and_gives_the_same_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "whole", part=6)
    write, written = storage.write, []

    def full(place: str, data: bytes) -> None:
        if "part-00002" in place:
            raise xcam.InputError(f"cannot write {place}: {os.strerror(errno.ENOSPC)}; choose another place")
        written.append(Path(place).name)
        write(place, data)

    monkeypatch.setattr(storage, "write", full)
    with pytest.raises(xcam.InputError, match="No space left"):
        xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out", part=6)
    assert written == ["run.json", "part-00000.parquet", "part-00001.parquet"]
    (tmp_path / "out/table/.part-00002.parquet.ab12").write_bytes(b"left by a killed run")
    monkeypatch.setattr(storage, "write", lambda place, data: (written.append(Path(place).name), write(place, data)))
    xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out", part=6)
    assert written[3:] == ["part-00002.parquet", "part-00003.parquet"]
    names = sorted(os.listdir(tmp_path / "whole/table"))
    assert sorted(os.listdir(tmp_path / "out/table")) == names
    for name in names:
        assert (tmp_path / "out/table" / name).read_bytes() == (tmp_path / "whole/table" / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"method": "layercam"}, "method is 'layercam', and was 'gradcam'"),
        ({"layer": "pool3"}, "layer is 'pool3', and was None"),
        ({"target": 1}, r"targets is \[1\], and was \[\]"),
        ({"model": "other.onnx", "backend": None}, "backend is None, and was 'onnx'; model is 'other.onnx'"),
        ({"inputs": "one"}, "count is 1, and was 20"),
    ],
)
def test_output_of_another_run_is_refused(change: dict[str, Any], what: str, folder: Path, tmp_path: Path) -> None:
    asked = {**DEMO, "inputs": str(folder), "out": tmp_path / "out"}
    xcam.batch(**asked)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}
    if change.get("inputs"):
        change = {"inputs": str(min(folder.iterdir()))}
    with pytest.raises(xcam.InputError, match=what):
        xcam.batch(**asked | change)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")} == before


def test_a_changed_model_file_is_another_run(folder: Path, tmp_path: Path) -> None:
    import onnx

    from xcam_onnx.demo import build

    model = build()[0] if isinstance(build(), tuple) else build()
    onnx.save(model, tmp_path / "m.onnx")
    asked = {"model": tmp_path / "m.onnx", "inputs": str(folder), "out": tmp_path / "out"}
    loading = {"preprocess": "tf"}
    xcam.batch(**asked, loading=loading)
    model.doc_string = "changed"
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(xcam.InputError, match="sha256 is "):
        xcam.batch(**asked, loading=loading)


def hold(out: str, ready: Any, go: Any) -> None:
    from xcam.dataset.output import Output

    with Output(out).held():
        ready.set()
        go.wait()  # until it is killed


def test_two_runs_on_one_output(folder: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, go = context.Event(), context.Event()
    other = context.Process(target=hold, args=(str(tmp_path / "out"), ready, go), daemon=True)
    other.start()
    assert ready.wait(300)
    with pytest.raises(xcam.InputError, match=r"another run is writing to .*; wait until it is done"):
        xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out")
    other.kill()  # a killed run lets go
    other.join()
    assert xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out").pictures == 20


def test_a_model_that_fails_on_every_picture_ends_the_run(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(xcam.InputError, match=r"has no class 'zebra'|no class 'zebra'"):
        xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out", target="zebra")
    assert not list((tmp_path / "out/table").glob("*.parquet"))


def test_a_wrong_class_binds_nobody(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(xcam.InputError, match="no class 99: the model has 6 classes, 0 to 5"):
        xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out", target=99, part=2)
    assert not list((tmp_path / "out/table").glob("*.parquet"))
    assert xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out", target=5, part=2).failed == 2


def test_parts_of_errors_prove_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve pictures fail in two runs, of which the second ends as the first: it is the model."""
    from xcam.dataset import worker

    def fail(*_: object, **__: object) -> None:
        raise xcam.ModelError("the model has had enough; give it a rest")

    monkeypatch.setattr(worker, "explain", fail)
    for _ in range(2):
        with pytest.raises(xcam.ModelError, match="had enough"):
            xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out", part=4, batch=4)
    assert len(list((tmp_path / "out/table").glob("*.parquet"))) < 5


def test_what_is_not_installed_ends_the_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of errors would count as done when it is installed."""

    def read(*_: object) -> bytes:
        raise xcam.BackendError("cannot open http://x/a.jpg: ImportError: aiohttp; install what it names")

    monkeypatch.setattr(storage, "read", read)
    with pytest.raises(xcam.BackendError, match="install what it names"):
        xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out")
    assert not list((tmp_path / "out/table").glob("*.parquet"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: [], "no picture is named"),
        (lambda t: [str(t)], "there is no picture in .*; pictures end in .jpg"),
        (lambda t: [str(t / "none")], "no such file or folder"),
        (lambda t: [f"{t}/*.jpg"], "no file is called"),
        (lambda t: [table(t, "file,class", "a,b")], "has no column 'path'; its columns: file, class"),
        (lambda t: [table(t, "path,x0,y0", "a,1,2")], "has the columns x0, y0; a box needs x0, y0, x1, y1"),
        (lambda t: [table(t, "path,x0,y0,x1,y1", "a,5,0,5,9")], "x0 < x1 and y0 < y1 are needed"),
        (lambda t: [table(t, "path,x0,y0,x1,y1", "a,z,0,5,9")], "row 1 of .* give four numbers"),
        (lambda t: [table(t, "path,class", "a,cat", "a,dog")], "gives a two classes, cat and dog"),
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
    (folder / name).write_bytes(b"nothing of the kind")
    return str(folder / name)


def test_nothing_that_is_a_picture(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no picture")
    with pytest.raises(xcam.InputError, match=r"none of the 1 pictures could be explained: .*a.jpg is not a picture"):
        xcam.batch(**DEMO, inputs=str(tmp_path / "a.jpg"), out=tmp_path / "out")


def test_places_that_fsspec_reaches(folder: Path, tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in sorted(folder.iterdir()):
        memory.pipe_file(f"/in/{path.name}", path.read_bytes())
    xcam.batch(**DEMO, inputs="memory://in", out="memory://out", part=9)
    xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out", part=9)
    here, there = (
        pq.read_table(tmp_path / "out/table"),
        pa.concat_tables(
            pq.read_table(io.BytesIO(memory.cat_file(f"/out/table/part-{k:05d}.parquet"))) for k in range(3)
        ),
    )
    alike = [name for name in here.column_names if name not in ("path", "error")]
    assert here.select(alike).equals(there.select(alike))
    assert there["path"][0].as_py() == "memory:///in/00000.jpg"
    assert json.loads(memory.cat_file("/out/run.json"))["count"] == 20
