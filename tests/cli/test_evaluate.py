"""`xcam evaluate` on the command line."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ground_truth import scenes_with_two
from systems import named_pipes
from xcam.images import writing
from xcam.models import demo
from xcam.models.demo import CLASSES

QUICK = ["--measure", "complexity", "--measure", "increase"]


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Return a folder with ten scenes, and a table with the box and the class of each scene's first shape."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    rows = ["path,class,x0,y0,x1,y1"]
    for k, scene in enumerate(scenes_with_two(10)):
        writing.write(folder / f"{k}.png", scene.image)
        y, x = np.nonzero(scene.shapes[0].mask)
        rows.append(f"{k}.png,{CLASSES[scene.shapes[0].label]},{x.min()},{y.min()},{x.max() + 1},{y.max() + 1}")
    (folder / "boxes.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def test_methods_are_ordered_by_their_mean_rank(run: Callable[..., Any], scenes: Path, tmp_path: Path) -> None:
    arguments = ["-b", "onnx", "-m", "demo", "--method", "eigencam", "--method", "gradcam"]
    arguments += ["--measure", "energy", "--measure", "complexity"]
    result = run("evaluate", *arguments, "--table", scenes / "boxes.csv", "--report", "trust.html")
    assert result.status == 0, result.err
    head, *_ = result.out.splitlines()
    assert head.split() == ["measure", "better", "gradcam", "eigencam", "random"]
    assert "gradcam: mean rank 1.0 of 3; better than random by 1 of 1 measure" in result.out
    energy = next(line for line in result.out.splitlines() if line.startswith("energy"))
    assert "] *" in energy
    assert "*" not in next(line for line in result.out.splitlines() if line.startswith("complexity")), (
        "an empty map's"
    )
    assert "wrote trust.html" in result.out
    assert "gradcam is best" in (tmp_path / "trust.html").read_text(encoding="utf-8")


def test_the_table_gives_class_and_location(run: Callable[..., Any], scenes: Path) -> None:
    arguments = ["-b", "onnx", "-m", "demo", "--no-floor", "--measure", "energy", "--json"]
    by_table = json.loads(run("evaluate", *arguments, "--table", scenes / "boxes.csv").out)
    wanted = [CLASSES[scene.shapes[0].label] for scene in scenes_with_two(10)]
    assert [row["target"] for row in by_table["images"]] == wanted
    assert by_table["table"][0]["mean"] > 0.5
    by_name = json.loads(
        run("evaluate", *arguments, "--table", scenes / "boxes.csv", scenes / "2.png", scenes / "0.png").out
    )
    assert [p["values"] for p in by_name["images"]] == [by_table["images"][k]["values"] for k in (2, 0)]
    other = CLASSES[scenes_with_two(1)[0].shapes[1].label]
    by_hand = json.loads(
        run("evaluate", *arguments, "-t", other, "--table", scenes / "boxes.csv", scenes / "0.png").out
    )
    assert by_hand["images"][0]["target"] == other
    assert by_hand["table"][0]["mean"] < 0.2, "the box is that of the other shape"


def test_masks_and_images_without_a_row(run: Callable[..., Any], scenes: Path) -> None:
    mask = np.zeros((128, 128, 3), np.uint8)
    mask[:, :64] = 255
    writing.write(scenes / "left.png", mask)
    (scenes / "masks.csv").write_text("image,mask\n1.png,left.png\n", encoding="utf-8")
    arguments = ["-b", "onnx", "-m", "demo", "--no-floor", "--measure", "energy", "--json"]
    document = json.loads(
        run("evaluate", *arguments, "--table", scenes / "masks.csv", scenes / "0.png", scenes / "1.png").out
    )
    values = [row["values"]["gradcam"]["energy"] for row in document["images"]]
    assert values[0] is None
    assert 0 <= values[1] <= 1
    assert document["table"][0]["n"] == 1


def test_random_is_the_baseline_unless_left_out(run: Callable[..., Any]) -> None:
    arguments = ["-b", "onnx", "-m", "demo", *QUICK, "--json", demo.image_paths()[0]]
    assert [r["method"] for r in json.loads(run("evaluate", *arguments).out)["ranking"]].count("random") == 1
    alone = json.loads(run("evaluate", *arguments, "--no-floor").out)
    assert [r["method"] for r in alone["ranking"]] == ["gradcam"]


def test_all_measures(run: Callable[..., Any]) -> None:
    document = json.loads(
        run(
            "evaluate", "-b", "onnx", "-m", "demo", "--measure", "all", "--stages", 1, "--json", demo.image_paths()[0]
        ).out
    )
    names = [measure["name"] for measure in document["measures"]]
    assert {"deletion", "road-morf", "randomization"} <= set(names)
    assert "energy" not in names, "without annotations"
    listed = run("evaluate", "--list")
    assert (listed.status, listed.err) == (0, "")
    assert all(name in listed.out for name in [*names, "energy"])


def test_an_unreadable_image_is_reported_with_status_2(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"not an image")
    result = run("evaluate", "-b", "onnx", "-m", "demo", *QUICK, "bad.png", demo.image_paths()[0])
    assert result.status == 2
    assert "gradcam: mean rank" in result.out
    assert result.err.count("\n") == 1
    assert "bad.png: empty, truncated, or not an image" in result.err


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "t.csv has no column 'path'; its columns: none; give the paths of the images in a column path"),
        ("name,x0\na.png,1\n", "t.csv has no column 'path'; its columns: name, x0"),
        ("path,x0,y0,x1\n0.png,1,1,2\n", "t.csv has the columns x0, y0, x1; a box needs x0, y0, x1, y1"),
        (
            "path,class\n0.png,disc\n",
            "t.csv has neither boxes nor masks; give it the columns x0, y0, x1, y1, or mask",
        ),
        ("path,x0,y0,x1,y1\n", "t.csv has no rows"),
        ("path,x0,y0,x1,y1\n,1,1,2,2\n", "row 1 of t.csv has an empty path; fill in the column 'path'"),
        ("path,x0,y0,x1,y1\n0.png,1,one,2,2\n", "the box in row 1 of t.csv is 1, one, 2, 2; give four numbers"),
        ("path,x0,y0,x1,y1\n0.png,1,1,200,20\n", "not within the image's 128×128 pixels"),
        (
            "path,x0,y0,x1,y1\nother.png,1,1,2,2\n",
            "t.csv has no row for 0.png; write paths relative to the table's own folder",
        ),
        ("path,mask\n0.png,none.png\n", "cannot read none.png: no such file"),
        (
            "path,class,x0,y0,x1,y1\n0.png,-1,1,1,2,2\n",
            "the class of 0.png: class -1 is negative; give an index from 0",
        ),
        ("path,class,x0,y0,x1,y1\n0.png,disc-ring,1,1,2,2\n", "the class of 0.png: unknown class 'disc-ring'"),
        (
            "path,class,x0,y0,x1,y1\n0.png,disc,1,1,2,2\n0.png,ring,1,1,2,2\n",
            "t.csv has two classes for 0.png, disc and ring; keep one",
        ),
    ],
)
def test_a_bad_table_is_one_line_and_status_2(
    run: Callable[..., Any], tmp_path: Path, scenes: Path, table: str, message: str
) -> None:
    (tmp_path / "t.csv").write_text(table, encoding="utf-8")
    (tmp_path / "0.png").write_bytes((scenes / "0.png").read_bytes())
    result = run("evaluate", "-b", "onnx", "-m", "demo", "--measure", "energy", "--table", "t.csv", "0.png")
    assert result.status == 2
    assert message in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no image is given"),
        (["nothing.png"], "no image could be evaluated: cannot read nothing.png"),
        (["--method", "gradcan", "IMAGE"], "unknown method 'gradcan'; nearest: gradcam"),
        (["--measure", "rode", "IMAGE"], "unknown measure 'rode'"),
        (["--measure", "energy", "IMAGE"], "give boxes= or masks= (--table)"),
        (
            ["--report", "r.pdf", "IMAGE"],
            "cannot write a report to r.pdf: its name does not end in .html; end it in .html",
        ),
        (["--table", "none.csv", "IMAGE"], "cannot read none.csv"),
        (["--level", "95", "IMAGE"], "95"),
        (["-t", "top2", "IMAGE"], "several targets for one image"),
        (["-l", "conv9", "IMAGE"], "unknown layer 'conv9'"),
        (["--measure", "all", "--measure", "rode", "IMAGE"], "unknown measure 'rode'"),
        (["--method", "all", "--method", "gradcan", "IMAGE"], "unknown method 'gradcan'"),
        (
            ["--report", "none/trust.html", "IMAGE"],
            "xcam: cannot write none/trust.html: the folder none does not exist; create it first",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(run: Callable[..., Any], arguments: list[str], message: str) -> None:
    arguments = [str(demo.image_paths()[0]) if name == "IMAGE" else name for name in arguments]
    result = run("evaluate", "-b", "onnx", "-m", "demo", *arguments)
    assert result.status == 2
    assert message in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_measures_are_printed_although_the_page_cannot_be_written(
    arguments: list[str], run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    command = ["-b", "onnx", "-m", "demo", *QUICK, "--report", "r.html", *arguments, demo.image_paths()[0]]
    result = run("evaluate", *command)
    assert result.status == 2
    assert "r.html: No space left on device; free space there" in result.err
    assert result.err.count("\n") == 1
    if arguments:
        assert len(json.loads(result.out)["measures"]) == 2
    else:
        assert "gradcam: mean rank" in result.out
    assert "wrote" not in result.out


@named_pipes
def test_a_page_that_cannot_be_written_is_refused_before_the_work(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "old.html").touch()
    os.mkfifo(tmp_path / "pipe.html")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name not in ("closed", "old.html"))
    for path, message in {
        "closed/r.html": "closed is write-protected; choose another folder",
        "old.html": "it is write-protected or not a file; choose another name",
        "pipe.html": "it is write-protected or not a file; choose another name",
    }.items():
        result = run("evaluate", "-b", "onnx", "-m", "nothing", "--report", path, demo.image_paths()[0])
        assert (result.status, result.out) == (2, "")
        assert result.err.startswith(f"xcam: cannot write {path}: ")
        assert result.err.endswith(f"{message}\n")


def test_several_classes_are_for_explain(run: Callable[..., Any]) -> None:
    result = run("evaluate", "-b", "onnx", "-m", "demo", "-t", "disc", "-t", "ring", demo.image_paths()[0])
    assert result.status == 2
    assert "one class is evaluated on all images, not 2" in result.err


def test_the_number_of_images_behind_a_mean_is_printed(run: Callable[..., Any], scenes: Path) -> None:
    (scenes / "one.csv").write_text("path,x0,y0,x1,y1\n0.png,1,1,90,90\n", encoding="utf-8")
    arguments = ["-b", "onnx", "-m", "demo", "--measure", "energy", "--table", scenes / "one.csv"]
    output = run("evaluate", *arguments, "--report", "one.html", scenes / "0.png", scenes / "1.png").out
    line = next(line for line in output.splitlines() if line.startswith("energy"))
    assert line.count("(of 1)") == 2
    assert "1 of 2 images" in Path("one.html").read_text(encoding="utf-8")


def test_no_rank_without_a_ranking_measure(run: Callable[..., Any]) -> None:
    arguments = [
        "-b",
        "onnx",
        "-m",
        "demo",
        "--measure",
        "complexity",
        "--report",
        "none.html",
        demo.image_paths()[0],
    ]
    result = run("evaluate", *arguments)
    assert "gradcam: not ranked, because no ranking measure has a value" in result.out
    assert "nan" not in result.out + Path("none.html").read_text(encoding="utf-8")
