"""Cases beyond the conformance suite: names, layouts, types and runtimes of ONNX models from other sources."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper
from onnxruntime import quantization as quantisation
from torch import nn

import onnx_small as small
import xcam
from xcam import InputError, ModelError
from xcam.images.resizing import resize
from xcam_onnx import sessions
from xcam_onnx.sessions import Runtime

X = small.images()
V = small.by_hand(X)
CLASSES = (1, 3)


def opened(steps: Sequence[NodeProto] | None = None, **options: Any) -> Any:
    loading = {k: options.pop(k) for k in ("size", "threads", "layout", "device") if k in options}
    return xcam.load(small.build(steps, **options), **loading)


def agree(value: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    expected = np.asarray(expected)
    assert value.shape == expected.shape
    np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def traced(model: Any, layer: str, value: str, tolerance: float = 1e-5) -> Any:
    """Trace at `layer`, and compare outputs, activations and gradients with those of `value` by hand."""
    trace = model.trace(X, layer, small.cotangents(*CLASSES))
    agree(trace.outputs, V["y"], tolerance)
    agree(trace.activations, V[value], tolerance)
    agree(trace.gradients[0], small.gradient(X, value, CLASSES), tolerance)
    return trace


def scoped(node: NodeProto, *modules: tuple[str, str]) -> NodeProto:
    """Add the metadata of torch's exporter: (path, class) of the modules that a node came from."""
    paths = ["", *(path for path, _ in modules), node.name]
    classes = ["net.Net", *(f"torch.nn.modules.{kind}" for _, kind in modules), f"aten.{node.op_type}"]
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=repr(paths))
    node.metadata_props.add(key="pkg.torch.onnx.class_hierarchy", value=repr(classes))
    return node


def torch_like() -> list[NodeProto]:
    """Return block = conv1 (with a folded batch norm) → act → conv2 → act, one module called twice."""
    conv1, relu1, conv2, relu2, *rest = small.nodes()
    conv1.input[1:] = ["block.conv1.weight_bn", "b1"]
    # torch counts the model itself as the outermost module, with an empty path
    return [
        scoped(conv1, ("block", "Block"), ("block.bn1", "BatchNorm2d")),
        scoped(relu1, ("block", "Block"), ("block.act", "ReLU")),
        scoped(conv2, ("block", "Block"), ("block.conv2", "Conv2d")),
        scoped(relu2, ("block", "Block"), ("block.act", "ReLU")),
        *rest,
    ]


def torch_model() -> onnx.ModelProto:
    model = small.build()
    del model.graph.node[:]
    model.graph.node.extend(torch_like())
    for tensor in model.graph.initializer:
        tensor.name = {"w1": "block.conv1.weight_bn"}.get(tensor.name, tensor.name)
    return model


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("block.bn1", "c1"),
        ("block.act#0", "r1"),
        ("block.conv2", "c2"),
        ("block.act", "r2"),
        ("block", "r2"),
        ("relu2", "r2"),
        ("r2", "r2"),
        ("conv2", "c2"),
    ],
)
def test_modules_nodes_and_tensors_are_names(name: str, value: str) -> None:
    agree(xcam.load(torch_model()).activations(X, [name])[name], V[value])
    if value != "c1":
        traced(xcam.load(torch_model()), name, value)


def test_layers_of_modules() -> None:
    model = xcam.load(torch_model())
    assert [(layer.name, layer.kind, layer.inner) for layer in model.layers] == [
        ("block.bn1", "BatchNorm2d", False),
        ("block.act#0", "ReLU", False),
        ("block.conv2", "Conv2d", False),
        ("block", "Block", False),
        ("block.act", "ReLU", False),
        ("pool", "GlobalAveragePool", True),
        ("flat", "Flatten", True),
        ("fc", "Gemm", True),
    ]
    assert model.layers[0].shape == (small.CHANNELS, small.SIZE, small.SIZE)
    assert model.layers[4].aliases == ("relu2", "r2")
    assert xcam.models.layers.default(model).name == "block.act"


def test_a_convolution_with_a_batch_norm_folded_into_it_names_the_batch_norm() -> None:
    for call in (lambda m: m.trace(X, "block.conv1"), lambda m: xcam.models.layers.find(m, "block.conv1")):
        with pytest.raises(InputError, match=r"cannot explain 'block.conv1' .*batch norm.*explain 'block.bn1'"):
            call(xcam.load(torch_model()))


