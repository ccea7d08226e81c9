"""`xcam compare` on the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnx_quantized
from xcam.images import writing
from xcam.models import demo


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of the demo network in ONNX with a larger bias in its fourth convolution, as a wrong batch norm causes."""
    from xcam_onnx.demo import build

    model = build()
    for tensor in model.graph.initializer:
        if tensor.name == "conv4.bias":
            bias = numpy_helper.to_array(tensor) + np.linspace(0.5, 1.5, 64, dtype=np.float32)
            tensor.CopyFrom(numpy_helper.from_array(bias, tensor.name))
    path = tmp_path_factory.mktemp("models") / "spoilt.onnx"
    onnx.save(model, path)
    return path


IMAGE = str(demo.image_paths()[1])


def test_three_frameworks_are_identical(run: Callable[..., Any]) -> None:
    arguments = ["-m", "onnx:demo", "-m", "torch:demo", "-m", "keras:demo", "--require", "identical", IMAGE, "--json"]
    result = run("compare", *arguments)
    assert result.status == 0
    document = json.loads(result.out)
    assert document["verdict"] == "identical"
    assert [model["layer"] for model in document["models"]] == ["conv5"] * 3
    assert all(pair["pearson"] > 0.9999 for pair in document["images"][0]["pairs"])
    assert [d["layer"] for d in document["divergences"]] == [None, None]


def test_a_planted_fault_is_located_with_status_1(run: Callable[..., Any], spoilt: Path, tmp_path: Path) -> None:
    arguments = ["-m", "onnx:demo", "-m", spoilt, "--preprocess", "tf", "--require", "equivalent", IMAGE]
    result = run("compare", *arguments, "--report", "r.html")
    assert result.status == 1
    assert "spoilt (onnx) begins to differ from demo (onnx) at conv4" in result.out
    assert "cause: each channel has another offset" in result.out
    assert "(proven: undone, it leaves " in result.out
    assert "  remedy: Copy " in result.out
    assert "demo (onnx) and spoilt (onnx): different" in result.out
    assert "conv4" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert run("compare", "-m", "onnx:demo", "-m", spoilt, "--preprocess", "tf", IMAGE).status == 0, (
        "nothing required"
    )


def test_classes_in_another_order(run: Callable[..., Any], tmp_path: Path) -> None:
    """Without labels the models differ, with labels they are identical. --labels applies to the model that has none."""
    from xcam_onnx.demo import build

    order, model = [5, 3, 4, 0, 1, 2], build()
    for tensor in model.graph.initializer:
        if tensor.name.startswith("scores"):  # [classes, channels], [classes]
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[order], tensor.name))
    onnx.save(model, tmp_path / "other.onnx")
    arguments = ["-m", "onnx:demo", "-m", "other.onnx", "--preprocess", "tf", "--align", IMAGE]
    result = run("compare", *arguments, "--require", "equivalent")
    assert result.status == 1
    assert "begins to differ from demo (onnx) at scores" in result.out
    assert "cause: its values are in another order" in result.out
    labels = demo.network().labels
    (tmp_path / "labels.txt").write_text("\n".join(labels[k] for k in order))
    result = run("compare", *arguments, "--require", "identical", "--labels", "labels.txt")
    assert result.status == 0, result.out
    assert "begins to differ" not in result.out
    assert f"{labels[1]} (1)" in result.out
    assert f"{labels[1]} (4)" in result.out


