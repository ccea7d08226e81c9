"""Files of opset 7 to 10 compute the same after their conversion: ONNX Runtime runs both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnx_small as small
import xcam
from onnx_gradients import error
from xcam import ModelError
from xcam_onnx import opsets
from xcam_onnx.graph import copied, inferred

X = np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype(np.float32)
F = np.float32
ints = np.array


def single(op: str, opset: int, x: np.ndarray = X, outputs: int = 1, *inputs: np.ndarray, **attributes: Any) -> onnx.ModelProto:  # fmt: skip
    """Return a model of one node; further inputs are weights."""
    names = [f"w{i}" for i in range(len(inputs))]
    node = helper.make_node(op, ["x", *names], ["y", "y1", "y2", "y3", "y4"][:outputs], "node", **attributes)
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [node],
        "single",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_empty_tensor_value_info(name) for name in node.output],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in zip(names, inputs, strict=True)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=4)


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values: list[np.ndarray] = session.run(None, feeds)
    return values


def assert_same(model: onnx.ModelProto, x: np.ndarray = X, **tolerance: float) -> onnx.ModelProto:
    """Convert, compare all outputs, and return the converted model, which is valid."""
    result = copied(model)
    old = model.opset_import[0].version
    assert opsets.convert(result, "m") == old
    assert result.opset_import[0].version == opsets.TARGET
    onnx.checker.check_model(inferred(result), full_check=True)
    before, after = run(model, x=x), run(result, x=x)
    assert len(before) == len(after)
    for a, b in zip(before, after, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(b, a, **({"rtol": 0, "atol": 0} | tolerance))
    assert {name for node in model.graph.node for name in node.output} <= {
        name for node in result.graph.node for name in node.output
    }
    return result


SCALE = np.random.default_rng(1).uniform(0.5, 2, (4, 3)).astype(F)
CHANGED: dict[str, tuple[str, tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = {
    "batch norm": ("BatchNormalization", (7, 8, 9), tuple(SCALE), {"epsilon": 0.01}),
    "clip": ("Clip", (7, 9, 10), (), {"min": -0.5, "max": 0.75}),
    "clip below": ("Clip", (7, 10), (), {"max": 0.25}),
    "clip above": ("Clip", (7, 10), (), {"min": 0.25}),
    "no clip": ("Clip", (7, 10), (), {}),
    "dropout": ("Dropout", (7, 10), (), {"ratio": 0.25}),
    "pad": ("Pad", (7, 10), (), {"pads": [0, 0, 1, 2, 0, 0, 0, -1], "value": 1.5}),
    "pad with zeros": ("Pad", (7, 10), (), {"pads": [0, 0, 1, 0, 0, 1, 0, 0]}),
    "reflected": ("Pad", (7, 10), (), {"pads": [0, 0, 1, 2, 0, 0, 1, 3], "mode": "reflect"}),
    "edge": ("Pad", (7, 10), (), {"pads": [0, 0, 1, 2, 0, 0, 1, 3], "mode": "edge"}),
    "slice": ("Slice", (7, 9), (), {"starts": [1, -5], "ends": [100, -1], "axes": [1, 3]}),
    "slice of the first axes": ("Slice", (7, 9), (), {"starts": [0, 1], "ends": [2, 3]}),
    "slice by inputs": ("Slice", (10,), (ints([5]), ints([0]), ints([3]), ints([-2])), {}),
    "scatter": ("Scatter", (9, 10), (np.zeros((2, 1, 4, 6), np.int64), np.ones((2, 1, 4, 6), F)), {"axis": 1}),
    "upsample, nearest": ("Upsample", (7, 8), (), {"scales": [1.0, 1.0, 2.0, 2.5]}),
    "upsample, linear": ("Upsample", (7, 8), (), {"scales": [1.0, 1.0, 2.0, 2.5], "mode": "linear"}),
    "upsample by an input": ("Upsample", (9,), (F([1, 1, 2, 1.7]),), {}),
    "upsample by an input, linear": ("Upsample", (9,), (F([1, 1, 2, 1.7]),), {"mode": "linear"}),
    "enlarged": ("Resize", (10,), (F([1, 1, 2, 1.7]),), {}),
    "reduced": ("Resize", (10,), (F([1, 1, 0.5, 0.7]),), {}),
    "enlarged and reduced": ("Resize", (10,), (F([1, 1, 1.5, 0.4]),), {}),
    "resized, linear": ("Resize", (10,), (F([1, 1, 1.5, 0.4]),), {"mode": "linear"}),
    "softmax": ("Softmax", (7, 10), (), {}),
    "softmax of the last axes": ("Softmax", (7, 10), (), {"axis": 2}),
    "log softmax": ("LogSoftmax", (7, 10), (), {"axis": 1}),
    "hardmax": ("Hardmax", (7, 10), (), {"axis": 2}),
    "flatten": ("Flatten", (7, 9), (), {"axis": 2}),
    "max pool": ("MaxPool", (7, 8, 10), (), {"kernel_shape": [2, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "average pool": (
        "AveragePool",
        (7, 10),
        (),
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
    ),
    "same": ("AveragePool", (7, 10), (), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    "rounded up": ("MaxPool", (10,), (), {"kernel_shape": [2, 2], "strides": [3, 4], "ceil_mode": 1}),
    "transposed": (
        "ConvTranspose",
        (7, 10),
        (np.ones((3, 2, 3, 3), F),),
        {"strides": [2, 2], "auto_pad": "SAME_UPPER", "output_padding": [1, 1]},
    ),
    "gather": ("Gather", (7, 10), (ints([2, 0, 1, 1]),), {"axis": 1}),
    "split": ("Split", (7, 10), (), {"axis": 3}),
    "squared sum": ("ReduceSumSquare", (7, 10), (), {"axes": [1, 2], "keepdims": 0}),
    "largest": ("ArgMax", (7, 10), (), {"axis": 1}),
    "maximum": ("Max", (7, 8), (X + 0.1,), {}),
    "depth": ("DepthToSpace", (7, 10), (), {"blocksize": 1}),
    "channel norm": ("MeanVarianceNormalization", (7, 8), (), {}),
    "norm": ("MeanVarianceNormalization", (7, 8), (), {"across_channels": 1}),
    "axes": ("MeanVarianceNormalization", (9, 10), (), {"axes": [2, 3]}),
    "scaled and shifted": ("ImageScaler", (7, 9), (), {"scale": 2.0, "bias": [1.0, 2.0, 3.0]}),
    "affine": ("Affine", (7, 9), (), {"alpha": 2.0, "beta": 0.5}),
    "soft plus": ("ParametricSoftplus", (7, 9), (), {"alpha": 2.0, "beta": 0.5}),
    "tanh": ("ScaledTanh", (7, 9), (), {"alpha": 2.0, "beta": 0.5}),
    "cropped": ("Crop", (7, 9), (), {"border": [1, 2, 0, 1]}),
    "cropped to a size": ("Crop", (7, 9), (), {"border": [2, 1, 0, 0], "scale": [2, 3]}),
    "threshold": ("ThresholdedRelu", (7, 9, 10), (), {"alpha": 0.5}),
}
"""By name: operator, opsets, further inputs, attributes."""
CLOSE = ("channel norm", "norm", "soft plus", "tanh", "axes")
TWO = ("split",)


@pytest.mark.parametrize(("name", "opset"), [(name, opset) for name, case in CHANGED.items() for opset in case[1]])
def test_operators_that_changed(name: str, opset: int) -> None:
    op, _, inputs, attributes = CHANGED[name]
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if name in CLOSE else {}
    assert_same(single(op, opset, X, 2 if name in TWO else 1, *inputs, **attributes), **tolerance)


def test_every_step_has_a_case() -> None:
    tested = {op for op, *_ in CHANGED.values()} | {"TopK", "Scan"}
    assert set(opsets.STEPS) <= tested


@pytest.mark.parametrize("opset", [7, 9, 10])
def test_the_largest_values(opset: int) -> None:
    inputs, attributes = ((ints([2]),), {}) if opset == 10 else ((), {"k": 2})
    assert_same(single("TopK", opset, X, 2, *inputs, axis=3, **attributes))


@pytest.mark.parametrize("opset", [7, 8])
def test_statistics_for_each_position(opset: int) -> None:
    statistics = np.random.default_rng(2).uniform(0.5, 2, (4, *X.shape[1:])).astype(F)
    assert_same(single("BatchNormalization", opset, X, 1, *statistics, spatial=0), rtol=1e-5, atol=1e-6)


def test_scales_that_are_computed() -> None:
    """Sides that grow take the value below, and those that shrink the one above."""
    model = single("Resize", 10, X, 1, F([1, 1, 1.5, 0.4]))
    model.graph.node[0].input[1] = "s"
    model.graph.node.insert(0, helper.make_node("Add", ["w0", "zeros"], ["s"]))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(4, F), "zeros"))
    assert_same(model)


@pytest.mark.parametrize("opset", [7, 10])
def test_half_precision(opset: int) -> None:
    half = X.astype(np.float16)
    assert_same(single("Clip", opset, half, 1, min=-0.5, max=0.75), half)
    assert_same(single("Pad", opset, half, 1, pads=[0, 0, 1, 0, 0, 0, 0, 0], value=0.5), half)


def test_inside_a_branch() -> None:
    def branch(op: str, **attributes: Any) -> onnx.GraphProto:
        out = [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)]
        return helper.make_graph([helper.make_node(op, ["x"], ["t"], **attributes)], op, [], out)

    model = single("Identity", 9)
    branches = {"then_branch": branch("Clip", min=0.0), "else_branch": branch("Neg")}
    model.graph.node[0].CopyFrom(helper.make_node("If", ["w"], ["y"], "if", **branches))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "w"))
    assert_same(model)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (single("Scan", 8, num_scan_inputs=1, body=onnx.GraphProto()), r"Scan \(node\)"),
        (single("GRUUnit", 7), r"GRUUnit \(node\)"),
        (
            single("MeanVarianceNormalization", 8, normalize_variance=0),
            r"MeanVarianceNormalization \(node\) without normalize_variance",
        ),
        (single("ScaledTanh", 8), r"ScaledTanh \(node\) without alpha or beta"),
    ],
)
def test_operators_without_an_equivalent_are_named(model: onnx.ModelProto, reason: str) -> None:
    pattern = f"cannot read single: it uses opset [78], whose {reason}.* no equivalent in opset 11; export the model"
    with pytest.raises(ModelError, match=pattern):
        xcam.load(model)


# Whole networks


def old(opset: int, ir: int = 4, **options: Any) -> onnx.ModelProto:
    """Return the small network with a Clip and a Slice as they were written then."""
    steps = [
        helper.make_node("Clip", ["r1"], ["q0"], "clip", min=0.0, max=2.0),
        helper.make_node("Slice", ["q0"], ["q"], "slice", axes=[2], starts=[1], ends=[7]),
    ]
    model = small.build(small.inserted(2, steps), opset=opset, **options)
    model.ir_version = ir
    if ir < 4:
        model.graph.input.extend(
            helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
        )
    return model


@pytest.mark.parametrize(("opset", "ir"), [(7, 3), (8, 3), (9, 4)])
def test_values_and_gradients_of_a_network(tmp_path: Path, opset: int, ir: int) -> None:
    """The weights stay in the file, and the answer says that it was converted."""
    path, x = tmp_path / "m.onnx", small.images()
    onnx.save(old(opset, ir), path)
    model = xcam.load(path)
    assert list(model.notes) == [f"converted from opset {opset} to 11 in memory"]
    np.testing.assert_allclose(model.predict(x), run(onnx.load(path), x=x)[0], atol=1e-6)
    trace = model.trace(x, "relu1", small.cotangents(1, 3))
    w, v = small.arrays(), small.by_hand(x)
    q = np.clip(v["r1"], 0, 2)[:, :, 1:7]
    c2 = small.conv(q, w["w2"], w["b2"])
    g = w["w3"][[1, 3]][:, :, None, None] / c2[0, 0].size * (c2 > 0)
    g = small.conv(g, w["w2"].transpose(1, 0, 2, 3)[:, :, ::-1, ::-1], np.zeros(small.CHANNELS))
    expected = np.zeros_like(v["r1"])
    expected[:, :, 1:7] = g * ((v["r1"] > 0) & (v["r1"] < 2))[:, :, 1:7]
    assert error(trace.gradients[0], expected) < 1e-4
    large = [t for t in model.recording.form.original.graph.initializer if t.name in ("w1", "w2")]  # type: ignore[attr-defined]
    assert [t.data_location for t in large] == [TensorProto.EXTERNAL] * 2
    assert [layer.name for layer in model.layers][:4] == ["conv1", "relu1", "clip", "slice"]


def test_the_self_explaining_file_of_an_old_one(tmp_path: Path) -> None:
    x = small.images()
    model = xcam.load(old(8, 3))
    path = xcam.export(model, tmp_path / "e.onnx", layer="relu1", heatmap="gradcam")
    session = ort.InferenceSession(path)
    assert "x" in [value.name for value in session.get_inputs()]
    names = ["y", "xcam/gradients"]
    y, g = session.run(names, {"x": x, "xcam/class_index": np.array([1, 3])})
    np.testing.assert_allclose(y, model.predict(x), atol=1e-5)
    np.testing.assert_allclose(g, model.trace(x, "relu1", small.cotangents(1, 3)).gradients[0], atol=1e-6)


def test_a_shuffled_copy_of_an_old_file_keeps_the_note() -> None:
    model = xcam.load(old(9))
    copy = model.with_shuffled_weights(["fc"])  # type: ignore[attr-defined]
    assert list(copy.notes) == list(model.notes)


def test_newer_files_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opsets, "_Converter", lambda *arguments: pytest.fail("it was converted"))
    assert not xcam.load(small.build(opset=11)).notes