def test_without_modules_nodes_are_the_layers_and_names_may_be_missing_or_duplicate() -> None:
    steps = small.nodes()
    steps[0].name, steps[2].name = "", "r1"
    model = opened(steps)
    assert [layer.name for layer in model.layers] == ["c1", "relu1", "r1", "relu2", "pool", "flat", "fc"]
    traced(model, "r1", "c2")  # the name of a node takes precedence over that of a tensor
    traced(model, "relu1", "r1")


def test_names_of_the_old_exporter() -> None:
    steps = small.nodes()
    steps[2].name, steps[2].output[0] = "/layer4/layer4.2/conv3/Conv", "/layer4/layer4.2/conv3/Conv_output_0"
    steps[3].input[0] = steps[2].output[0]
    for name in (steps[2].name, steps[2].output[0]):
        traced(opened(steps), name, "c2")


def test_all_layers_that_the_metadata_names() -> None:
    model = small.build()
    model.metadata_props.add(key="xcam.layers", value='{"part": "r2", "part/act": "r2", "part/conv": "c2"}')
    loaded = xcam.load(model)
    assert [layer.name for layer in loaded.layers if not layer.inner] == ["part/conv", "part/act"]
    for name, value in (("part", "r2"), ("part/act", "r2"), ("part/conv", "c2"), ("relu1", "r1")):
        traced(loaded, name, value)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("nope", "unknown layer 'nope' in small; known: conv1"),
        ("x", "unknown layer 'x'"),
        ("w1", "unknown layer 'w1'"),
        ("", "unknown layer ''"),
        ("\0" * 3, "unknown layer"),
        ("fc", "it has no spatial axes"),
    ],
)
def test_unknown_layers(name: str, pattern: str) -> None:
    with pytest.raises(InputError, match=pattern):
        xcam.models.layers.find(opened(), name)


def test_a_tensor_that_no_output_depends_on() -> None:
    model = opened([*small.nodes(), helper.make_node("Neg", ["r1"], ["dead"], "dead")])
    with pytest.raises(InputError, match=r"layer 'dead': no output of .* depends on it"):
        xcam.models.layers.find(model, "dead")
    traced(model, "relu1", "r1")


def test_channels_last_and_tensors_that_are_transposed_and_reshaped() -> None:
    into = helper.make_node("Transpose", ["x"], ["xt"], "into", perm=[0, 3, 1, 2])
    steps = small.inserted(0, [into])
    out = helper.make_node("Transpose", ["r1"], ["t"], "last", perm=[0, 2, 3, 1])
    flat = helper.make_node("Reshape", ["t", "k0"], ["p"], "grid_as_tokens")
    back = helper.make_node("Transpose", ["p"], ["q"], "turned", perm=[0, 2, 1])
    grid = helper.make_node("Reshape", ["q", "k1"], ["r"], "grid")
    steps = [*steps[:3], out, flat, back, grid, *steps[3:]]
    steps[7].input[0] = "r"
    shapes = [np.array([0, small.SIZE**2, small.CHANNELS]), np.array([0, small.CHANNELS, small.SIZE, small.SIZE])]
    model = opened(steps, shape=("N", small.SIZE, small.SIZE, 3), more=shapes)
    assert model.input.layout == "channels_last"
    last = X.transpose(0, 2, 3, 1)
    flatten = {"grid_as_tokens": True, "turned": True}
    layouts = {
        "relu1": "channels_first",
        "last": "channels_last",
        "grid_as_tokens": "tokens",
        "grid": "channels_first",
    }
    for name in ("relu1", "last", "grid_as_tokens", "turned", "grid"):
        trace = model.trace(last, name, small.cotangents(*CLASSES))
        layer = next(layer for layer in model.layers if layer.name == name)
        assert layer.layout == layouts.get(name, "channels_first")
        for value, expected in ((trace.activations, V["r1"]), (trace.gradients[0], small.gradient(X, "r1", CLASSES))):
            agree(value, expected.reshape(*expected.shape[:2], -1) if name in flatten else expected)
        agree(model.resume(trace, trace.activations).outputs, V["y"])


