"""A set of images becomes a table: its content, requests that cannot be met, and warnings."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
import warnings
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import xcam
from sets import BROKEN, DEMO, SmallModel, read_rows, write_csv
from xcam.dataset.output import Output
from xcam.images import reading


def test_rows_have_the_values_of_explain(mixed_folder: Path, tmp_path: Path) -> None:
    done = xcam.batch(**DEMO, inputs=str(mixed_folder), out=tmp_path / "out", part=7, measures=["increase"])
    assert (done.images, done.failed) == (20, 2)
    assert sorted(os.listdir(done.table)) == [f"part-{k:05d}.parquet" for k in range(3)]
    table_rows = read_rows(tmp_path / "out")
    assert [row["path"] for row in table_rows] == sorted(str(path) for path in mixed_folder.iterdir())
    model = xcam.load("demo", "onnx")
    for row in table_rows:
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
def test_a_table_with_classes_boxes_and_masks(mixed_folder: Path, tmp_path: Path) -> None:
    good = [path for path in sorted(mixed_folder.iterdir()) if path.read_bytes() != BROKEN][:4]
    model = xcam.load("demo", "onnx")
    truth = [xcam.explain(model, path, target=k) for k, path in enumerate(good)]
    cv2.imwrite(str(tmp_path / "mask.png"), np.pad(np.full((64, 128), 255, np.uint8), ((64, 0), (0, 0))))
    lines = [
        ["path", "class", "x0", "y0", "x1", "y1", "mask"],
        [os.path.relpath(good[0], tmp_path), truth[0].label, 0, 0, 64, 128, ""],
        [
            os.path.relpath(good[0], tmp_path),
            truth[0].label,
            64,
            0,
            128,
            128,
            "",
        ],  # together with the first: the whole image
        [good[1], truth[1].label, 0, 0, 32, 128, ""],
        [good[2], truth[2].label, "", "", "", "", "mask.png"],
        [good[3], truth[3].label, 0, 0, 500, 20, ""],
    ]
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows(lines)
    xcam.batch(**DEMO, inputs=[str(tmp_path / "t.csv")], out=tmp_path / "out", target="@class", measures=["energy"])
    table_rows = read_rows(tmp_path / "out")
    assert [row["target_index"] for row in table_rows] == [0, 1, 2, None]
    assert [row["class"] for row in table_rows] == [e.label for e in truth]
    assert [row["correct"] for row in table_rows[:3]] == [row["prediction"] == row["class"] for row in table_rows[:3]]
    heat = [e.heatmap for e in truth]
    inside = [heat[0].sum(), heat[1][:, :32].sum(), heat[2][64:].sum()]
    for row, share, whole in zip(table_rows, inside, heat, strict=False):
        expected = share / whole.sum() if whole.any() else 0
        assert row["energy"] == pytest.approx(expected, abs=2e-3)
    assert any(whole.any() for whole in heat[:3])
    assert "0, 0, 500, 20" in table_rows[3]["error"]
    assert "128×128" in table_rows[3]["error"]


def test_the_same_images_in_a_folder_a_pattern_a_table_and_a_shard(mixed_folder: Path, tmp_path: Path) -> None:
    paths = sorted(mixed_folder.iterdir())
    pq.write_table(pa.table({"image": [str(p) for p in paths]}), tmp_path / "t.parquet")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for k, path in enumerate(paths):
            for name, data in ((path.name, path.read_bytes()), (f"{path.stem}.cls", str(k % 6).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    tables = []
    for k, name in enumerate(
        [str(mixed_folder), f"{mixed_folder}/*.jpg", str(tmp_path / "t.parquet"), str(tmp_path / "a.tar")]
    ):
        xcam.batch(**DEMO, inputs=name, out=tmp_path / f"out{k}")
        tables.append(pq.read_table(tmp_path / f"out{k}/table"))
    shared = ["prediction", "score", "map"]
    assert all(table.select(shared).equals(tables[0].select(shared)) for table in tables[1:])
    assert tables[0].equals(tables[1])
    assert tables[3]["path"].to_pylist() == [f"{tmp_path / 'a.tar'}/{path.name}" for path in paths]
    assert tables[3]["class"].to_pylist() == [str(k % 6) for k in range(20)]


def test_overlays_and_rivals(mixed_folder: Path, tmp_path: Path) -> None:
    first = sorted(str(path) for path in mixed_folder.iterdir() if path.read_bytes() != BROKEN)[0]
    xcam.batch(**DEMO, inputs=first, out=tmp_path / "out", overlays={"alpha": 1.0}, rivals=True, maps=False)
    (row,) = read_rows(tmp_path / "out")
    model = xcam.load("demo", "onnx")
    one, other = xcam.explain(model, first, target=["top2"][0])
    assert (row["target"], row["rival"]) == (one.label, other.label)
    assert row["rival_correlation"] == pytest.approx(
        np.corrcoef(one.positive.ravel(), other.positive.ravel())[0, 1], abs=1e-3
    )
    assert "map" not in row
    (drawn,) = (tmp_path / "out" / "overlays").iterdir()
    assert drawn.name == f"00000000-{Path(first).stem}.cam.jpg"
    assert np.abs(reading.read(drawn).astype(int) - one.overlay(alpha=1.0)).mean() < 8  # a JPEG of jet


def test_options_of_load_do_not_apply_to_a_loaded_model(mixed_folder: Path, tmp_path: Path) -> None:
    model = xcam.load("demo", "onnx")
    for options in ({"load_options": {"preprocess": "unit"}}, {"backend": "keras"}):
        with pytest.raises(xcam.InputError, match=r"to a loaded model; give them to xcam\.load"):
            xcam.batch(model, str(mixed_folder), out=tmp_path / "out", **options)
    with pytest.raises(
        xcam.InputError, match=r"cannot load an object of type object here; give a path, a name, or xcam\.load"
    ):
        xcam.batch(object(), str(mixed_folder), out=tmp_path / "out")


def test_a_single_class_has_no_rival(mixed_folder: Path, tmp_path: Path) -> None:
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)
    model = xcam.load(nn.Sequential(*layers), preprocess="unit", size=(16, 16))
    xcam.batch(model, str(mixed_folder), out=tmp_path / "out", rivals=True)
    good = [row for row in read_rows(tmp_path / "out") if row["error"] is None]
    assert len(good) == 18
    assert {row["rival"] for row in good} == {None}


def test_a_target_that_fails_on_every_image_ends_the_run(mixed_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(xcam.InputError, match=r"has no class 'zebra'|unknown class 'zebra'"):
        xcam.batch(**DEMO, inputs=str(mixed_folder), out=tmp_path / "out", target="zebra")
    assert not list((tmp_path / "out/table").glob("*.parquet"))


def test_a_class_out_of_range_does_not_bind_the_next_run(mixed_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(xcam.InputError, match="unknown class 99: there are 6 classes; give 0 to 5"):
        xcam.batch(**DEMO, inputs=str(mixed_folder), out=tmp_path / "out", target=99, part=2)
    assert not list((tmp_path / "out/table").glob("*.parquet"))
    assert xcam.batch(**DEMO, inputs=str(mixed_folder), out=tmp_path / "out", target=5, part=2).failed == 2


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_a_class_out_of_range_ends_the_run(batch: int, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(xcam.InputError, match=r"^unknown class 99: there are 6 classes"):
        xcam.batch(**DEMO, inputs=str(folder), out=tmp_path / "out", target=99, batch=batch)
    assert not Output(str(tmp_path / "out")).done()


def test_a_set_without_any_image_that_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("not an image")
    with pytest.raises(xcam.InputError, match=r"none of the 1 images could be explained: .*a.jpg"):
        xcam.batch(**DEMO, inputs=str(tmp_path / "a.jpg"), out=tmp_path / "out")


def test_urls_that_fsspec_opens(mixed_folder: Path, tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in sorted(mixed_folder.iterdir()):
        memory.pipe_file(f"/in/{path.name}", path.read_bytes())
    xcam.batch(**DEMO, inputs="memory://in", out="memory://out", part=9)
    xcam.batch(**DEMO, inputs=str(mixed_folder), out=tmp_path / "out", part=9)
    local, remote = (
        pq.read_table(tmp_path / "out/table"),
        pa.concat_tables(
            pq.read_table(io.BytesIO(memory.cat_file(f"/out/table/part-{k:05d}.parquet"))) for k in range(3)
        ),
    )
    shared = [name for name in local.column_names if name not in ("path", "error")]
    assert local.select(shared).equals(remote.select(shared))
    assert remote["path"][0].as_py() == "memory:///in/00000.jpg"
    assert json.loads(memory.cat_file("/out/run.json"))["count"] == 20


@pytest.mark.parametrize("kind", ["boxes", "mask", "nothing"])
def test_a_warning_without_any_box_or_mask(kind: str, tmp_path: Path) -> None:
    image = np.full((8, 9, 3), 99, np.uint8)
    for name in "ab":
        cv2.imwrite(str(tmp_path / f"{name}.png"), image)
    cv2.imwrite(str(tmp_path / "m.png"), image)
    lines = {"boxes": ",1,1,3,3,", "mask": ",,,,,m.png", "nothing": ",,,,,"}
    table = write_csv(tmp_path / "t.csv", "path,x0,y0,x1,y1,mask", f"a.png{lines['nothing']}", f"b.png{lines[kind]}")

    def batch(*measures: str) -> list[str]:
        with warnings.catch_warnings(record=True) as records:
            warnings.simplefilter("always", xcam.XcamWarning)
            xcam.batch(
                SmallModel(),
                table,
                out=tmp_path / "-".join(measures),
                measures=measures,
                layer="features",
                target="cat",
            )
        return [str(warning.message) for warning in records]

    empty = "no image has a box or a mask, so pointing and energy will be empty; give a table with the columns x0, "
    assert [text.startswith(empty) for text in batch("pointing", "complexity", "energy")] == [True] * (
        kind == "nothing"
    )
    assert not batch("complexity")
