"""Models with several outputs on the command line: which is explained, and how another is chosen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import onnx_small as small
import xcam
from typed import Result


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a model whose second output, `aux`, has the first's classes with the opposite sign."""
    steps = [
        *small.nodes(),
        helper.make_node("Neg", ["f"], ["n"]),
        helper.make_node("Gemm", ["n", "w3"], ["aux"], transB=1),
    ]
    onnx.save(small.build(steps, outputs=("y", "aux")), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_an_output_is_chosen_by_name(run: Callable[..., Result], image: Path, file: Path, tmp_path: Path) -> None:
    arguments = ["-m", file, "--preprocess", "unit", "-l", "relu1", "-t", "2", "--json", image]
    expected = {
        name: xcam.explain(xcam.load(file, preprocess="unit"), image, layer="relu1", target=2, output=name)
        for name in ("y", "aux")
    }
    assert expected["y"].score != pytest.approx(expected["aux"].score)
    default = run(*arguments)
    assert (
        "has 2 outputs, and 'y' is explained, not 'aux'; choose one with output= (--model-output NAME)" in default.err
    )
    for options, name in (
        ([], "y"),
        (["--model-output", "aux"], "aux"),
        (["--output", "aux"], "aux"),
        (["--output", "aux", "-o", "a.png"], "aux"),
        (["-o", "a.png", "--output", "y"], "y"),
    ):
        result = run(*options, *arguments)
        document = json.loads(result.out)
        assert (document["model_output"], document["score"]) == (name, pytest.approx(expected[name].score))
        assert ("outputs" in result.err) == (not options)
        assert document["output"] == ("a.png" if "a.png" in options else str(image.with_name("scene.cam.jpg")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model-output", "auy"], "unknown output 'auy' of m; known: y, aux"),
        (
            ["-o", "drawing"],
            "cannot write drawing: unknown format ''; use .jpg, .png, .npz or .npy, or a folder that exists",
        ),
        (["-o", "drawing"], "unknown output 'drawing' of m; known: y, aux"),
        (["-o", "y", "--model-output", "aux"], "one output is explained, not y and aux; name one"),
    ],
)
def test_outputs_that_do_not_exist(
    run: Callable[..., Result], image: Path, file: Path, options: list[str], message: str
) -> None:
    result = run("-m", file, "--preprocess", "unit", *options, image)
    assert result.status == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1


def test_other_commands_take_the_output(run: Callable[..., Result], image: Path, file: Path, tmp_path: Path) -> None:
    assert run("layers", "-m", file, "--model-output", "aux").status == 0
    assert run("export", "-m", file, "--model-output", "aux", "-l", "relu1", "-o", "e.onnx").status == 0
    x = small.images(1)
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "e.onnx", providers=["CPUExecutionProvider"])
    (g, z) = session.run(["xcam/gradients", "aux"], {"x": x})
    np.testing.assert_allclose(g, -small.gradient(x, "r1", [z[0].argmax()]), atol=1e-6)
    options = ["--preprocess", "unit", "-l", "relu1", "--model-output", "aux", "--json"]
    compared = json.loads(run("compare", "-m", file, "-m", file, *options, image).out)
    assert compared["verdict"] == "identical"
    for command in (["evaluate", "--measure", "deletion"], ["batch", "-o", "out"]):
        result = run(*command, "-m", file, *options, "-t", "2", image)
        assert (result.status, "outputs" in result.err) == (0, False), result.err