@pytest.mark.parametrize("first", ["", None, -1, "N", "unk__7"])
def test_a_batch_of_any_size_in_every_spelling(first: Any) -> None:
    proto = small.build()
    dim = proto.graph.input[0].type.tensor_type.shape.dim[0]
    dim.Clear()
    if isinstance(first, int):
        dim.dim_value = first
    elif first is not None:
        dim.dim_param = first
    traced(xcam.load(proto), "relu1", "r1")


def test_a_fixed_batch() -> None:
    model = opened(shape=(1, 3, small.SIZE, small.SIZE))
    trace = traced(model, "relu1", "r1")
    agree(model.predict(X), V["y"])
    more = model.resume(
        trace, V["r1"][[1, 0, 1]].astype(np.float32), rows=[1, 0, 1], cotangents=small.cotangents(3, 1, 3)
    )
    agree(more.outputs, V["y"][[1, 0, 1]])
    agree(more.gradients[0], small.gradient(X, "r1", CLASSES)[[1, 0, 1]])
    with pytest.raises(InputError, match="takes batches of 4; export it with a dynamic batch"):
        opened(shape=(4, 3, small.SIZE, small.SIZE)).predict(X)


def test_an_open_size_and_a_given_size() -> None:
    wide = np.random.default_rng(1).normal(size=(1, 3, 6, 11)).astype(np.float32)
    for space in (("H", "W"), (None, None), (-1, -1)):
        model = opened(shape=("N", 3, *space), size=(6, 11))
        assert model.input.size == (6, 11)
        assert not model.input.fixed
        trace = model.trace(wide, "relu1", small.cotangents(2))
        agree(trace.activations, small.by_hand(wide)["r1"])
        agree(trace.gradients[0], small.gradient(wide, "r1", [2]))


@pytest.mark.parametrize("rank", [1, 3])
def test_one_and_three_dimensions(rank: int) -> None:
    kernel = np.random.default_rng(0).normal(size=(16, 3, *[1] * rank)).astype(np.float32)
    steps = small.nodes()[1:2] + small.nodes()[4:]
    steps.insert(0, helper.make_node("Conv", ["x", "k0"], ["c1"], "conv1"))
    steps[2].input[0] = "r1"
    x = np.random.default_rng(1).normal(size=(2, 3, *[5] * rank)).astype(np.float32)
    model = opened(steps, shape=("N", 3, *[5] * rank), more=[kernel])
    trace = model.trace(x, "relu1", small.cotangents(*CLASSES))
    agree(trace.activations, np.maximum(np.einsum("nc...,oc->no...", x, kernel.reshape(16, 3)), 0))
    weights = small.arrays()["w3"][list(CLASSES)].reshape(2, 16, *[1] * rank) / 5**rank
    agree(trace.gradients[0], np.broadcast_to(weights, trace.activations.shape))


def test_half_precision() -> None:
    model = opened(kind=TensorProto.FLOAT16)
    trace = traced(model, "relu1", "r1", 5e-3)
    assert trace.activations.dtype == trace.gradients[0].dtype == np.float32
    assert model.input.dtype == "float32"
    agree(model.resume(trace, 0 * trace.activations).outputs, tail(0 * V["r1"]), 5e-3)


def tail(r1: np.ndarray) -> np.ndarray:
    w = small.arrays()
    r2 = np.maximum(small.conv(r1, w["w2"], w["b2"]), 0)
    return r2.mean((2, 3)) @ w["w3"].T + w["b3"]


@pytest.mark.parametrize("kind", [TensorProto.DOUBLE, TensorProto.BFLOAT16])
def test_types_that_the_runtime_does_not_support(kind: int) -> None:
    with pytest.raises(ModelError, match=r"has no implementation for these types.*in float32"):
        opened(kind=kind, opset=22).trace(X, "relu1", small.cotangents(*CLASSES))


def test_integers_as_input() -> None:
    cast = helper.make_node("Cast", ["x"], ["xf"], to=TensorProto.FLOAT)
    turn = helper.make_node("Transpose", ["xf"], ["xt"], perm=[0, 3, 1, 2])
    model = opened(small.inserted(0, [cast, turn]), shape=("N", small.SIZE, small.SIZE, 3), kind=TensorProto.UINT8)
    assert (model.input.dtype, model.input.layout) == ("uint8", "channels_last")
    x = np.random.default_rng(2).integers(0, 255, (2, small.SIZE, small.SIZE, 3), np.uint8)
    expected = small.by_hand(x.transpose(0, 3, 1, 2).astype(np.float32))
    agree(model.activations(x, ["relu1"])["relu1"], expected["r1"])