def test_configuration_with_models(run: Callable[..., Any], spoilt: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        f'require = "identical"\nlayer = "conv5"\n\n[[models]]\nmodel = "demo"\nbackend = "onnx"\n\n'
        f'[[models]]\nmodel = "{spoilt}"\npreprocess = "tf"\nlayer = "conv4"\n'
    )
    result = run("compare", "--config", "c.toml", IMAGE, "--json", "--no-align")
    assert result.status == 1
    assert [model["layer"] for model in json.loads(result.out)["models"]] == ["conv5", "conv4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('images = "a.png"', "images in c.toml is 'a.png'; give a list"),
        ("models = 3", "models in c.toml is 3; give a list"),
        ('size = "large"', "'large' is not a size"),
        ('require = "same"', "'same' is not one of 'identical', 'equivalent'"),
        ('align = "perhaps"', "'perhaps' is not a valid boolean"),
        ("colour = 1", "c.toml has an unknown entry 'colour'; use align"),
        (
            '[[models]]\nlayer = "conv5"',
            "give model, and optionally backend, embeddings, image_input, inputs, labels, layer",
        ),
    ],
)
def test_bad_configuration(run: Callable[..., Any], tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    result = run("compare", "--config", "c.toml", "-m", "onnx:demo", "-m", "torch:demo", IMAGE)
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert message in result.err


@pytest.mark.parametrize("size", ['"128x128"', "128", "[128, 128]"])
def test_a_size_in_the_file(run: Callable[..., Any], tmp_path: Path, size: str) -> None:
    (tmp_path / "c.toml").write_text(f"size = {size}\nalign = false")
    arguments = ["--config", "c.toml", "-m", "onnx:demo", "-m", "torch:demo@conv5", "-l", "conv5", IMAGE]
    assert run("compare", *arguments, "--require", "identical").status == 0


def test_folders_patterns_and_unreadable_images(run: Callable[..., Any], tmp_path: Path) -> None:
    for k, path in enumerate(demo.image_paths()[:3]):
        (tmp_path / f"{k}.png").write_bytes(path.read_bytes())
    (tmp_path / "bad.png").write_bytes(b"no picture")
    models = ["-m", "onnx:demo", "-m", "torch:demo", "-l", "conv5", "--json"]
    result = run("compare", *models, "[0-2].png")
    assert (result.status, len(json.loads(result.out)["images"])) == (0, 3)
    result = run("compare", *models, str(tmp_path))
    document = json.loads(result.out)
    assert (result.status, len(document["images"]), len(document["failed"])) == (2, 3, 1)
    assert "bad.png: empty, truncated, or not an image" in result.err


def test_layers_side_by_side(run: Callable[..., Any]) -> None:
    rows = json.loads(run("layers", "-m", "torch:demo", "-m", "onnx:demo", "--json").out)
    assert ("conv4", "conv4") in [(row["first"], row["second"]) for row in rows]
    assert max(row["error"] for row in rows) < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "onnx:demo", IMAGE], "cannot compare fewer than two models; give two or more"),
        (["-m", "onnx:demo", "-m", "torch:demo"], "no image is given"),
        (["-m", "onnx:demo", "-m", "torch:demo", "none-*.png"], "no file matches none-*.png"),
        (["-m", "onnx:demo", "-m", "torch:demo@conv9", IMAGE], "unknown layer 'conv9' in demo"),
        (
            ["-m", "onnx:demo", "-m", "torch:demo", "nothing.png"],
            "no image can be compared: cannot read nothing.png",
        ),
        (["-m", "onnx:demo", "-m", "torch:demo", IMAGE, "--report", "r.pdf"], "r.pdf"),
        (["--config", "none.toml", IMAGE], "cannot read none.toml"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run: Callable[..., Any], arguments: list[str], message: str) -> None:
    result = run("compare", *arguments)
    assert result.status == 2
    assert message in result.err
    assert result.err.count("\n") == 1


def test_a_quantised_file_is_compared_with_its_float_model(run: Callable[..., Any], tmp_path: Path) -> None:
    onnx_model = onnx_quantized.network()
    onnx.save(onnx_model, tmp_path / "float.onnx")
    images = onnx_quantized.images()
    reduced = onnx_quantized.quantized(onnx_model, onnx_quantized.batch(images), per_channel=True)
    onnx.save(reduced, tmp_path / "int8.onnx")
    onnx.save(onnx_quantized.planted(reduced, 4, factor=0.5), tmp_path / "narrow.onnx")
    writing.write(tmp_path / "image.png", images[0])
    models = ["-m", tmp_path / "float.onnx", "-m", tmp_path / "int8.onnx", "-m", tmp_path / "narrow.onnx"]
    result = run("compare", *models, "--preprocess", "tf", "--align", tmp_path / "image.png")
    assert result.status == 0
    assert "int8 (onnx) differs from float (onnx) evenly, as int8 does: " in result.out
    assert re.search(
        r"narrow \(onnx\) differs from float \(onnx\) by more than its precision explains at \w+", result.out
    )
    assert "cause: its range is too narrow" in result.out
    document = json.loads(
        run("compare", *models, "--preprocess", "tf", "--align", tmp_path / "image.png", "--json").out
    )
    even, narrow = document["divergences"]
    assert (even["layer"], even["cause"]["code"], narrow["cause"]["code"]) == (None, "quantized", "narrow-range")
    assert narrow["steps"][2]["added"] > 0
    assert narrow["tolerance"] >= 2.5
    layers = run("layers", "-m", tmp_path / "int8.onnx", "--preprocess", "tf").out.splitlines()
    assert "type" in layers[0]
    assert any("int8" in line for line in layers)
    listed = json.loads(run("layers", "-m", tmp_path / "int8.onnx", "--json").out)
    assert {layer["dtype"] for layer in listed} >= {"int8"}
