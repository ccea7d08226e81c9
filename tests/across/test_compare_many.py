"""Comparisons of many images: numbers of all of them, maps of the worst ones only."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import xcam
from ground_truth import scenes_with_two
from xcam.comparison import compare
from xcam.images import reading, writing
from xcam_cli import main


@pytest.fixture(scope="module")
def models() -> list[Any]:
    """Return two models, the second slightly different: its images are scaled by an additional factor of 1.02."""
    first, second = (xcam.load("demo", name) for name in ("onnx", "torch"))
    stated = second.input.preprocessing
    scaled = dataclasses.replace(stated, name="scaled", scale=1.02 * stated.scale)
    second.input = dataclasses.replace(second.input, preprocessing=scaled)
    return [first, second]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{k}.png" for k in range(5)]
    for path, scene in zip(paths, scenes_with_two(5), strict=True):
        writing.write(path, cv2.resize(scene.image, (768, 768)))
    return paths


def test_the_worst_images_keep_their_maps_and_all_their_numbers(
    models: list[Any], files: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = xcam.compare(models, files)
    assert all(e.image.shape == (768, 768, 3) for image in whole.images for e in image.explanations)
    monkeypatch.setattr(compare, "KEPT", 3)
    monkeypatch.setattr(compare, "WHOLE", 4)
    result = xcam.compare(models, files)
    order = sorted(range(5), key=lambda k: whole.images[k].badness, reverse=True)
    assert [bool(image.explanations) for image in result.images] == [k in order[:3] for k in range(5)]
    for image in result.images:
        assert {e.image.shape for e in image.explanations} <= {(512, 512, 3)}
        assert len({id(e.image) for e in image.explanations}) <= 1  # one copy for all models
    numbers = [result.to_dict(), whole.to_dict()]
    assert json.dumps(numbers[0]) == json.dumps(numbers[1])
    assert len(numbers[0]["images"]) == 5
    assert all(len(each["predictions"]) == 2 for each in numbers[0]["images"])
    result.save(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "2 more images agree better than these and are not shown" in page
    assert [f"{k}.png" in page for k in range(5)] == [k in order[:3] for k in range(5)]


def test_images_are_read_one_by_one(models: list[Any], files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    read, compared = reading.read, compare.compare_image
    monkeypatch.setattr(reading, "read", lambda path: (events.append(f"read {path.name}"), read(path))[1])
    monkeypatch.setattr(compare, "compare_image", lambda *a: (events.append(f"compare {a[1].name}"), compared(*a))[1])
    xcam.compare(models, files, align=False)
    sample = range(compare.SAMPLES)
    assert events[:6] == [f"{event} {k}.png" for event in ("read", "compare") for k in sample]
    assert events[6:] == [f"{event} {k}.png" for k in (3, 4) for event in ("read", "compare")]


def test_the_last_output_counts_as_its_logits(models: list[Any], files: list[Path]) -> None:
    result = xcam.compare(models, files[:1], align=True)
    layers = xcam.comparison.compare.corresponding(models, files[0])
    steps = [(s.first, s.second) for s in result.divergences[0].steps]
    assert steps == [(pair.first, pair.second) for pair in layers]
    ends = [[layer.name for layer in model.layers if layer.is_output][-1] for model in models]
    assert list(steps[-1]) == ends
    a, b = (e.outputs for e in result.images[0].explanations)
    assert result.divergences[0].steps[-1].error == pytest.approx(np.abs(a - b).max() / np.abs(a).max(), rel=1e-3)


def test_one_page_on_several_images(files: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    arguments = ["-b", "onnx", "-m", "demo", *map(str, files[:2]), "--report", str(page)]
    with pytest.raises(SystemExit, match="0"):
        main([*arguments, "-o", f"{tmp_path}/"])
    text = page.read_text()
    assert "0.png" in text
    assert "1.png" in text
    for name in xcam.load("demo", "onnx").labels[:3]:  # classes that are not targets have their names too
        assert name in text
    assert "class 2" not in text