def ending(*steps: NodeProto, outputs: Sequence[str], **options: Any) -> Any:
    """Open the network with more nodes behind its scores z."""
    nodes = small.nodes()
    nodes[-1].output[0] = "z"
    return opened([*nodes, *steps], outputs=outputs, **options)


@pytest.mark.parametrize("op", ["Softmax", "Sigmoid"])
def test_an_output_activation_is_cut_off(op: str) -> None:
    options = {"axis": 1} if op == "Softmax" else {}
    cast = helper.make_node("Identity", ["p"], ["y"])
    model = ending(helper.make_node(op, ["z"], ["p"], "end", **options), cast, outputs=["y"])
    assert model.output_activation == op.lower()
    traced(model, "relu1", "r1")
    agree(model.predict(X), V["y"])


def test_several_outputs() -> None:
    end = helper.make_node("Softmax", ["z"], ["y"], "end", axis=1)
    model = ending(end, helper.make_node("Tanh", ["r1"], ["t"]), outputs=["y", "t", "z"])
    assert model.output_activation == {"y": "softmax", "t": None, "z": None}
    outputs = model.predict(X)
    assert list(outputs) == ["y", "t", "z"]
    agree(outputs["t"], np.tanh(V["r1"]))
    cotangent = np.eye(5, dtype=np.float32)[list(CLASSES)]

    def cotangents(outputs: Any) -> Any:
        zero = {name: np.zeros_like(value) for name, value in outputs.items()}
        ones = np.ones_like(outputs["t"])
        return [zero | {"y": cotangent}, zero | {"y": cotangent, "z": 2 * cotangent}, zero | {"t": ones}]

    trace = model.trace(X, "relu1", cotangents)
    expected = small.gradient(X, "r1", CLASSES)
    agree(trace.gradients[0], expected)
    agree(trace.gradients[1], 3 * expected)  # y's logits and z are one tensor
    agree(trace.gradients[2], 1 - np.tanh(V["r1"]) ** 2)
    later = model.trace(X, "relu2", cotangents)
    assert not later.gradients[2].any()
    agree(model.resume(later, later.activations).outputs["t"], np.tanh(V["r1"]))


def test_outputs_without_scores_are_left_out() -> None:
    steps = [
        helper.make_node("Cast", ["z"], ["k"], to=TensorProto.INT64),
        helper.make_node("SequenceConstruct", ["z", "z"], ["s"]),
    ]
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    whole = helper.make_tensor_value_info("k", TensorProto.INT64, None)
    model = ending(*steps, outputs=[whole, sequence, "z"])
    assert model.output_activation is None
    traced(model, "relu1", "r1")
    with pytest.raises(ModelError, match=r"returns k \(int64\), and a score needs a float output"):
        ending(steps[0], outputs=[whole])


def skipping() -> list[NodeProto]:
    """Return … r1 → conv2 → + r1 → relu2, and a factor that is computed from the input and passes all layers by."""
    nodes = small.nodes()
    nodes[3].input[0] = "sum"
    nodes[4].input[0] = "scaled"
    nodes.insert(3, helper.make_node("Add", ["c2", "r1"], ["sum"], "add"))
    nodes.insert(5, helper.make_node("Mul", ["r2", "m"], ["scaled"], "scale"))
    nodes.insert(0, helper.make_node("ReduceMean", ["x", "k0"], ["m"], "mean", keepdims=1))
    return nodes


