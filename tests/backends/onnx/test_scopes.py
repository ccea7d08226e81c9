"""Names of modules in files whose nodes a quantiser replaced: its nodes do not say which module they came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static

import xcam
from xcam_onnx.graph import Graph
from xcam_onnx.scopes import CLASSES, SCOPES, scopes

X = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
CLASS = {"block": "Block", "block.conv": "Sequential", "block.conv.0": "Conv2d", "block.conv.1": "ReLU"}


def from_module(node: NodeProto, *paths: str) -> NodeProto:
    kinds = [f"torch.nn.modules.{CLASS.get(path, 'Conv2d')}" for path in paths]
    for key, value in ((SCOPES, ["", *paths, node.name]), (CLASSES, ["Net", *kinds, "aten"])):
        entry = node.metadata_props.add()
        entry.key, entry.value = key, str(value if key == SCOPES else value[1:])
    return node


def network(weight: str = "block.conv.2.weight") -> ModelProto:
    """A block: a convolution, a ReLU, a convolution that ends `block.conv`, and an addition behind that; then a head."""
    rng = np.random.default_rng(1)
    weights = {"block.conv.0.weight": (6, 3, 3, 3), weight: (3, 6, 1, 1), "head.weight": (4, 3, 3, 3)}
    arrays = {name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in weights.items()}
    inner = ("block", "block.conv")
    nodes = [
        from_module(
            helper.make_node("Conv", ["x", "block.conv.0.weight"], ["c0"], "n0", pads=[1] * 4), *inner, "block.conv.0"
        ),
        from_module(helper.make_node("Relu", ["c0"], ["r"], "n1"), *inner, "block.conv.1"),
        from_module(helper.make_node("Conv", ["r", weight], ["c2"], "n2"), *inner, "block.conv.2"),
        from_module(helper.make_node("Add", ["c2", "x"], ["a"], "n3"), "block"),
        from_module(helper.make_node("Conv", ["a", "head.weight"], ["h"], "n4"), "head"),
        helper.make_node("GlobalAveragePool", ["h"], ["m"], "n5"),
        helper.make_node("Flatten", ["m"], ["scores"], "n6"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


class Images(CalibrationDataReader):  # type: ignore[misc]
    """The image, for calibration."""

    def __init__(self) -> None:
        self._batches = iter([{"x": X}])

    def get_next(self) -> Any:
        return next(self._batches, None)


def quantised(model: ModelProto, kind: str, folder: Path) -> tuple[Path, Path]:
    source, path = folder / "float.onnx", folder / f"{kind}.onnx"
    onnx.save(model, source)
    if kind == "dynamic":
        quantize_dynamic(source, path)
    else:
        quantize_static(source, path, Images(), quant_format=QuantFormat[kind])
    return source, path


@pytest.mark.parametrize("kind", ["dynamic", "QDQ", "QOperator"])
def test_a_module_has_its_own_value_or_none(kind: str, tmp_path: Path) -> None:
    source, path = quantised(network(), kind, tmp_path)
    whole, model = xcam.load(source, preprocess="raw"), xcam.load(path, preprocess="raw")
    names = {layer.name for layer in model.layers} & {"block", "block.conv", "block.conv.1", "head"}
    assert kind == "QOperator" or names >= {"block", "block.conv"}
    for name in names:
        expected, value = (each.activations(X, [name])[name] for each in (whole, model))
        assert np.corrcoef(expected.ravel(), value.ravel())[0, 1] > 0.99, name


def test_weights_name_the_modules_around_their_own(tmp_path: Path) -> None:
    _, path = quantised(network(), "dynamic", tmp_path)
    graph = Graph(onnx.load(path))
    named = {node.name: [path for path, _ in scope] for node, scope in zip(graph.nodes, scopes(graph), strict=True)}
    assert named["n1"] == ["block", "block.conv", "block.conv.1"], "recorded"
    assert named["n2_quant"] == named["n2_quant_output_scale_mul"] == ["block", "block.conv", "block.conv.2"]


def test_a_module_whose_end_is_unknown_is_not_a_layer(tmp_path: Path) -> None:
    """The node behind the ReLU may belong to `block.conv`: the ReLU's value is not that of the module."""
    _, path = quantised(network(weight="w2"), "dynamic", tmp_path)
    names = {layer.name for layer in xcam.load(path, preprocess="raw").layers}
    assert "block.conv" not in names
    assert "block" in names
