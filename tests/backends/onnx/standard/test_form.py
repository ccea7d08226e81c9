"""The standard form of quantised graphs: values in NumPy, the runtime's own predictions, layers, gradients, export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper
from tests.helpers import onnx_small as small

import xcam
from xcam_onnx.graph import Graph, inferred
from xcam_onnx.standard.form import StandardForm, _Merger

ort.set_default_logger_severity(4)

SCALE, ZERO = np.float32(0.05), np.uint8(20)
"""The range is −1 … 11.75."""
X, CLASSES = small.images(), (3, 1)
RELU1_SCALE = np.float32(0.03)


def steps(value: np.ndarray, scale: float = float(SCALE), zero: int = int(ZERO)) -> np.ndarray:
    """Quantise to uint8 and dequantise."""
    return ((np.clip(np.rint(value / np.float32(scale)) + zero, 0, 255) - zero) * np.float32(scale)).astype(
        np.float32
    )


def quantize(source: str, out: str, name: str = "") -> NodeProto:
    return helper.make_node("QuantizeLinear", [source, "k0", "k1"], [out], name or out)


def dequantize(source: str, out: str, name: str = "") -> NodeProto:
    return helper.make_node("DequantizeLinear", [source, "k0", "k1"], [out], name or out)


def model_of(nodes: Sequence[NodeProto], **options: Any) -> onnx.ModelProto:
    return small.build(list(nodes), more=[SCALE, ZERO], **options)


def plain(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def tail(r1: np.ndarray) -> np.ndarray:
    w = small.arrays()
    return np.maximum(small.conv(r1, w["w2"], w["b2"]), 0).mean((2, 3)) @ w["w3"].T + w["b3"]


def gradient(r1: np.ndarray) -> np.ndarray:
    """The gradient of the class scores of CLASSES at the value that conv2 reads."""
    w = small.arrays()
    c2 = small.conv(r1, w["w2"], w["b2"])
    g = np.broadcast_to(w["w3"][list(CLASSES)][:, :, None, None] / c2[0, 0].size, c2.shape) * (c2 > 0)
    return small.conv(g, w["w2"].transpose(1, 0, 2, 3)[:, :, ::-1, ::-1], np.zeros(small.CHANNELS))


def two_readers() -> list[NodeProto]:
    """conv1, its ReLU absorbed by the range of uint8 from 0 on → two DequantizeLinear → conv2 and a skip connection."""
    n = small.nodes()
    n[0].output[0] = "r1"
    n[2].input[0] = "d1"
    return [
        n[0],
        helper.make_node("QuantizeLinear", ["r1", "k2", "k3"], ["q1"], "q"),
        helper.make_node("DequantizeLinear", ["q1", "k2", "k3"], ["d1"], "back1"),
        helper.make_node("DequantizeLinear", ["q1", "k2", "k3"], ["d2"], "back2"),
        n[2],
        helper.make_node("Add", ["c2", "d2"], ["sum"], "add"),
        helper.make_node("Relu", ["sum"], ["r2"], "relu2"),
        *n[4:],
    ]


def test_several_readers_are_one_layer_and_an_absorbed_relu_clips() -> None:
    proto = small.build(two_readers(), more=[SCALE, ZERO, RELU1_SCALE, np.uint8(0)])
    model = xcam.load(proto)
    w = small.arrays()
    c1 = small.by_hand(X)["c1"]
    value = steps(c1, float(RELU1_SCALE), 0)
    assert (c1 < 0).mean() > 0.3, "the quantiser clips nothing"
    trace = model.trace(X, "conv1", small.cotangents(*CLASSES))
    np.testing.assert_allclose(trace.activations, value, atol=1e-6)
    np.testing.assert_array_equal(model.predict(X), plain(proto, X))
    names = {layer.name: layer for layer in model.layers}
    assert [name for name in names if name in ("conv1", "back1", "back2", "q")] == ["conv1"]
    assert {"r1", "q", "back1", "d1", "back2", "d2"} <= set(names["conv1"].aliases)
    assert names["conv1"].dtype == "uint8"
    assert names["relu2"].dtype == "float32"

    # Both ways from the layer count, in the gradient and in resume.
    total = small.conv(value, w["w2"], w["b2"]) + value
    g = np.broadcast_to(w["w3"][list(CLASSES)][:, :, None, None] / total[0, 0].size, total.shape) * (total > 0)
    expected = small.conv(g, w["w2"].transpose(1, 0, 2, 3)[:, :, ::-1, ::-1], np.zeros(small.CHANNELS)) + g
    np.testing.assert_allclose(trace.gradients[0], expected, atol=1e-5)
    chosen = np.random.default_rng(1).normal(size=value.shape).astype(np.float32)
    again = model.resume(trace, chosen, cotangents=small.cotangents(*CLASSES))
    taken = steps(chosen, float(RELU1_SCALE), 0)
    total = small.conv(taken, w["w2"], w["b2"]) + taken
    scores = np.maximum(total, 0).mean((2, 3)) @ w["w3"].T + w["b3"]
    np.testing.assert_allclose(again.outputs, scores, atol=1e-5)
    assert (again.gradients[0][chosen < -0.5 * RELU1_SCALE] == 0).all(), "the chosen values are clipped"
    assert (again.gradients[0][chosen > 0] != 0).mean() > 0.5


@pytest.mark.parametrize(
    ("activation", "output", "expected"),
    [
        ("/1/Relu", "/1/Relu_output_0", "/1/Relu"),  # torch's exporter
        ("net/relu", "net/relu:0", "net/relu"),  # tf2onnx
        ("relu1", "relu1", "relu1"),  # outputs have the names of their nodes
        ("node_relu", "relu", "conv1"),  # others
    ],
)
def test_an_absorbed_activation_keeps_its_name(activation: str, output: str, expected: str) -> None:
    """The quantiser removes the node, and gives its output to the convolution."""
    n = two_readers()
    n[0].output[0] = n[1].input[0] = output
    suffix = output.removeprefix(activation) if expected == activation else "_out"
    for node in n[4:-1]:
        for other in n:
            other.input[:] = [f"{node.name}{suffix}" if name == node.output[0] else name for name in other.input]
        node.output[0] = f"{node.name}{suffix}"
    model = xcam.load(small.build(n, more=[SCALE, ZERO, RELU1_SCALE, np.uint8(0)]))
    layer = model.layers[0]
    assert layer.name == expected
    assert {"conv1", output, "q", "back1"} <= {layer.name, *layer.aliases}


def test_operators_that_move_integers() -> None:
    """MaxPool, Reshape and Transpose of uint8: the layers are those of the numbers, and the gradient goes through them."""
    n = small.nodes()
    n[2].input[0] = "d"
    proto = model_of(
        [
            *n[:2],
            quantize("r1", "q"),
            helper.make_node(
                "MaxPool", ["q"], ["p"], "pool1", kernel_shape=[2, 2], strides=[1, 1], pads=[0, 0, 1, 1]
            ),
            helper.make_node("Transpose", ["p"], ["t"], "turn", perm=[0, 1, 3, 2]),
            dequantize("t", "d"),
            *n[2:],
        ]
    )
    model = xcam.load(proto)
    np.testing.assert_array_equal(model.predict(X), plain(proto, X))
    r1 = steps(small.by_hand(X)["r1"])
    padded = np.pad(r1, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2, 2), axis=(2, 3))
    turned = windows.max((-1, -2)).transpose(0, 1, 3, 2)
    for name, value in (("relu1", r1), ("pool1", turned.transpose(0, 1, 3, 2)), ("turn", turned)):
        trace = model.trace(X, name, small.cotangents(*CLASSES))
        np.testing.assert_allclose(trace.activations, value, atol=1e-6)
    np.testing.assert_allclose(trace.gradients[0], gradient(turned), atol=1e-5)
    np.testing.assert_allclose(trace.outputs, tail(turned), atol=1e-5)


def test_integers_in_and_out() -> None:
    """A uint8 input and output of QuantizeLinear's kind: real numbers go in and come out."""
    n = small.nodes()
    n[0].input[0], n[-1].output[0] = "xf", "yf"
    proto = small.build(
        [
            dequantize("x", "xf"),
            *n,
            helper.make_node("QuantizeLinear", ["yf", "k2", "k3"], ["y"], "end"),
        ],
        more=[SCALE, ZERO, np.float32(0.01), np.int8(-3)],
        kind=TensorProto.UINT8,
    )
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT8
    model = xcam.load(proto)
    assert model.input.dtype == "float32"
    integers = np.clip(np.rint(X / SCALE) + 20, 0, 255).astype(np.uint8)
    expected = (plain(proto, integers).astype(np.float32) + 3) * np.float32(0.01)
    np.testing.assert_array_equal(model.predict(X), expected)
    xf = steps(X)
    r1 = small.by_hand(xf)["r1"]
    trace = model.trace(X, "relu1", small.cotangents(*CLASSES))
    np.testing.assert_allclose(trace.activations, r1, atol=1e-5)
    np.testing.assert_array_equal(trace.outputs, expected)
    np.testing.assert_allclose(trace.gradients[0], gradient(r1), atol=1e-5)


