"""`--input` and `--image-input`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

import several_inputs as network
from xcam.images.resizing import resize


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Return a folder with an image, a model of three inputs, and values."""
    onnx.save(network.onnx_model(), tmp_path / "three.onnx")
    cv2.imwrite(str(tmp_path / "image.png"), network.IMAGE[..., ::-1])
    np.save(tmp_path / "meta.npy", network.META)
    return tmp_path


def test_values_reach_the_model(run: Callable[..., Any], files: Path) -> None:
    values = ["--input", f"meta={files / 'meta.npy'}", "--input", "domain=2"]
    arguments = [
        "-m",
        str(files / "three.onnx"),
        "--preprocess",
        "unit",
        str(files / "image.png"),
        "--json",
        "-t",
        "1",
    ]
    result = run(*arguments, *values)
    assert result.status == 0, result.err
    x = np.moveaxis(resize(network.IMAGE, (network.SIDE, network.SIDE)), -1, 0)[None].astype(np.float32) / 255
    assert json.loads(result.out)["score"] == pytest.approx(network.expected(x, 1)[1][1], rel=1e-4)


def test_a_value_is_for_the_models_that_have_the_input(run: Callable[..., Any], files: Path) -> None:
    values = ["--input", f"meta={files / 'meta.npy'}", "--input", "domain=2", "--preprocess", "unit"]
    models = ["-m", str(files / "three.onnx"), "-m", str(files / "three.onnx")]
    result = run("compare", *models, *values, str(files / "image.png"))
    assert result.status == 0, result.err
    assert "identical" in result.out
    config = f'images = ["{files / "image.png"}"]\npreprocess = "unit"\n[inputs]\nmeta = "{files / "meta.npy"}"\n'
    config += "".join(f'[[models]]\nmodel = "{files / "three.onnx"}"\ninputs = {{domain = {k}}}\n' for k in (1, 2))
    (files / "compare.toml").write_text(config)
    result = run("compare", "--config", str(files / "compare.toml"))
    assert result.status == 0, result.err
    assert "identical" not in result.out
    result = run(
        "compare",
        "-m",
        "onnx:demo",
        *models[:2],
        *values,
        "--image-input",
        "image",
        "-t",
        "1",
        str(files / "image.png"),
    )
    assert result.status == 0, result.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--input meta=…"),
        (["--input", "meta"], "give NAME=VALUE"),
        (["--input", "meta=1", "--input", "meta=2"], "given twice"),
        (["--input", "mata=1"], "known: image, meta, domain"),
        (["--input", "meta=[1,2]", "--input", "domain=1"], r"which takes meta float32 [any, 5]"),
    ],
)
def test_refused(run: Callable[..., Any], files: Path, options: list[str], message: str) -> None:
    result = run("-m", str(files / "three.onnx"), str(files / "image.png"), *options)
    assert result.status == 2
    assert message in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_an_input_that_none_of_several_models_has_is_refused(run: Callable[..., Any], files: Path) -> None:
    result = run("compare", "-m", "onnx:demo", "-m", "torch:demo", "--input", "mata=1", str(files / "image.png"))
    assert result.status == 2
    assert "unknown input 'mata'" in result.err