def test_resume_uses_the_bypass_values_of_each_row() -> None:
    model, w = opened(skipping(), more=[np.array([1, 2, 3])]), small.arrays()
    m = X.mean((1, 2, 3), keepdims=True)

    def rest(c2: np.ndarray, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        rows = list(rows)
        r2 = np.maximum(c2 + V["r1"][rows], 0)
        y = (r2 * m[rows]).mean((2, 3)) @ w["w3"].T + w["b3"]
        slope = np.broadcast_to(w["w3"][2][:, None, None], r2.shape) * m[rows] / r2[0, 0].size
        return y, slope * (r2 > 0)

    trace = model.trace(X, "conv2", small.cotangents(2, 2))
    y, slope = rest(V["c2"], [0, 1])
    agree(trace.outputs, y)
    agree(trace.gradients[0], slope)
    for rows in ([1, 0, 1, 1], [0], [1]):
        changed = np.random.default_rng(3).normal(size=(len(rows), *V["c2"].shape[1:])).astype(np.float32)
        again = model.resume(trace, changed, rows=rows, cotangents=small.cotangents(*[2] * len(rows)))
        y, slope = rest(changed, rows)
        agree(again.outputs, y)
        agree(again.gradients[0], slope)
        agree(again.activations, changed)
        once_more = model.resume(again, again.activations[::-1], rows=list(range(len(rows)))[::-1])
        agree(once_more.outputs, y[::-1])


@pytest.mark.parametrize("layers", [["relu1"] * 4, ["relu1", "relu2", "conv2", "relu1"]])
def test_threads_from_their_first_calls_on(layers: list[str]) -> None:
    values = {"relu1": "r1", "relu2": "r2", "conv2": "c2"}
    for _ in range(3):
        model, failures = opened(), []
        gate = threading.Barrier(len(layers))

        def work(layer: str, model: Any = model, gate: Any = gate, failures: Any = failures) -> None:
            try:
                gate.wait()
                trace = traced(model, layer, values[layer])
                agree(model.resume(trace, trace.activations).outputs, V["y"])
                agree(model.predict(X), V["y"])
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(layer,)) for layer in layers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures


def test_the_number_of_threads_reaches_the_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    make = sessions.ort.InferenceSession

    def spy(model: bytes, options: Any, **rest: Any) -> Any:
        seen.append(options.intra_op_num_threads)
        return make(model, options, **rest)

    monkeypatch.setattr(sessions.ort, "InferenceSession", spy)
    assert traced(opened(threads=1), "relu1", "r1")
    assert set(seen) == {1}
    assert opened(threads=3).threads == 3
    assert opened().threads is None
    with pytest.raises(InputError, match="'keras' has no threads for each model"):
        xcam.load("demo", "keras", threads=1)


def test_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    for device in ("cpu", "CPU", "CPUExecutionProvider"):
        traced(opened(device=device), "relu1", "r1")
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(sessions.ort, "get_available_providers", lambda: available)
    cpu = "CPUExecutionProvider"
    assert sessions.providers(None) == (cpu,)
    assert sessions.providers("gpu") == ("CUDAExecutionProvider", cpu)
    assert sessions.providers("cuda:1") == (("CUDAExecutionProvider", {"device_id": 1}), cpu)
    with pytest.raises(InputError, match="unknown device 'dml'; this build of onnxruntime has: cpu, cuda"):
        sessions.providers("dml")


def test_a_provider_that_does_not_start_does_not_fall_back_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class FallenBack:
        def __init__(self, *_: Any, **options: Any) -> None:
            assert options["enable_fallback"] == 0

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(sessions.ort, "InferenceSession", FallenBack)
    files = opened().recording.runtime.weights
    with pytest.raises(ModelError, match=r"cannot start CUDAExecutionProvider: .*; install its requirements, or"):
        Runtime(files, (("CUDAExecutionProvider", {"device_id": 0}), "CPUExecutionProvider")).session(small.build())


MICROSOFT = "com.microsoft"


def test_operators_of_the_runtime_are_run_and_named_where_they_are_not_differentiable() -> None:
    upper = helper.make_node("Trilu", ["r1"], ["q"], "upper", domain=MICROSOFT)
    model = opened(small.inserted(2, [upper]), domains=[MICROSOFT])
    q = np.triu(V["r1"])
    agree(model.predict(X), tail(q))
    trace = model.trace(X, "relu2", small.cotangents(*CLASSES))
    agree(trace.activations, np.maximum(small.conv(q, small.arrays()["w2"], small.arrays()["b2"]), 0))
    agree(trace.gradients[0], small.gradient(X, "r2", CLASSES))
    with pytest.raises(
        ModelError, match=r"cannot differentiate .*: com.microsoft:Trilu \(upper\); choose a layer behind"
    ):
        model.trace(X, "relu1", small.cotangents(*CLASSES))
    agree(model.trace(X, "relu1").activations, V["r1"])  # without a gradient it works
    agree(model.resume(model.trace(X, "relu1"), 0 * V["r1"]).outputs, tail(0 * V["r1"]))