def test_an_input_of_integers_that_is_moved_before_it_is_dequantised() -> None:
    n = small.nodes()
    n[0].input[0] = "xf"
    turn = helper.make_node("Transpose", ["x"], ["t"], "turn", perm=[0, 3, 1, 2])
    shape = ("N", small.SIZE, small.SIZE, 3)
    proto = small.build([turn, dequantize("t", "xf"), *n], more=[SCALE, ZERO], kind=TensorProto.UINT8, shape=shape)
    model = xcam.load(proto)
    assert (model.input.dtype, model.input.layout) == ("float32", "channels_last")
    x = np.ascontiguousarray(X.transpose(0, 2, 3, 1))
    integers = np.clip(np.rint(x / SCALE) + 20, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(model.predict(x), plain(proto, integers))
    trace = model.trace(x, "relu1", small.cotangents(*CLASSES))
    np.testing.assert_allclose(trace.activations, small.by_hand(steps(X))["r1"], atol=1e-5)


def test_a_score_beyond_the_range_of_a_quantised_output_has_a_gradient() -> None:
    n = small.nodes()
    n[-1].output[0] = "yf"
    more = [SCALE, ZERO, np.float32(1e-5), np.uint8(128)]
    ends = [
        helper.make_node("QuantizeLinear", ["yf", "k2", "k3"], ["yq"], "end"),
        helper.make_node("DequantizeLinear", ["yq", "k2", "k3"], ["y"], "back"),
    ]
    model = xcam.load(small.build([*n, *ends], more=more))
    trace = model.trace(X, "relu2", small.cotangents(*CLASSES))
    assert np.abs(trace.outputs).max() < 2e-3 < np.abs(small.by_hand(X)["y"]).max()
    np.testing.assert_allclose(trace.gradients[0], small.gradient(X, "r2", CLASSES), atol=1e-6)


def test_an_output_in_the_middle_and_another_scale_for_one_reader() -> None:
    """A DequantizeLinear with another scale is another value; one that is an output remains an output."""
    n = small.nodes()
    n[2].input[0] = "other"
    proto = small.build(
        [
            *n[:2],
            quantize("r1", "q"),
            dequantize("q", "first"),
            helper.make_node("DequantizeLinear", ["q", "k0", "k1"], ["middle"], "second"),
            helper.make_node("DequantizeLinear", ["q", "k2", "k1"], ["other"], "third"),
            *n[2:],
        ],
        more=[SCALE, ZERO, 2 * SCALE],
        outputs=("y", "middle"),
    )
    model = xcam.load(proto)
    r1 = steps(small.by_hand(X)["r1"])
    outputs = model.predict(X)
    np.testing.assert_allclose(outputs["middle"], r1, atol=1e-6)
    np.testing.assert_allclose(outputs["y"], tail(2 * r1), atol=1e-5)
    trace = model.trace(X, "relu1", lambda y: [{"y": np.eye(5, dtype=np.float32)[list(CLASSES)], "middle": 0 * r1}])
    np.testing.assert_allclose(trace.gradients[0], 2 * gradient(2 * r1), atol=1e-5)


@pytest.mark.parametrize("method", ["gradcam", "layercam"])
def test_an_exported_quantised_file_returns_the_same_heatmap(tmp_path: Path, method: str) -> None:
    path = tmp_path / "e.onnx"
    proto = small.build(two_readers(), more=[SCALE, ZERO, RELU1_SCALE, np.uint8(0)])
    model = xcam.load(proto, preprocess="unit")
    image = np.random.default_rng(2).integers(0, 256, (small.SIZE, small.SIZE, 3), np.uint8)
    xcam.export(model, path, layer="conv1", heatmap=method)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    x = (image.transpose(2, 0, 1)[None] / np.float32(255)).astype(np.float32)
    values = dict(zip(names, session.run(None, {"x": x}), strict=True))
    explained = xcam.explain(model, image, layer="conv1", method=method)
    assert explained.heatmap.max() > 0.9
    np.testing.assert_array_equal(values["y"], plain(proto, x))
    np.testing.assert_allclose(values["xcam/heatmap"][0], explained.heatmap, atol=1e-5)


def test_nodes_in_any_order_and_graphs_in_standard_form_remain_the_same() -> None:
    shuffled = small.build(small.nodes()[::-1])
    model = xcam.load(shuffled)
    np.testing.assert_allclose(model.predict(X), small.by_hand(X)["y"], atol=1e-5)
    assert [layer.name for layer in model.layers] == [node.name for node in small.nodes()]
    whole = small.build()
    form = StandardForm(Graph(whole))
    assert form.model is form.original


def test_dynamic_quantisation_takes_each_image_alone() -> None:
    """The range of a batch is that of its largest image: the result of an image must not depend on the others."""
    n = small.nodes()
    n[2].input[0] = "d"
    dynamic = [
        helper.make_node("DynamicQuantizeLinear", ["r1"], ["q", "s", "z"], "dynamic"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "back"),
    ]
    proto = small.build([*n[:2], *dynamic, *n[2:]])
    model = xcam.load(proto)
    batch = np.concatenate([X[:1], 20 * X[1:]])
    np.testing.assert_array_equal(
        model.predict(batch), np.concatenate([plain(proto, batch[:1]), plain(proto, batch[1:])])
    )
    trace = model.trace(batch, "relu1", small.cotangents(*CLASSES))
    alone = model.trace(batch[:1], "relu1", small.cotangents(CLASSES[0]))
    np.testing.assert_array_equal(trace.activations[:1], alone.activations)
    np.testing.assert_array_equal(trace.gradients[0][:1], alone.gradients[0])
    assert any("run alone" in note for note in model.notes)
    session_in_a_batch = plain(proto, batch)
    assert np.abs(session_in_a_batch[0] - model.predict(batch)[0]).max() > 1e-4, "the batch does not matter here"


def test_weights_are_not_copied_into_memory(tmp_path: Path) -> None:
    """Large weights stay in their file: only their location is in the three graphs."""
    n = small.nodes()
    n[2].input[1] = "w2f"
    weights = np.random.default_rng(3).integers(-127, 128, (small.CHANNELS, small.CHANNELS, 3, 3), np.int8)
    proto = model_of([helper.make_node("DequantizeLinear", ["k2", "k0"], ["w2f"], "back"), *n])
    proto.graph.initializer.append(numpy_helper.from_array(weights, "k2"))
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    model: Any = xcam.load(path)
    np.testing.assert_array_equal(model.predict(X), plain(proto, X))
    form = model.recording.form
    for graph in (form.original, form.model, form.runnable):
        (large,) = [tensor for tensor in graph.graph.initializer if tensor.name == "k2"]
        assert large.data_location == TensorProto.EXTERNAL


def test_loading_reads_the_file_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Types are inferred and the standard form is written when they are needed, and not when a file is opened."""
    calls: list[str] = []

    def counted(name: str, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            calls.append(name)
            return function(*arguments)

        return call

    monkeypatch.setattr("xcam_onnx.graph.inferred", counted("inferred", inferred))
    monkeypatch.setattr("xcam_onnx.standard.form._Merger", counted("merged", _Merger))
    model = xcam.load(small.build(two_readers(), more=[SCALE, ZERO, RELU1_SCALE, np.uint8(0)]))
    assert not calls
    assert "conv1" in [layer.name for layer in model.layers]
    assert set(calls) == {"inferred", "merged"}
