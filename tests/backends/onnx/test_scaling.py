"""The scaling that an ONNX model computes before its first node with a kernel."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import xcam

IMAGE = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def across(values: Any) -> Any:
    return np.asarray(values, np.float32).reshape(1, 3, 1, 1)


def file(*steps: tuple[str, Sequence[Any], dict[str, Any]], elem: int = TensorProto.FLOAT, nhwc: bool = False) -> Any:
    """Build a file with steps (operator, constants, attributes) in front of a convolution."""
    nodes, weights, x = [], [], "x"
    for k, (op, constants, attributes) in enumerate(steps):
        names = [f"c{k}.{i}" for i in range(len(constants))]
        weights += [numpy_helper.from_array(np.asarray(c), name) for c, name in zip(constants, names, strict=True)]
        nodes.append(helper.make_node(op, [x, *names], [f"v{k}"], **attributes))
        x = f"v{k}"
    kernel = np.random.default_rng(1).normal(size=(4, 3, 3, 3)).astype(np.float32)
    weights.append(numpy_helper.from_array(kernel, "w"))
    nodes += [
        helper.make_node("Conv", [x, "w"], ["conv"]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["y"]),
    ]
    shape = [1, 8, 10, 3] if nhwc else ["n", 3, 8, 10]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", elem, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


CASES: dict[str, tuple[Any, str | None]] = {
    "Mul 0.0039": (file(("Mul", [np.float32(0.0039)], {})), "raw"),
    "Div, Sub": (file(("Div", [np.float32(127.5)], {}), ("Sub", [np.float32(1)], {})), "raw"),
    "Sub, Div of 0…1": (file(("Sub", [across(MEAN)], {}), ("Div", [across(STD)], {})), "unit"),
    "Sub, blue first": (file(("Sub", [across([103.939, 116.779, 123.68])], {})), "raw, BGR"),
    "Gather, Sub": (
        file(("Gather", [np.array([2, 1, 0])], {"axis": 1}), ("Sub", [across([103.939, 116.779, 123.68])], {})),
        "raw",
    ),
    "Transpose, Mul": (file(("Transpose", [], {"perm": [0, 3, 1, 2]}), ("Mul", [np.float32(1 / 255)], {}), nhwc=True), "raw"),
    "bn_data": (
        file(("BatchNormalization", [np.ones(3, np.float32), np.zeros(3, np.float32), MEAN * 255, (STD * 255) ** 2], {})),
        "raw",
    ),
    "a large mean": (file(("Sub", [np.full((1, 3, 8, 10), 120, np.float32)], {})), "raw"),
    "Cast, Mul of float16": (
        file(("Cast", [], {"to": TensorProto.FLOAT}), ("Mul", [np.float32(1 / 255)], {}), elem=TensorProto.FLOAT16),
        "raw",
    ),
    "quantised 0…1": (
        file(
            ("QuantizeLinear", [np.float32(1 / 255), np.uint8(0)], {}),
            ("DequantizeLinear", [np.float32(1 / 255), np.uint8(0)], {}),
        ),
        None,
    ),
    "Mul, quantised": (
        file(
            ("Mul", [np.float32(1 / 127.5)], {}),
            ("QuantizeLinear", [np.float32(1 / 255), np.uint8(0)], {}),
            ("DequantizeLinear", [np.float32(1 / 255), np.uint8(0)], {}),
        ),
        "raw",
    ),
    "Pad": (file(("Pad", [np.array([0, 0, 1, 1, 0, 0, 1, 1])], {})), None),
    "nothing": (file(), None),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_first_nodes_decide(name: str) -> None:
    model, expected = CASES[name]
    spec = xcam.load(model).input
    assert (spec.needs and spec.needs.name) == expected
    assert spec.preprocessing == spec.needs


def test_a_file_with_a_fixed_batch() -> None:
    model = onnx.ModelProto.FromString(CASES["Mul 0.0039"][0].SerializeToString())
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2
    assert xcam.load(model).input.needs == xcam.Preprocessing("raw")


def test_integers_are_pixels_and_need_no_warning() -> None:
    model = file(("Cast", [], {"to": TensorProto.FLOAT}), ("Mul", [np.float32(1 / 255)], {}), elem=TensorProto.UINT8)
    explanation = xcam.explain(model, IMAGE, target=0)
    outputs = ort.InferenceSession(model.SerializeToString()).run(None, {"x": IMAGE.transpose(2, 0, 1)[None]})[0]
    np.testing.assert_allclose(explanation.outputs, outputs[0], rtol=1e-5)


@pytest.mark.parametrize("name", ["Mul 0.0039", "Sub, Div of 0…1", "Sub, blue first", "Transpose, Mul", "bn_data"])
def test_explain_gives_the_model_its_own_input(name: str) -> None:
    model, expected = CASES[name]
    x = (IMAGE[..., ::-1] if name == "Sub, blue first" else IMAGE).astype(np.float32)[None]
    x = x / 255 if expected == "unit" else x
    x = x if name == "Transpose, Mul" else np.moveaxis(x, -1, 1)
    outputs = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x.astype(np.float32)})[0]
    np.testing.assert_allclose(xcam.explain(model, IMAGE, target=0).outputs, outputs[0], rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("dynamo", [False, True])
def test_files_exported_from_torch(dynamo: bool) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1) * 255)
            self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1) * 255)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv((x - self.mean) / self.std).mean((2, 3))

    data, module = io.BytesIO(), Scaled().eval()
    torch.onnx.export(module, (torch.zeros(1, 3, 8, 10),), data, dynamo=dynamo, verbose=False)
    model = onnx.load_from_string(data.getvalue())
    assert xcam.load(model).input.needs == xcam.Preprocessing("raw")
    with torch.no_grad():
        expected = module(torch.tensor(IMAGE.transpose(2, 0, 1)[None].astype(np.float32)))[0].numpy()
    np.testing.assert_allclose(xcam.explain(model, IMAGE, target=0).outputs, expected, rtol=1e-4, atol=1e-4)


def test_a_preset_in_front_of_the_models_own_scaling_is_warned_of() -> None:
    model, _ = CASES["Mul 0.0039"]
    with pytest.warns(xcam.XcamWarning, match="net scales its input itself and takes pixels in 0…255, and 'torch'"):
        xcam.load(model, preprocess="torch")
    onnx.helper.set_model_props(stated := onnx.ModelProto.FromString(model.SerializeToString()), {"xcam.preprocessing": (
        '{"name": "unit", "scale": 0.00392156862745098, "mean": [0], "std": [1], "order": "RGB"}'
    )})  # fmt: skip
    with pytest.warns(xcam.XcamWarning, match="and 'unit' scales images before it; use preprocess='raw'"):
        assert xcam.load(stated).input.preprocessing.name == "unit"
