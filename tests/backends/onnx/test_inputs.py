"""Inputs of ONNX files that are not batches of float images: single images, grey ones without channels, and integers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

import xcam
from xcam import InputError, ModelError

SIZE = (9, 7)
FILTERS, CLASSES = 5, 3
PHOTO = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
GREY = np.repeat(PHOTO[..., :1], 3, axis=-1)
"""The same image in grey: equal channels are not changed by the conversion."""


def unsqueeze(source: str, result: str, *axes: int) -> NodeProto:
    return helper.make_node("Unsqueeze", [source, f"axes{''.join(map(str, axes))}"], [result])


def network(
    first: Sequence[NodeProto],
    shape: Sequence[Any],
    *,
    channels: int,
    kind: int = TensorProto.FLOAT,
    last: Sequence[NodeProto] = (),
    constants: dict[str, np.ndarray] | None = None,
    outputs: Sequence[str] = ("logits",),
) -> ModelProto:
    """Return a network whose first nodes turn `x` into `image` [N, channels, H, W], in float32."""
    rng = np.random.default_rng(2)
    weights = {
        "kernel": rng.normal(size=(FILTERS, channels, 3, 3)).astype(np.float32),
        "matrix": np.abs(rng.normal(size=(FILTERS, CLASSES))).astype(np.float32),
        **{f"axes{name}": np.int64([int(n) for n in name]) for name in ("0", "1", "3", "01")},
        **(constants or {}),
    }
    steps = [
        *first,
        helper.make_node("Conv", ["image", "kernel"], ["conv"], "conv"),
        helper.make_node("Relu", ["conv"], ["features"], "features"),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["logits"], "scores"),
        *last,
    ]
    read = {name for node in steps for name in node.input}
    graph = helper.make_graph(
        steps,
        "net",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items() if name in read],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    for value in model.graph.output:
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    return model


def check(model: ModelProto, x: np.ndarray, photo: np.ndarray, **options: Any) -> Any:
    """Compare an explanation with Grad-CAM from the values that ONNX Runtime computes for `x`, given as the file takes it."""
    opened = xcam.load(model, **({"preprocess": "raw", "size": SIZE} | options))
    e = xcam.explain(opened, photo, target=1)
    whole = ModelProto()
    whole.CopyFrom(model)
    whole.graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, None))
    session = ort.InferenceSession(whole.SerializeToString())
    values = dict(zip([value.name for value in session.get_outputs()], session.run(None, {"x": x}), strict=True))
    matrix = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "matrix")
    assert e.layer == "features"
    features = values["features"][0]
    np.testing.assert_allclose(e.outputs, values["logits"].ravel(), rtol=1e-4)
    cam = np.einsum("chw,c->hw", features, matrix[:, 1]) / features[0].size
    np.testing.assert_allclose(e.cam, cam, atol=1e-5 * cam.max())
    for method in ("ablationcam", "scorecam"):  # the tail and the whole model are run on batches
        xcam.explain(opened, photo, target=1, method=method)
    pair = xcam.explain(opened, [photo, photo[::-1]], target=1)
    np.testing.assert_allclose(pair[0].cam, e.cam, atol=1e-5 * cam.max())
    np.testing.assert_allclose(pair[1].cam, xcam.explain(opened, photo[::-1], target=1).cam, atol=1e-5 * cam.max())
    assert np.abs(pair[0].cam - pair[1].cam).max() > 1e-3 * cam.max()
    return opened


FIRST, LAST, NONE = np.moveaxis(PHOTO, -1, 0), PHOTO, GREY[..., 0]
TURNED = helper.make_node("Transpose", ["row"], ["image"], perm=[0, 3, 1, 2])
RESHAPED = {"to": np.int64([1, 1, *SIZE])}
SINGLE = {
    "first": ([unsqueeze("x", "image", 0)], (3, *SIZE), 3, FIRST, {}),
    "first, open": ([unsqueeze("x", "image", 0)], ("C", "H", "W"), 3, FIRST, {}),
    "last": ([unsqueeze("x", "row", 0), TURNED], (*SIZE, 3), 3, LAST, {}),
    "last, open": ([unsqueeze("x", "row", 0), TURNED], ("H", "W", "C"), 3, LAST, {}),
    "last, turned first": (
        [helper.make_node("Transpose", ["x"], ["row"], perm=[2, 0, 1]), unsqueeze("row", "image", 0)],
        (*SIZE, 3),
        3,
        LAST,
        {},
    ),
    "grey": ([unsqueeze("x", "image", 0, 1)], SIZE, 1, NONE, {}),
    "grey, reshaped": ([helper.make_node("Reshape", ["x", "to"], ["image"])], SIZE, 1, NONE, RESHAPED),
    "first, reshaped": (
        [helper.make_node("Reshape", ["x", "to"], ["image"])],
        (3, *SIZE),
        3,
        FIRST,
        {"to": np.int64([1, 3, *SIZE])},
    ),
}


@pytest.mark.parametrize("case", SINGLE)
def test_a_single_image_without_a_batch_axis(case: str) -> None:
    first, shape, channels, x, constants = SINGLE[case]
    model = network(first, shape, channels=channels, constants=constants)
    opened = check(model, x.astype(np.float32), PHOTO if channels == 3 else GREY)
    assert not [layer.name for layer in opened.layers if layer.name.startswith("xcam/")]
    assert opened.layers[-1].name == "scores"


@pytest.mark.parametrize("case", ["first", "last", "grey"])
def test_an_output_without_a_batch_axis(case: str, tmp_path: Path) -> None:
    first, shape, channels, x, constants = SINGLE[case]
    squeeze = helper.make_node("Squeeze", ["logits", "axes0"], ["scores_of_one"])
    model = network(
        first, shape, channels=channels, constants=constants, last=[squeeze], outputs=["logits", "scores_of_one"]
    )
    del model.graph.output[0]
    photo = PHOTO if channels == 3 else GREY
    opened = xcam.load(model, preprocess="raw")
    expected = xcam.load(network(first, shape, channels=channels, constants=constants), preprocess="raw")
    a, b = (xcam.explain(each, photo, target=1) for each in (opened, expected))
    np.testing.assert_allclose(a.cam, b.cam, rtol=1e-5)
    np.testing.assert_allclose(a.outputs, b.outputs, rtol=1e-5)
    assert [len(e.outputs) for e in xcam.explain(opened, [photo, photo])] == [CLASSES] * 2
    path = xcam.export(expected, tmp_path / "explained.onnx", heatmap="gradcam")
    session = ort.InferenceSession(path)
    assert session.get_inputs()[0].shape == list(shape), "the file's own input"
    heatmap = session.run(["xcam/heatmap"], {"x": x.astype(np.float32), "xcam/class_index": np.int64([1])})[0]
    np.testing.assert_allclose(heatmap[0], b.heatmap, atol=1e-4)


@pytest.mark.parametrize("name", ["relu", ""])
def test_values_without_a_batch_axis(name: str, tmp_path: Path) -> None:
    """As torch exports a module that was traced with [C, H, W]: each convolution has a batch axis, the values between not."""
    relu = helper.make_node("Relu", ["one"], ["features"], name)
    steps = [helper.make_node("Squeeze", ["conv", "axes0"], ["one"]), relu, unsqueeze("features", "again", 0)]
    model = network([unsqueeze("x", "image", 0)], (3, *SIZE), channels=3)
    plain = xcam.explain(xcam.load(model, preprocess="raw"), PHOTO, target=1)
    nodes = [node for node in model.graph.node if node.op_type != "Relu"]
    next(node for node in nodes if node.op_type == "GlobalAveragePool").input[0] = "again"
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:2], *steps, *nodes[2:]])
    opened = xcam.load(model, preprocess="raw")
    layer = next(layer for layer in opened.layers if layer.name == (name or "features"))
    assert (layer.kind, layer.shape, layer.folds_batch) == ("Relu", (FILTERS, 7, 5), False)
    for method in ("gradcam", "ablationcam", "scorecam"):
        e = xcam.explain(opened, PHOTO, layer=layer, target=1, method=method)
        if method == "gradcam":
            np.testing.assert_allclose(e.cam, plain.cam, atol=1e-5 * plain.cam.max())
    path = xcam.export(opened, tmp_path / "explained.onnx", layer=layer.name, heatmap="gradcam")
    feeds = {"x": FIRST.astype(np.float32), "xcam/class_index": np.int64([1])}
    heatmap = ort.InferenceSession(path).run(["xcam/heatmap"], feeds)[0]
    np.testing.assert_allclose(heatmap[0], plain.heatmap, atol=1e-4)


@pytest.mark.parametrize("shape", [("N", *SIZE), ("N", "H", "W"), (1, *SIZE)])
@pytest.mark.parametrize("added", ["unsqueezed", "last", "reshaped"])
def test_grey_images_without_a_channel_axis(shape: tuple[Any, ...], added: str, tmp_path: Path) -> None:
    first = {
        "unsqueezed": [unsqueeze("x", "image", 1)],
        "last": [unsqueeze("x", "row", 3), TURNED],
        "reshaped": [helper.make_node("Reshape", ["x", "to"], ["image"])],
    }[added]
    model = network(first, shape, channels=1, constants={"to": np.int64([-1, 1, *SIZE])})
    opened = check(model, NONE[None].astype(np.float32), GREY)
    assert opened.input.channels == 0
    x = NONE[None].astype(np.float32)
    np.testing.assert_allclose(
        opened.predict(x), opened.predict(x[:, None]), err_msg="with a channel axis, or without"
    )
    path = xcam.export(opened, tmp_path / "explained.onnx", heatmap="gradcam")
    heatmap = ort.InferenceSession(path).run(["xcam/heatmap"], {"x": x, "xcam/class_index": np.int64([1])})[0]
    np.testing.assert_allclose(heatmap[0], xcam.explain(opened, GREY, target=1).heatmap, atol=1e-4)
    shuffled = opened.with_shuffled_weights(opened.parameter_layers)
    assert shuffled.predict(x[:, None]).shape == (1, CLASSES)


def test_signals_keep_their_channels() -> None:
    """[N, C, L], also where an exporter writes the convolution with a kernel of two axes, one of length 1."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(4, 12, 1, 3)).astype(np.float32)
    steps = [
        unsqueeze("x", "wide", 2),
        helper.make_node("Conv", ["wide", "kernel"], ["conv"], "conv"),
        helper.make_node("GlobalAveragePool", ["conv"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    graph = helper.make_graph(
        steps,
        "signals",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", 12, 40))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(np.int64([2]), "axes2")],
    )
    model = xcam.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))
    assert (model.input.size, model.input.channels) == ((40,), 12)


INTEGERS = ["uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_pixels_as_integers(dtype: str) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    cast = helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT)
    scale = helper.make_node("Mul", ["float", "scale"], ["image"])
    model = network([cast, scale], ("N", 3, *SIZE), channels=3, kind=kind, constants={"scale": np.float32(1 / 255)})
    opened = check(model, FIRST[None].astype(dtype), PHOTO, preprocess=None)
    assert opened.input.dtype == dtype
    with pytest.raises(
        InputError, match=rf"net takes integers \({dtype}\), and 'unit' gives fractions; use preprocess='raw'"
    ):
        xcam.explain(xcam.load(model, preprocess="unit"), PHOTO)


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_a_single_image_of_integers(dtype: str) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    first = [helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT), unsqueeze("float", "row", 0), TURNED]
    check(network(first, (*SIZE, 3), channels=3, kind=kind), LAST.astype(dtype), PHOTO, preprocess=None)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_floats_of_other_sizes(dtype: str) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    cast = helper.make_node("Cast", ["x"], ["image"], to=TensorProto.FLOAT)
    check(network([cast], ("N", 3, *SIZE), channels=3, kind=kind), FIRST[None].astype(dtype), PHOTO)


def test_bfloat16() -> None:
    """It holds 0…255 exactly."""
    cast = helper.make_node("Cast", ["x"], ["image"], to=TensorProto.FLOAT)
    kinds = (TensorProto.BFLOAT16, TensorProto.FLOAT)
    models = [xcam.load(network([cast], ("N", 3, *SIZE), channels=3, kind=kind), preprocess="raw") for kind in kinds]
    a, b = (xcam.explain(model, PHOTO, target=1) for model in models)
    np.testing.assert_array_equal(a.cam, b.cam)


def test_inputs_that_are_not_pixels() -> None:
    cast = helper.make_node("Cast", ["x"], ["image"], to=TensorProto.FLOAT)
    with pytest.raises(ModelError, match=r"its input 'x' is int8 \['N', 3, 9, 7\], not an image of floats or pixels"):
        xcam.load(network([cast], ("N", 3, *SIZE), channels=3, kind=TensorProto.INT8))


@pytest.mark.parametrize(
    ("first", "inner", "channels"),
    [
        (helper.make_node("SpaceToDepth", ["x"], ["image"], blocksize=2), 12, 3),
        (helper.make_node("Concat", ["x", "x", "x"], ["image"], axis=1), 3, 1),
    ],
)
def test_a_wrong_guess_of_open_channels_is_corrected(first: NodeProto, inner: int, channels: int) -> None:
    """The first convolution need not read the image itself."""
    photo = np.repeat(np.random.default_rng(1).integers(0, 256, (16, 12, 1), dtype=np.uint8), 3, -1)
    model = network([first], ("N", "C", "H", "W"), channels=inner)
    x = np.moveaxis(photo, -1, 0)[None, :channels].astype(np.float32)
    opened = check(model, x, photo, size=(16, 12))
    assert (opened.input.channels, opened.input.channels_known) == (channels, True)


def test_selected_boxes_of_a_single_image() -> None:
    """As torchvision's exported detectors: [C, H, W] → boxes [K, 4] and scores [K] behind a suppression."""
    rng = np.random.default_rng(3)
    weights = {
        "kernel": rng.normal(size=(5, 3, 4, 4)).astype(np.float32) / 4,
        "most": np.int64([3]),
        "overlap": np.float32([0.9]),
        **{f"axes{n}": np.int64([n]) for n in (0, 1)},
        "start": np.int64([0]),
        "four": np.int64([4]),
        "five": np.int64([5]),
        "flat": np.int64([5, -1]),
        "two": np.int64(2),
    }
    steps = [
        helper.make_node("Unsqueeze", ["x", "axes0"], ["image"]),
        helper.make_node("Conv", ["image", "kernel"], ["conv"], "conv", strides=[4, 4]),
        helper.make_node("Squeeze", ["conv", "axes0"], ["features"]),
        helper.make_node("Reshape", ["features", "flat"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["rows"], perm=[1, 0]),
        helper.make_node("Slice", ["rows", "start", "four", "axes1"], ["corners"]),
        helper.make_node("Slice", ["rows", "four", "five", "axes1"], ["score"]),
        helper.make_node("Squeeze", ["score", "axes1"], ["points"]),
        helper.make_node("Unsqueeze", ["corners", "axes0"], ["all_boxes"]),
        helper.make_node("Transpose", ["score"], ["line"], perm=[1, 0]),
        helper.make_node("Unsqueeze", ["line", "axes0"], ["all_scores"]),
        helper.make_node("NonMaxSuppression", ["all_boxes", "all_scores", "most", "overlap"], ["kept"]),
        helper.make_node("Gather", ["kept", "two"], ["index"], axis=1),
        helper.make_node("Gather", ["corners", "index"], ["boxes"], axis=0),
        helper.make_node("Gather", ["points", "index"], ["scores"], axis=0),
    ]
    graph = helper.make_graph(
        steps,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 16, 16])],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["K", 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["K"]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    x = rng.normal(size=(3, 16, 16)).astype(np.float32)
    truth = dict(
        zip(("boxes", "scores"), ort.InferenceSession(model.SerializeToString()).run(None, {"x": x}), strict=True)
    )
    opened: Any = xcam.load(model)
    outputs = opened.predict(x[None])
    for name, value in truth.items():
        np.testing.assert_array_equal(outputs[name][0], value)
    best = {"boxes": np.zeros((1, 3, 4), np.float32), "scores": np.float32([[1, 0, 0]])}
    trace = opened.trace(x[None], "conv", lambda _: [best])
    expected = np.zeros((1, 5, 4, 4), np.float32)
    expected[0, 4] = trace.activations[0, 4] == truth["scores"][0]  # zero through the suppression, 1 at the score
    assert expected.sum() == 1
    np.testing.assert_array_equal(trace.gradients[0], expected)
