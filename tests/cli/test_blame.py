"""`xcam blame` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from xcam.models import demo

IMAGE = str(demo.image_paths()[1])


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of the demo network in ONNX with two mistakes: a bias, and weights of another layer."""
    from xcam_onnx.demo import build

    model = build()
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if tensor.name == "conv2.weight":
            tensor.CopyFrom(numpy_helper.from_array(value * np.float32(1.1), tensor.name))
        if tensor.name == "conv4.bias":
            bias = value + np.linspace(0.5, 1.5, 64, dtype=np.float32)
            tensor.CopyFrom(numpy_helper.from_array(bias, tensor.name))
    path = tmp_path_factory.mktemp("models") / "spoilt.onnx"
    onnx.save(model, path)
    return path


def test_both_mistakes_are_named(run: Callable[..., Any], spoilt: Path, tmp_path: Path) -> None:
    arguments = ["-m", "onnx:demo", "-m", spoilt, "--preprocess", "tf", IMAGE]
    result = run("blame", *arguments, "--report", "b.html", "--node-data", "n.json")
    assert result.status == 0, result.err
    assert "conv2/conv (conv2/conv in demo (onnx)) has an error of its own" in result.out
    assert "conv4/conv (conv4/conv in demo (onnx)) has an error of its own" in result.out
    assert "wrote b.html" in result.out
    assert "conv4" in (tmp_path / "b.html").read_text(encoding="utf-8")
    assert "conv4/conv" in json.loads((tmp_path / "n.json").read_text())["results"]
    document = json.loads(run("blame", *arguments, "--json").out)
    assert {location["second"] for location in document["named"]} == {"conv2/conv", "conv4/conv"}
    whole = document["difference"]["scores"]["mean"]
    assert sum(c["scores"]["mean"] for c in document["stretches"]) == pytest.approx(whole, rel=0.01)


def test_the_status_follows_the_requirement(run: Callable[..., Any], spoilt: Path) -> None:
    arguments = ["-m", "onnx:demo", "-m", spoilt, "--preprocess", "tf", IMAGE]
    assert run("blame", *arguments, "--require", "equivalent").status == 1
    result = run("blame", "-m", "onnx:demo", "-m", "onnx:demo", IMAGE, "--require", "identical")
    assert result.status == 0
    assert "agree within rounding" in result.out


def test_a_fast_look(run: Callable[..., Any], spoilt: Path) -> None:
    arguments = ["-m", "onnx:demo", "-m", spoilt, "--preprocess", "tf", IMAGE, "--fast", "--json"]
    document = json.loads(run("blame", *arguments).out)
    assert document["fast"]
    assert all(c["estimate"] and c["heatmap"]["mean"] is None for c in document["stretches"])
    assert document["stretches"][0]["second"].startswith("conv4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "onnx:demo", IMAGE], "blame takes two models, not 1"),
        (["-m", "onnx:demo", "-m", "onnx:demo"], "no image is given"),
        (["-m", "onnx:demo", "-m", "onnx:demo", IMAGE, "--report", "r.txt"], "end it in .html"),
        (["-m", "onnx:demo", "-m", "onnx:demo", IMAGE, "--node-data", "r.txt"], "end it in .json"),
        (["-m", "onnx:demo", "-m", "onnx:demo", IMAGE, "--method", "scorecam"], "runs the model on changed images"),
    ],
)
def test_bad_usage_is_one_line(run: Callable[..., Any], arguments: list[str], message: str) -> None:
    result = run("blame", *arguments)
    assert result.status == 2
    assert result.err.count("\n") == 1
    assert message in result.err


def test_images_that_fail_are_stated(run: Callable[..., Any], spoilt: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    result = run("blame", "-m", "onnx:demo", "-m", spoilt, "--preprocess", "tf", "bad.png", IMAGE)
    assert result.status == 2
    assert "bad.png" in result.err
    assert "conv4" in result.out


def test_the_report_of_a_comparison_shows_contributions(
    run: Callable[..., Any], spoilt: Path, tmp_path: Path
) -> None:
    run("compare", "-m", "onnx:demo", "-m", spoilt, "--preprocess", "tf", IMAGE, "--report", "c.html")
    assert "Where the difference comes from" in (tmp_path / "c.html").read_text(encoding="utf-8")
    run("compare", "-m", "onnx:demo", "-m", "onnx:demo", IMAGE, "--report", "same.html")
    assert "Where the difference comes from" not in (tmp_path / "same.html").read_text(encoding="utf-8")
