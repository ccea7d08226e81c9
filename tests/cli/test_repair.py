"""`xcam repair` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxruntime.quantization import QuantFormat
from PIL import Image

import onnx_quantized
from typed import Result

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a float file and quantised ones: honest, with a wrong range, with one scale for unlike channels, of other weights."""
    path = tmp_path_factory.mktemp("repair")
    pixels = onnx_quantized.images(4)
    (path / "images").mkdir()
    for k, image in enumerate(pixels):
        Image.fromarray(image).save(path / "images" / f"{k}.png")
    x = onnx_quantized.batch(pixels)
    model, unlike = onnx_quantized.network(), onnx_quantized.network(outlier=3)
    honest = onnx_quantized.quantized(model, x, quant_format=QuantFormat.QDQ, per_channel=True)
    onnx.save(model, path / "float.onnx")
    onnx.save(honest, path / "int8.onnx")
    onnx.save(onnx_quantized.planted(honest, 1, 0.1), path / "narrow.onnx")
    onnx.save(unlike, path / "unlike.onnx")
    onnx.save(onnx_quantized.quantized(unlike, x, per_channel=False), path / "unlike8.onnx")
    other = onnx.ModelProto()
    other.CopyFrom(model)
    weight = next(t for t in other.graph.initializer if t.name == "wf")
    weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), "wf"))
    onnx.save(other, path / "other.onnx")
    onnx.save(onnx_quantized.quantized(model, x, nodes_to_exclude=["conv7", "fc"]), path / "others8.onnx")
    return path


def repair(run: Run, folder: Path, first: str, second: str, *arguments: object) -> Result:
    return run(
        *("repair", folder / first, folder / second, folder / "images", "--preprocess", "tf"),
        *("-o", folder / "mixed.onnx", *arguments),
    )


def test_a_wrong_range_is_stated_and_the_file_is_not_overwritten(run: Run, folder: Path) -> None:
    (folder / "mixed.onnx").unlink(missing_ok=True)
    done = repair(run, folder, "float.onnx", "narrow.onnx")
    assert done.status == 0, done.err
    assert "mended the range of relu2: " in done.out
    assert "no part of 12 is in float" in done.out
    assert f"wrote {folder / 'mixed.onnx'}" in done.out
    onnx.checker.check_model(str(folder / "mixed.onnx"), full_check=True)
    before = (folder / "mixed.onnx").read_bytes()
    refused = repair(run, folder, "float.onnx", "narrow.onnx")
    assert (refused.status, refused.out) == (2, "")
    assert "it exists; choose another name" in refused.err
    assert (folder / "mixed.onnx").read_bytes() == before


def test_the_list_for_the_quantiser_is_that_of_the_document(run: Run, folder: Path) -> None:
    done = repair(run, folder, "unlike.onnx", "unlike8.onnx", "-f", "--json")
    assert done.status == 0, done.err
    document = json.loads(done.out)
    assert document["reached"] is document["proven"] is True
    assert document["written"] == str(folder / "mixed.onnx")
    names = document["nodes_to_exclude"]
    assert "conv3" in names
    assert len(document["parts"]) < document["largest_errors_first"]
    quantised = {node.op_type for node in onnx.load(folder / "mixed.onnx").graph.node}
    assert "QuantizeLinear" in quantised
    session = ort.InferenceSession(str(folder / "mixed.onnx"))
    x = onnx_quantized.batch(onnx_quantized.images(4))
    truth = ort.InferenceSession(str(folder / "unlike.onnx")).run(None, {"x": x})[0]
    np.testing.assert_allclose(session.run(None, {"x": x})[0], truth, atol=0.1)


def test_a_model_that_needs_no_repair_writes_nothing(run: Run, folder: Path) -> None:
    (folder / "mixed.onnx").unlink(missing_ok=True)
    done = repair(run, folder, "float.onnx", "int8.onnx")
    assert (done.status, done.out) == (0, "int8 is equivalent: it needs no repair; nothing is written\n")
    assert not (folder / "mixed.onnx").exists()


def test_a_verdict_out_of_reach_is_status_1_and_writes_only_with_best(run: Run, folder: Path) -> None:
    (folder / "mixed.onnx").unlink(missing_ok=True)
    done = repair(run, folder, "other.onnx", "others8.onnx", "-l", "relu5")
    assert done.status == 1, done.err
    assert "is not reached; nothing is written" in done.out
    assert not (folder / "mixed.onnx").exists()
    done = repair(run, folder, "other.onnx", "others8.onnx", "-l", "relu5", "--best")
    assert done.status == 1, done.err
    assert "the verdict 'equivalent' is not reached\nwrote " in done.out
    assert (folder / "mixed.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("int8.onnx", "float.onnx"), "give the float model first"),
        (("float.onnx", "float.onnx"), "no quantised layers"),
        (("float.onnx", "none.onnx"), "none.onnx"),
    ],
)
def test_mistakes_are_one_line(run: Run, folder: Path, arguments: tuple[str, str], message: str) -> None:
    (folder / "mixed.onnx").unlink(missing_ok=True)
    done = repair(run, folder, *arguments)
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1), done.err
    assert done.err.startswith("xcam: ")
    assert message in done.err
