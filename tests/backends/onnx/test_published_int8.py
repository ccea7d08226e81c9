"""A MobileNetV2 that others trained and quantised (TFLite, int8 in and out): converted by tf2onnx, and quantised again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static

import xcam

TFLITE = Path(__file__).parents[4] / "shared/models/mobilenet_v2_int8.tflite"
CAT, TABBY, TIGER_CAT = 285, 281, 282

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not TFLITE.is_file(), reason=f"{TFLITE} is not there: a trained model of others, not copied here"
    ),
]


def image() -> np.ndarray:
    data = pytest.importorskip("skimage.data")
    return np.ascontiguousarray(data.chelsea()[:300, 60:360])


def prepared() -> np.ndarray:
    x = cv2.resize(image(), (224, 224), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    x = (x - np.array([0.485, 0.456, 0.406], np.float32)) / np.array([0.229, 0.224, 0.225], np.float32)
    return np.ascontiguousarray(np.moveaxis(x, -1, 0)[None])


class Images(CalibrationDataReader):  # type: ignore[misc]
    """The image, for calibration."""

    def __init__(self, name: str) -> None:
        self._batches: Iterator[dict[str, np.ndarray]] = iter([{name: prepared()}])

    def get_next(self) -> Any:
        return next(self._batches, None)


def in_floats(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a QDQ model without quantisation: its weights dequantised, its values not rounded."""
    weights = {t.name: t for t in model.graph.initializer}
    floats: dict[str, np.ndarray] = {}
    renamed: dict[str, str] = {}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in weights:
            q, scale, zero = (numpy_helper.to_array(weights[name]).astype(np.float64) for name in node.input)
            axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 1)
            shape = [-1 if scale.size > 1 and k == axis else 1 for k in range(q.ndim)]
            floats[node.output[0]] = np.asarray((q - zero.reshape(shape)) * scale.reshape(shape), np.float32)
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            renamed[node.output[0]] = renamed.get(node.input[0], node.input[0])
        else:
            nodes.append(node)
            names = [renamed.get(name, name) for name in node.input]
            del node.input[:]
            node.input.extend(names)
    source, target = model.graph.input[0], model.graph.output[0]
    size = [entry.dim_value for entry in source.type.tensor_type.shape.dim]
    graph = helper.make_graph(
        nodes,
        "floats",
        [helper.make_tensor_value_info(source.name, TensorProto.FLOAT, size)],
        [helper.make_tensor_value_info(renamed[target.name], TensorProto.FLOAT, [1, 1000])],
        [*weights.values(), *(numpy_helper.from_array(value, name) for name, value in floats.items())],
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The network as QDQ with int8 input and output, in floats, and quantised from these by ONNX Runtime."""
    folder = tmp_path_factory.mktemp("int8")
    paths = {name: folder / f"{name}.onnx" for name in ("int8", "float", "qoperator", "dynamic")}
    convert = [sys.executable, "-m", "tf2onnx.convert", "--opset", "17"]
    subprocess.run(
        [*convert, "--tflite", str(TFLITE), "--output", str(paths["int8"])], check=True, capture_output=True
    )
    model = in_floats(onnx.load(paths["int8"]))
    onnx.save(model, paths["float"])
    reader = Images(model.graph.input[0].name)
    quantize_static(paths["float"], paths["qoperator"], reader, quant_format=QuantFormat.QOperator, per_channel=True)
    quantize_dynamic(paths["float"], paths["dynamic"])
    return paths


def explained(path: Path) -> xcam.Explanation:
    result = xcam.explain(xcam.load(path, preprocess="torch", threads=2), image())
    assert isinstance(result, xcam.Explanation)
    return result


def plain(path: Path, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(path)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_an_int8_input_is_quantised_and_scores_are_dequantised(files: dict[str, Path]) -> None:
    proto = onnx.load(files["int8"])
    arrays = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    first = next(n for n in proto.graph.node if n.input[0] == proto.graph.input[0].name)
    last = next(n for n in proto.graph.node if n.output[0] == proto.graph.output[0].name)
    (scale, zero), (step, origin) = ([arrays[name].astype(np.float32) for name in n.input[1:]] for n in (first, last))
    x = prepared()
    integers = np.clip(np.rint(x / scale) + zero, -128, 127).astype(np.int8)
    expected = (plain(files["int8"], integers).astype(np.float32) - origin) * step
    np.testing.assert_array_equal(xcam.load(files["int8"], preprocess="torch", threads=2).predict(x), expected)


@pytest.mark.parametrize(
    ("kind", "least", "agreement"), [("int8", 0.7, 0.95), ("qoperator", 0.8, 0.98), ("dynamic", 0.6, 0.85)]
)
def test_the_cat(kind: str, least: float, agreement: float, files: dict[str, Path]) -> None:
    result, reference = explained(files[kind]), explained(files["float"])
    scores = np.ravel(result.scores)
    assert list(np.argsort(-scores)[:3]) == [CAT, TABBY, TIGER_CAT]
    assert scores[CAT] > least
    assert result.cam.shape == reference.cam.shape == (7, 7)
    assert correlation(result.heatmap, reference.heatmap) > agreement
    row, column = np.unravel_index(result.heatmap.argmax(), result.heatmap.shape)
    assert 180 < row < 280, "the cat's muzzle"
    assert 140 < column < 260, "the cat's muzzle"


def test_a_score_at_the_end_of_its_range_has_a_gradient(files: dict[str, Path]) -> None:
    """The best score is the largest that the file can state; that it is clipped is not part of its derivative."""
    layer, x = explained(files["float"]).layer, prepared()
    ours, reference = (
        xcam.load(files[kind], preprocess="torch", threads=2).trace(
            x, layer, lambda outputs: [np.eye(1000, dtype=np.float32)[[CAT]]]
        )
        for kind in ("int8", "float")
    )
    proto = onnx.load(files["int8"])
    last = next(n for n in proto.graph.node if n.output[0] == proto.graph.output[0].name)
    step, origin = (
        numpy_helper.to_array(t) for name in last.input[1:] for t in proto.graph.initializer if t.name == name
    )
    assert isinstance(ours.outputs, np.ndarray)
    assert ours.outputs.max() == np.float32(step) * (127 - np.float32(origin))
    assert correlation(ours.gradients[0], reference.gradients[0]) > 0.99