def test_quantised_values_pass_straight_through_and_are_noted() -> None:
    rounding = [
        helper.make_node("QuantizeLinear", ["r1", "k0", "k1"], ["i"], "round"),
        helper.make_node("DequantizeLinear", ["i", "k0", "k1"], ["q"], "back"),
    ]
    steps = small.inserted(2, rounding)
    model = opened(steps, more=[np.float32(1 / 16), np.uint8(0)])
    assert "straight through the rounding" in model.notes[0]
    trace = model.trace(X, "relu1", small.cotangents(*CLASSES))
    q, w = np.round(V["r1"] * 16) / 16, small.arrays()
    assert q.max() < 255 / 16, "clipped values would have no gradient"
    agree(trace.outputs, tail(q))
    g = small.gradient(X, "r2", CLASSES) * (small.conv(q, w["w2"], w["b2"]) > 0)
    agree(trace.gradients[0], small.conv(g, w["w2"].transpose(1, 0, 2, 3)[:, :, ::-1, ::-1], np.zeros(16)))
    agree(trace.activations, q)
    assert {"round", "back", "q"} <= set(xcam.models.layers.find(model, "relu1").aliases)
    assert not opened().notes


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the exporter
def test_a_relu_that_the_quantiser_absorbed_clips_the_gradient(tmp_path: Path) -> None:
    """The gradient is that of the original network, up to rounding, and the default layer corresponds to the original's."""
    tail = [nn.AvgPool2d(5), nn.Flatten(), nn.Linear(144, 32), nn.ReLU(), nn.Linear(32, 5)]
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), *tail).eval()
    whole, reduced = tmp_path / "f.onnx", tmp_path / "q.onnx"
    torch.onnx.export(net, (torch.zeros(1, 3, 64, 64),), whole, dynamo=False, opset_version=13, input_names=["x"])
    images = np.random.default_rng(0).random((8, 1, 3, 64, 64), np.float32)
    quantisation.quantize_static(whole, reduced, Batches(images))
    assert not any(node.op_type == "Relu" for node in onnx.load(reduced).graph.node)
    model = xcam.load(reduced)
    layer = xcam.models.layers.default(model)
    assert layer.name == xcam.models.layers.default(xcam.load(whole)).name == "/3/Relu"
    assert {"/2/Conv", "/3/Relu_output_0", "/3/Relu_output_0_DequantizeLinear"} <= set(layer.aliases)
    trace = model.trace(images[0], layer.name, lambda y: [np.eye(5, dtype=np.float32)[[3]]])
    a = torch.from_numpy(trace.activations).requires_grad_()
    nn.Sequential(*tail)(a)[0, 3].backward()
    assert a.grad is not None
    assert np.linalg.norm(trace.gradients[0] - a.grad.numpy()) < 0.02 * np.linalg.norm(a.grad.numpy())


class Batches(quantisation.CalibrationDataReader):
    """Batches for the calibration of a quantiser."""

    def __init__(self, batches: np.ndarray) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"x": batch}


@pytest.mark.parametrize(("factor", "cotangent"), [(1e-5, 1), (300.0, 64)])
def test_small_and_large_gradients_in_half_precision(factor: float, cotangent: float) -> None:
    """float16 rounds the small gradients to zero, unless they are scaled; the large ones exceed it if they are scaled too."""
    scale = helper.make_node("Mul", ["f", "k0"], ["g1"], "scale")
    model = opened(small.inserted(6, [scale]), more=[np.float16(factor)], kind=TensorProto.FLOAT16)
    trace = model.trace(X, "relu1", lambda y: [cotangent * c for c in small.cotangents(*CLASSES)(y)])
    expected = cotangent * np.float32(np.float16(factor)) * small.gradient(X, "r1", CLASSES)
    assert np.abs(trace.gradients[0] - expected).max() < 0.02 * np.abs(expected).max()


def test_gathered_channels_in_half_precision() -> None:
    """The channels are reversed: the gradient is that of the plain network, with the channels in that order."""
    gather = helper.make_node("Gather", ["r1", "k0"], ["q"], "gather", axis=1)
    order = np.arange(small.CHANNELS)[::-1].copy()
    model = opened(small.inserted(2, [gather]), more=[order], kind=TensorProto.FLOAT16)
    trace = model.trace(X, "relu1", small.cotangents(*CLASSES))
    w = small.arrays()
    g = small.gradient(X, "r2", CLASSES) * (small.conv(V["r1"][:, order], w["w2"], w["b2"]) > 0)
    g = small.conv(g, w["w2"].transpose(1, 0, 2, 3)[:, :, ::-1, ::-1], np.zeros(16))[:, order]
    assert np.abs(trace.gradients[0] - g).max() < 0.02 * np.abs(g).max()


