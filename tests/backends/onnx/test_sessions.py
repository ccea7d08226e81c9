"""Errors of ONNX Runtime: in one line, with the node that it names, and a remedy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import xcam
from xcam import ModelError

X = np.zeros((1, 3, 8, 8), np.float32)


def model(*nodes: Any, **weights: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


FAILING = {
    "while it runs": (
        model(
            helper.make_node("ReduceMax", ["x"], ["m"], "most", keepdims=0),
            helper.make_node("Cast", ["m"], ["i"], "cast", to=TensorProto.INT64),
            helper.make_node("Unsqueeze", ["i", "zero"], ["s"], "wide"),
            helper.make_node("Add", ["s", "seven"], ["t"], "add"),
            helper.make_node("Reshape", ["x", "t"], ["y"], "shape"),
            zero=np.array([0]),
            seven=np.array([7]),
        ),
        r"cannot run the model: node 'shape' \(Reshape\): .*7.*; check that onnxruntime",
    ),
    "a missing type": (
        model(
            helper.make_node("Cast", ["x"], ["i"], "cast", to=TensorProto.INT16),
            helper.make_node("Relu", ["i"], ["r"], "relu"),
            helper.make_node("Cast", ["r"], ["f"], "back", to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["f"], ["y"], "flat"),
        ),
        r"cannot open the model: node 'relu' \(Relu\): it has no implementation for these types .*; update onnxruntime",
    ),
    "different types": (
        model(
            helper.make_node("Add", ["x", "k"], ["f"], "sum"),
            helper.make_node("Flatten", ["f"], ["y"], "flat"),
            k=np.ones(8, np.uint8),
        ),
        r"cannot open the model: node 'sum' \(Add\): Type parameter .* bound to different types .*; check that",
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_errors_name_the_node(name: str) -> None:
    source, pattern = FAILING[name]
    with pytest.raises(ModelError, match=pattern) as refusal:
        xcam.load(source, "onnx").predict(X)
    assert "\n" not in str(refusal.value)
    assert "onnxruntime_src" not in str(refusal.value)
