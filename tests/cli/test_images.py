"""Images and annotations named on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xcam import InputError
from xcam.images import reading
from xcam.models import demo
from xcam_cli.images import read_annotations

EVALUATE = ["evaluate", "-b", "onnx", "-m", "demo", "--no-floor", "--measure", "energy", "--json"]


def csv(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_two_spellings_of_a_path_keep_both_boxes(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p/s0.png").write_bytes(demo.image_paths()[0].read_bytes())
    height, width, _ = reading.read(tmp_path / "p/s0.png").shape
    halves = f"./p/s0.png,0,0,64,{height}", f"p/s0.png,64,0,{width},{height}"
    (one,) = read_annotations(csv(tmp_path / "t.csv", "path,x0,y0,x1,y1", *halves)).values()
    assert one.boxes == [[0, 0, 64, height], [64, 0, width, height]]
    for arguments in ([], ["p/s0.png"], ["p/../p/s0.png"]):
        document = json.loads(run(*EVALUATE, "--table", "t.csv", *arguments).out)
        (row,) = document["images"]
        assert row["values"]["gradcam"]["energy"] == pytest.approx(1), "both halves are all of it"


def test_two_masks_of_an_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"two masks for a.png, .*m.png and .*n.png; keep one"):
        read_annotations(csv(tmp_path / "t.csv", "path,mask", "./a.png,m.png", "a.png,n.png"))


@pytest.mark.parametrize(
    ("table", "arguments", "message"),
    [
        ("path,x0,y0,x1,y1\nmemory://p/s4.png,1,1,2,2\n", [], "memory://p/s4.png is not a local file"),
        ("path,mask\na.png,s3://b/m.png\n", [], "s3://b/m.png is not a local file; copy it to this machine"),
        ("path,mask\na.png,m.png\n", ["gs://b/*.png"], "gs://b/*.png is not a local file"),
    ],
)
def test_remote_paths_are_refused_as_written(
    run: Callable[..., Any], tmp_path: Path, table: str, arguments: list[str], message: str
) -> None:
    (tmp_path / "t.csv").write_text(table)
    result = run(*EVALUATE, "--table", "t.csv", *arguments)
    assert result.status == 2
    assert message in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("names", ["xmin,ymin,xmax,ymax", "X,Y,W,H"])
def test_boxes_with_other_column_names_are_refused_in_one_line(
    run: Callable[..., Any], tmp_path: Path, names: str
) -> None:
    csv(tmp_path / "t.csv", f"path,{names}", "a.png,1,1,2,2")
    result = run(*EVALUATE, "--table", "t.csv")
    assert result.status == 2
    assert "t.csv has neither boxes nor masks; give it the columns x0, y0, x1, y1, or mask; " in result.err
    assert f"the columns {names.lower().replace(',', ', ')}, which are not read" in result.err
    assert result.err.count("\n") == 1


def test_singular_and_plural(run: Callable[..., Any], tmp_path: Path) -> None:
    arguments = ["batch", "-b", "onnx", "-m", "demo", "-o", "out"]
    assert run(*arguments, demo.image_paths()[0]).out.splitlines()[0] == "1 image"
    arguments[-1] = "two"
    assert run(*arguments, *demo.image_paths()[:2]).out.splitlines()[0] == "2 images"


def test_overlays_of_earlier_runs_are_left_out_and_counted(run: Callable[..., Any], tmp_path: Path) -> None:
    for k, path in enumerate(demo.image_paths()[:2]):
        (tmp_path / f"{k}.png").write_bytes(path.read_bytes())
    names = ["0.png", "1.png"]
    assert run("-b", "onnx", "-m", "demo", *names).err == ""
    every = sorted(path.name for path in tmp_path.glob("*.*"))
    assert every == ["0.cam.jpg", "0.png", "1.cam.jpg", "1.png"]
    message = "left out 2 overlays of earlier runs (0.cam.jpg, 1.cam.jpg); name an overlay alone to explain it"

    again = run("-b", "onnx", "-m", "demo", "--json", *every)
    assert (again.status, again.err) == (0, f"xcam: {message}\n")
    assert [row["image"] for row in json.loads(again.out)] == names

    compared = run("compare", "-m", "onnx:demo", "-m", "onnx:demo", "--json", "*.*")
    assert (compared.status, compared.err) == (0, f"xcam: {message}\n")
    assert [row["image"] for row in json.loads(compared.out)["images"]] == names

    evaluated = run(*EVALUATE[:-3], "--measure", "deletion", "--json", ".")
    assert (evaluated.status, evaluated.err) == (0, f"xcam: {message}\n")
    assert len(json.loads(evaluated.out)["images"]) == 2

    batch = run("batch", "-b", "onnx", "-m", "demo", "-o", "out", "--json", ".")
    assert (batch.status, batch.err) == (0, f"xcam: warning: {message}\n")
    assert json.loads(batch.out)["images"] == 2

    assert run("-b", "onnx", "-m", "demo", "0.cam.jpg").err == ""