def test_weights_that_are_nan() -> None:
    model = small.build()
    model.graph.initializer[2].CopyFrom(
        onnx.numpy_helper.from_array(np.full((16, 16, 3, 3), np.nan, np.float32), "w2")
    )
    with pytest.raises(ModelError, match="the first layer with one is 'conv2'"):
        xcam.explain(xcam.load(model, preprocess="unit"), np.zeros((9, 9, 3), np.uint8))


def test_a_model_that_the_backend_does_not_have() -> None:
    with pytest.raises(InputError, match="unknown model 'resnet50' for ONNX Runtime; give an"):
        xcam.load("resnet50", "onnx")


def test_weights_that_forward_and_backward_read_are_shared(tmp_path: Path) -> None:
    """Both sessions read the same pages of a dense layer's weights, which are most of this model's; a kernel is flipped."""
    import onnx

    from xcam_onnx.cut import _shared_weights, gradient
    from xcam_onnx.graph import Graph, part

    rng = np.random.default_rng(0)
    arrays = {"k": rng.normal(size=(8, 3, 3, 3)), "d": rng.normal(size=(200, 8 * 36))}
    nodes = [
        onnx.helper.make_node("Conv", ["x", "k"], ["c"], "c", pads=[1] * 4),
        onnx.helper.make_node("Flatten", ["c"], ["f"], "f"),
        onnx.helper.make_node("Gemm", ["f", "d"], ["y"], "y", transB=1),
    ]
    values = [onnx.helper.make_tensor_value_info(n, 1, s) for n, s in (("x", ["n", 3, 6, 6]), ("y", ["n", 200]))]
    weights = [onnx.numpy_helper.from_array(v.astype(np.float32), n) for n, v in arrays.items()]
    built = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", values[:1], values[1:], weights),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=8,
    )
    onnx.save(built, tmp_path / "m.onnx")
    model = xcam.load(tmp_path / "m.onnx")
    whole, _ = part(model.recording.graph, ["x"], ["c", "y"])
    _, backward = gradient(whole, "c", ["y"])
    assert _shared_weights(backward.model, whole) == {"d"}
    assert "k" not in Graph(backward.model).initializers
    trace = model.trace(np.ones((2, 3, 6, 6), np.float32), "c", lambda y: [np.ones_like(y)])
    expected = arrays["d"].sum(axis=0).reshape(8, 6, 6)
    np.testing.assert_allclose(trace.gradients[0], np.stack([expected] * 2), rtol=1e-4, atol=1e-4)


def test_a_fixed_height_and_an_open_width() -> None:
    """As in networks that read text: the width follows from the image's ratio."""
    model = opened(shape=("N", 3, small.SIZE, "W"))
    assert (model.input.size, model.input.fixed) == ((small.SIZE, None), True)
    model.input = dataclasses.replace(model.input, preprocessing=xcam.Preprocessing("unit", scale=1 / 255))
    images = [np.random.default_rng(0).integers(0, 256, (20, w, 3), dtype=np.uint8) for w in (50, 25)]
    for e, image, width in zip(xcam.explain(model, images, layer="relu2", target=1), images, (20, 10), strict=True):
        x = np.moveaxis(resize(image, (small.SIZE, width)), -1, 0)[None].astype(np.float32) / 255
        values = small.by_hand(x)
        agree(e.outputs, values["y"][0])
        agree(e.cam, np.einsum("chw,c->hw", values["r2"][0], small.gradient(x, "r2", (1,))[0].mean(axis=(1, 2))))
    assert opened(shape=("N", 3, small.SIZE, "W"), size=(None, 40)).input.size == (small.SIZE, 40)
    assert opened(shape=("N", 3, "H", "W"), size=(small.SIZE, None)).input.size == (small.SIZE, None)
    with pytest.raises(
        InputError, match=r"small takes images of 8×any, not 9×40; give size=\(None, 40\) \(--size x40\)"
    ):
        opened(shape=("N", 3, small.SIZE, "W"), size=(9, 40))
