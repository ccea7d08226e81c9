"""Clips among the images of `xcam explain`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from typed import Result
from xcam.images import reading, video
from xcam.models import demo


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Return a clip of six frames, in the folder in which the command runs."""
    images = [reading.read(path) for path in demo.image_paths()[:3]]
    with video.writing(tmp_path / "clip.mp4", 10, 6) as add:
        for k in range(6):
            add(images[k // 2], (k + 1) / 10)
    return tmp_path / "clip.mp4"


def test_a_clip_is_explained_like_an_image(run: Callable[..., Result], clip: Path) -> None:
    result = run("-m", "onnx:demo", clip.name, "--smooth", "0.2", "-t", demo.CLASSES[0])
    assert result.status == 0
    assert result.out.splitlines()[0] == "clip.mp4: 6 frames of 256×256, 10 per second"
    assert f"  → {demo.CLASSES[0]} on 6 frames; most at " in result.out
    assert "wrote clip.cam.mp4 (without sound)" in result.out
    assert sum(1 for _ in video.open_clip("clip.cam.mp4").frames()) == 6


def test_images_and_clips_are_one_document(
    run: Callable[..., Result], clip: Path, image: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    result = run("-m", "onnx:demo", image, clip, "-t", "top1", "-o", "out", "--json")
    still, moving = json.loads(result.out)
    assert Path(still["output"]) == Path("out/scene.cam.jpg")
    assert Path(moving["output"]) == Path("out/clip.cam.mp4")
    assert [row["class"] for row in moving["frames"][::2]] == list(moving["classes"])
    assert moving["frames"][0]["class"] == still["class"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clip.cam.mp4", "scene.cam.jpg"]


def test_a_clip_becomes_an_animation(run: Callable[..., Result], clip: Path) -> None:
    assert run("-m", "onnx:demo", clip, "-o", "a.gif", "--every", "2", "-t", "top1").status == 0
    assert sum(1 for _ in video.open_clip("a.gif").frames()) == 3
    assert run("-m", "onnx:demo", "a.gif", "-t", "top1", "--scale", "frame", "-o", "b.webp").status == 0
    assert video.is_clip("b.webp")


def test_results_of_earlier_runs_are_left_out(run: Callable[..., Result], clip: Path) -> None:
    shutil.copy(clip, "clip.cam.mp4")
    result = run("-m", "onnx:demo", clip.name, "clip.cam.mp4", "-t", "top1")
    assert "left out 1 overlay of earlier runs (clip.cam.mp4)" in result.err
    assert result.out.count("frames of") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.mp4"], "cannot read absent.mp4: no such file"),
        (["text.mp4"], "text.mp4: empty, truncated, or not a video"),
        (["clip.mp4", "-o", "a.jpg"], "cannot write a.jpg: unknown video format '.jpg'; use .mp4"),
        (["clip.mp4", "-o", "absent/a.mp4"], "folder absent does not exist"),
        (["clip.mp4", "-o", "clip.mp4"], "clip.mp4 is the video to explain"),
        (["clip.mp4", "copy.mp4", "-o", "a.mp4"], "2 files cannot all be written to a.mp4"),
        (["clip.mp4", "scene.png", "-o", "a.mp4"], "2 files cannot all be written to a.mp4"),
        (["clip.mp4", "clip.wmv"], "two videos would be written to the same file"),
        (["scene.png", "-o", "a.mp4"], "cannot write a.mp4: unknown format '.mp4'"),
        (["scene.png", "--smooth", "1"], "--smooth applies to videos"),
        (["clip.mp4", "-t", "disc", "-t", "ring"], "give one class, and run the command again"),
        (["clip.mp4", "-t", "top3"], "several classes for one clip"),
        (["clip.mp4", "--method", "all"], "give one method and one layer"),
        (["clip.mp4", "--report", "a.html"], "leave --report out"),
        (["clip.mp4", "--start", "2", "--end", "1"], "give an end after the start"),
    ],
)
def test_bad_input_is_one_line(
    run: Callable[..., Result], clip: Path, image: Path, arguments: list[str], message: str
) -> None:
    for name in ("copy.mp4", "clip.wmv"):
        shutil.copy(clip, name)
    Path("text.mp4").write_text("text")
    before = {path.name for path in clip.parent.iterdir()}
    result = run("-m", "onnx:demo", *arguments)
    assert result.status == 2
    assert message in result.err
    assert result.err.count("\n") == 1
    assert {path.name for path in clip.parent.iterdir()} == before
