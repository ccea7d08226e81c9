"""`xcam.repair` on small networks that are quantised badly on purpose."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime as ort
import pytest
from onnxruntime.quantization import QuantFormat

import onnx_quantized
import xcam
from xcam.errors import InputError

IMAGES = list(onnx_quantized.images(6))
X = onnx_quantized.batch(np.stack(IMAGES))
FORMATS = {"qdq": QuantFormat.QDQ, "qoperator": QuantFormat.QOperator}


@cache
def network(**options: Any) -> onnx.ModelProto:
    return onnx_quantized.network(**options)


@cache
def honest(kind: str) -> onnx.ModelProto:
    return onnx_quantized.quantized(network(), X, quant_format=FORMATS[kind], per_channel=True)


def loaded(model: onnx.ModelProto) -> xcam.Model:
    return xcam.load(model, preprocess="tf")


def run(model: onnx.ModelProto) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString())
    return np.asarray(session.run(None, {session.get_inputs()[0].name: X})[0])


@pytest.mark.parametrize("kind", FORMATS)
def test_channels_of_unlike_ranges_with_one_scale(kind: str, tmp_path: Path) -> None:
    model = network(outlier=3)
    reduced = onnx_quantized.quantized(model, X, quant_format=FORMATS[kind], per_channel=False)
    result = xcam.repair(loaded(model), loaded(reduced), IMAGES)
    assert result.before.verdict == "different"
    assert result.reached
    assert result.proven
    names = [part.part.name for part in result.parts]
    assert names[0] == "conv3", "its weights have one scale for channels of unlike ranges"
    assert result.largest_errors is not None
    assert len(names) <= result.largest_errors / 2
    assert set(names) <= set(result.nodes_to_exclude)
    result.save(tmp_path / "mixed.onnx")
    onnx.checker.check_model(str(tmp_path / "mixed.onnx"), full_check=True)
    mixed = onnx.load(tmp_path / "mixed.onnx")
    assert result.model is not None
    np.testing.assert_array_equal(run(mixed), result.model.predict(X))
    assert np.abs(run(mixed) - run(model)).max() < np.abs(run(reduced) - run(model)).max()
    assert result.sizes[1] == pytest.approx((tmp_path / "mixed.onnx").stat().st_size, rel=0.01)
    comparison = xcam.compare([loaded(model), xcam.load(tmp_path / "mixed.onnx", preprocess="tf")], IMAGES)
    assert comparison.verdict == "equivalent"
    document = result.to_dict()
    assert [part["name"] for part in document["parts"]] == names
    assert document["reached"] is True


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("number", "change", "code"),
    [
        (1, {"factor": 0.1}, "narrow-range"),
        (5, {"shift": 60}, "wrong-zero-point"),
        (3, {"factor": 3, "where": "first"}, "wrong-scale"),
    ],
)
def test_a_wrong_range_is_mended_and_nothing_is_put_back(
    kind: str, number: int, change: dict[str, Any], code: str
) -> None:
    wrong = onnx_quantized.planted(honest(kind), number, **change)
    result = xcam.repair(loaded(network()), loaded(wrong), IMAGES)
    assert result.before.verdict == "different"
    assert [r.cause.code for r in result.ranges] == [code]
    assert result.parts == ()
    assert result.proven
    assert result.after.pearson > 0.99


def test_a_model_that_does_not_differ_is_left_as_it_is(tmp_path: Path) -> None:
    result = xcam.repair(loaded(network()), loaded(honest("qdq")), IMAGES)
    assert (result.needed, result.reached, result.model, result.parts) == (False, True, None, ())
    with pytest.raises(InputError, match="needs no repair"):
        result.save(tmp_path / "mixed.onnx")


def test_one_image_proves_nothing_on_others() -> None:
    wrong = onnx_quantized.planted(honest("qdq"), 1, 0.1)
    result = xcam.repair(loaded(network()), loaded(wrong), IMAGES[:1])
    assert (result.reached, result.proven, result.check) == (True, False, None)
    checked = xcam.repair(loaded(network()), loaded(wrong), IMAGES[:1], check=IMAGES[3:])
    assert checked.proven
    assert checked.check is not None
    assert len(checked.check.measures) == 3


def test_a_verdict_out_of_reach_says_how_far_it_came() -> None:
    other = network(seed=1)
    assert not np.allclose(run(other), run(network()))
    model = onnx.ModelProto()
    model.CopyFrom(network())
    weights = {t.name: t for t in other.graph.initializer}
    for tensor in model.graph.initializer:
        if tensor.name in ("w7", "wf"):
            tensor.CopyFrom(weights[tensor.name])
    reduced = onnx_quantized.quantized(network(), X, per_channel=True, nodes_to_exclude=["conv7", "fc"])
    result = xcam.repair(loaded(model), loaded(reduced), IMAGES[:2], check=IMAGES[2:3], layer="relu5")
    assert result.needed
    assert not result.reached
    assert result.after.verdict == "different"


def test_models_that_cannot_be_repaired_are_refused_in_one_line() -> None:
    first, second = loaded(network()), loaded(honest("qdq"))
    with pytest.raises(InputError, match=r"it is in float, and .* give the float model first"):
        xcam.repair(second, first, IMAGES)
    with pytest.raises(InputError, match="no quantised layers"):
        xcam.repair(first, first, IMAGES)
    with pytest.raises(InputError, match="give the float model first"):
        xcam.repair(second, second, IMAGES)
    with pytest.raises(InputError, match="only ONNX files can be repaired"):
        xcam.repair(first, xcam.load("demo", backend="torch"), IMAGES)
    with pytest.raises(InputError, match="float ONNX file"):
        xcam.repair(xcam.load("demo", backend="torch"), second, IMAGES)
    with pytest.raises(InputError, match="it is in float16, and only quantised layers"):
        xcam.repair(first, loaded(onnx_quantized.half(network())), IMAGES)
    with pytest.raises(InputError, match="cannot require 'perfect'"):
        xcam.repair(first, second, IMAGES, require="perfect")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no image can be used"):
        xcam.repair(first, second, [])


def test_images_that_fail_are_listed_and_the_others_count(tmp_path: Path) -> None:
    result = xcam.repair(loaded(network()), loaded(honest("qdq")), [*IMAGES[:2], tmp_path / "none.png"])
    assert [path for path, _ in result.failed] == [str(tmp_path / "none.png")]
    assert len(result.before.measures) == 1


def test_a_float_model_of_other_weights_is_warned_of() -> None:
    reduced = onnx_quantized.quantized(network(outlier=3), X, per_channel=False)
    with pytest.warns(xcam.XcamWarning, match="check that it was made from"):
        xcam.repair(loaded(network(seed=5)), loaded(reduced), IMAGES[:2], require="identical")


def test_files_of_two_opsets() -> None:
    newer = onnx.version_converter.convert_version(network(outlier=3), 21)
    reduced = onnx_quantized.quantized(newer, X, per_channel=False)
    result = xcam.repair(loaded(network(outlier=3)), loaded(reduced), IMAGES)
    assert result.reached
    assert result.parts[0].part.name == "conv3"
