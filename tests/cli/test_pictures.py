"""The pictures that a command line names, and what a table says of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xcam import InputError
from xcam.images import reading
from xcam.models import demo
from xcam_cli.pictures import told

EVALUATE = ["evaluate", "-b", "onnx", "-m", "demo", "--no-floor", "--measure", "energy", "--json"]


def csv(place: Path, *lines: str) -> str:
    place.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(place)


def test_two_spellings_of_a_picture_keep_both_boxes(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p/s0.png").write_bytes(demo.image_paths()[0].read_bytes())
    height, width, _ = reading.read(tmp_path / "p/s0.png").shape
    halves = f"./p/s0.png,0,0,64,{height}", f"p/s0.png,64,0,{width},{height}"
    (one,) = told(csv(tmp_path / "t.csv", "path,x0,y0,x1,y1", *halves)).values()
    assert one.boxes == [[0, 0, 64, height], [64, 0, width, height]]
    for words in ([], ["p/s0.png"], ["p/../p/s0.png"]):
        said = json.loads(run(*EVALUATE, "--table", "t.csv", *words).out)
        (picture,) = said["images"]
        assert picture["values"]["gradcam"]["energy"] == pytest.approx(1), "both halves are all of it"


def test_two_masks_of_a_picture_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"two masks, .*m.png and .*n.png; give one"):
        told(csv(tmp_path / "t.csv", "path,mask", "./a.png,m.png", "a.png,n.png"))


@pytest.mark.parametrize(
    ("table", "words", "said"),
    [
        ("path,x0,y0,x1,y1\nmemory://p/s4.png,1,1,2,2\n", [], "memory://p/s4.png is not a file of this machine"),
        ("path,mask\na.png,s3://b/m.png\n", [], "s3://b/m.png is not a file of this machine; copy it here"),
        ("path,mask\na.png,m.png\n", ["gs://b/*.png"], "gs://b/*.png is not a file of this machine"),
    ],
)
def test_places_elsewhere_are_told_as_they_are_written(
    run: Callable[..., Any], tmp_path: Path, table: str, words: list[str], said: str
) -> None:
    (tmp_path / "t.csv").write_text(table)
    result = run(*EVALUATE, "--table", "t.csv", *words)
    assert result.status == 2
    assert said in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("names", ["xmin,ymin,xmax,ymax", "X,Y,W,H"])
def test_boxes_under_other_names_are_told_in_one_line(run: Callable[..., Any], tmp_path: Path, names: str) -> None:
    csv(tmp_path / "t.csv", f"path,{names}", "a.png,1,1,2,2")
    result = run(*EVALUATE, "--table", "t.csv")
    assert result.status == 2
    assert "t.csv does not say where the objects are; it needs columns x0, y0, x1, y1, or mask; " in result.err
    assert f"the columns {names.lower().replace(',', ', ')}, which are not read" in result.err
    assert result.err.count("\n") == 1


def test_one_picture_is_no_plural(run: Callable[..., Any], tmp_path: Path) -> None:
    words = ["batch", "-b", "onnx", "-m", "demo", "-o", "out"]
    assert run(*words, demo.image_paths()[0]).out.splitlines()[0] == "1 picture"
    words[-1] = "two"
    assert run(*words, *demo.image_paths()[:2]).out.splitlines()[0] == "2 pictures"
