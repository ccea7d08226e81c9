"""Branches and loops that the shape of the input decides: the values and gradients are those of the executed nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn

import onnx_small as small
import xcam
from xcam import ModelError
from xcam.contract.caches import BoundedCache

X = small.images()
CLASSES = (1, 3)
Function = Callable[[np.ndarray], np.ndarray]


def node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op, inputs, [output], output, **attributes)


def branch(nodes: Sequence[NodeProto], *outputs: str, initializers: Sequence[TensorProto] = ()) -> GraphProto:
    values = [helper.make_empty_tensor_value_info(name) for name in outputs]
    return helper.make_graph(nodes, "branch", [], values, initializers)


def either(condition: str, output: str, then: GraphProto, other: GraphProto) -> NodeProto:
    return helper.make_node("If", [condition], [output], f"if_{output}", then_branch=then, else_branch=other)


def size(axis: int) -> list[NodeProto]:
    """Return nodes that compute the size of an axis of the input, as `size`."""
    return [
        node("Shape", ["x"], "shape"),
        helper.make_node("Constant", [], ["axis"], value_ints=[axis]),
        node("Gather", ["shape", "axis"], "size"),
    ]


def built(steps: Sequence[NodeProto], more: Sequence[np.ndarray] = (), shape: Sequence[Any] = ("N", 3, "H", "W"), **options: Any) -> Any:  # fmt: skip
    return small.build(small.inserted(2, steps), more=more, shape=shape, **options)


def assert_equal(model: onnx.ModelProto, f: Function, slope: Function, x: np.ndarray = X) -> xcam.Model:
    """Compare the outputs, and the gradient at the first ReLU, of the network with f behind it. Return the model."""
    opened = xcam.load(model, size=x.shape[2:])
    expected = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    np.testing.assert_allclose(opened.predict(x), expected, rtol=1e-5, atol=1e-5)
    r = small.by_hand(x)["r1"]
    w = small.arrays()
    trace = opened.trace(x, "relu1", small.cotangents(*CLASSES[: len(x)]))
    c2 = small.conv(f(r), w["w2"], w["b2"])
    np.testing.assert_allclose(
        trace.outputs, np.maximum(c2, 0).mean((2, 3)) @ w["w3"].T + w["b3"], rtol=1e-4, atol=1e-5
    )
    top = w["w3"][list(CLASSES[: len(x)])][:, :, None, None] / c2[0, 0].size * (c2 > 0)
    back = small.conv(top, w["w2"].transpose(1, 0, 2, 3)[:, :, ::-1, ::-1], np.zeros(small.CHANNELS))
    np.testing.assert_allclose(trace.gradients[0], back * slope(r), rtol=1e-3, atol=1e-5)
    return opened


TWICE: tuple[Function, Function] = (lambda r: 2 * r, lambda r: np.full_like(r, 2))
NEGATIVE: tuple[Function, Function] = (lambda r: -r, lambda r: np.full_like(r, -1))


def doubled_or_negative(condition: str) -> NodeProto:
    return either(
        condition, "q", branch([node("Add", ["r1", "r1"], "t")], "t"), branch([node("Neg", ["r1"], "t")], "t")
    )


OPERATORS = (("Add", ["r1"]), ("Neg", []))


@pytest.mark.parametrize("value", [True, False])
def test_a_constant_condition(value: bool) -> None:
    """The value has the names of both the If and the node that computes it."""
    twice, negative = (branch([helper.make_node(op, ["r1", *more], ["t"], op)], "t") for op, more in OPERATORS)
    model = built([either("k0", "q", twice, negative)], [np.array(value)])
    opened = assert_equal(model, *(TWICE if value else NEGATIVE))
    assert (opened.layers[2].name, opened.layers[2].aliases) == ("Add" if value else "Neg", ("q",))


def test_each_input_shape_has_its_own_branch() -> None:
    steps = [*size(2), node("Greater", ["size", "k0"], "c"), doubled_or_negative("c")]
    model = built(steps, [np.array([8])])
    large = small.images(2, 12)
    opened = xcam.load(model)
    for x, (f, slope) in ((X, NEGATIVE), (large, TWICE), (X, NEGATIVE)):
        trace = opened.trace(x, "relu1", small.cotangents(*CLASSES))
        np.testing.assert_array_equal(trace.outputs, opened.predict(x))
        assert_equal(model, f, slope, x)
        resumed = opened.resume(trace, trace.activations[[1, 0, 0]], [1, 0, 0])
        np.testing.assert_allclose(resumed.outputs, trace.outputs[[1, 0, 0]], atol=1e-5)


def test_a_condition_on_the_batch_runs_images_one_by_one() -> None:
    steps = [*size(0), node("Equal", ["size", "k0"], "c"), doubled_or_negative("c")]
    model = built(steps, [np.array([1])])
    opened = assert_equal(model, *TWICE, x=X[:1])
    np.testing.assert_allclose(opened.predict(X)[1:], opened.predict(X[1:]), atol=1e-6)


def test_a_fixed_batch_decides() -> None:
    steps = [*size(0), node("Equal", ["size", "k0"], "c"), doubled_or_negative("c")]
    assert_equal(built(steps, [np.array([1])], shape=(2, 3, 8, 8)), *NEGATIVE)


def test_nested_branches_with_equal_names_and_their_own_weights() -> None:
    """Both levels call their tensor `t`, and their weight `k`; the inner one reads tensors from outside."""
    k = [numpy_helper.from_array(np.float32(value), "k") for value in (3, 5)]
    inner = either(
        "d",
        "u",
        branch([node("Mul", ["p", "k"], "t"), node("Add", ["t", "r1"], "s")], "s", initializers=k[:1]),
        branch([node("Identity", ["p"], "t")], "t"),
    )
    steps = [
        *size(3),
        node("Less", ["size", "k0"], "c"),
        node("Not", ["c"], "d"),
        node("Not", ["d"], "e"),
        either(
            "d",
            "p1",
            branch([node("Mul", ["r1", "k"], "p"), inner], "u", initializers=k[1:]),
            branch([node("Neg", ["r1"], "t")], "t"),
        ),
        either("e", "q", branch([node("Neg", ["p1"], "t")], "t"), branch([node("Identity", ["p1"], "t")], "t")),
    ]
    assert_equal(built(steps, [np.array([8])]), lambda r: 16 * r, lambda r: np.full_like(r, 16))


def test_a_branch_that_leads_to_another_condition() -> None:
    """The rank behind the first branch is known only when it is chosen, and decides the second one."""
    squeezed = branch([node("Unsqueeze", ["r1", "k1"], "t")], "t")
    steps = [
        *size(2),
        node("Equal", ["size", "k0"], "c"),
        either("c", "p", squeezed, branch([node("Identity", ["r1"], "t")], "t")),
        node("Shape", ["p"], "s"),
        node("Size", ["s"], "rank"),
        node("Equal", ["rank", "k2"], "d"),
        either(
            "d", "p2", branch([node("Squeeze", ["p", "k1"], "t")], "t"), branch([node("Identity", ["p"], "t")], "t")
        ),
        either("d", "q", branch([node("Add", ["p2", "p2"], "t")], "t"), branch([node("Neg", ["p2"], "t")], "t")),
    ]
    assert_equal(built(steps, [np.array([8]), np.array([0]), np.array(5)]), *TWICE)


def loop(body: Sequence[NodeProto], outputs: Sequence[str], rounds: str = "k0", condition: str = "") -> NodeProto:
    """Return a loop that carries `a`, which begins as r1."""
    inputs = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_empty_tensor_value_info("a"),
    ]
    graph = helper.make_graph(body, "body", inputs, [helper.make_empty_tensor_value_info(name) for name in outputs])
    names = ["q", "all"][: len(outputs) - 1]
    return helper.make_node("Loop", [rounds, condition, "r1"], names, "loop", body=graph)


KEEP = node("Identity", ["go"], "go_on")
DOUBLE = node("Add", ["a", "a"], "b")


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_a_loop_of_a_known_count(opset: int) -> None:
    model = built([loop([KEEP, DOUBLE], ["go_on", "b"])], [np.array(3)], opset=opset)
    opened = assert_equal(model, lambda r: 8 * r, lambda r: np.full_like(r, 8))
    layers = {layer.name: layer for layer in opened.layers}
    assert list(layers)[2:5] == ["loop/0/b", "loop/1/b", "loop/2/b"]
    assert "q" in layers["loop/2/b"].aliases


def test_no_round_at_all() -> None:
    assert_equal(built([loop([KEEP, DOUBLE], ["go_on", "b"])], [np.array(0)]), lambda r: r, np.ones_like)


def test_a_loop_that_the_counter_ends() -> None:
    """The trip count is the largest integer; the condition holds for three rounds, of which each does something else."""
    odd = either("odd", "b", branch([node("Neg", ["a"], "t")], "t"), branch([node("Add", ["a", "a"], "t")], "t"))
    body = [
        node("Less", ["i", "k1"], "go_on"),
        node("Mod", ["i", "k1"], "rest"),
        node("Equal", ["rest", "k2"], "odd"),
        odd,
    ]
    more = [np.array(2**63 - 1), np.array(2), np.array(1)]
    assert_equal(built([loop(body, ["go_on", "b"])], more), lambda r: -4 * r, lambda r: np.full_like(r, -4))


@pytest.mark.parametrize("opset", [11, 18])
def test_the_values_of_all_rounds(opset: int) -> None:
    """r, 2r and 4r are stacked along a new axis, and added up."""
    axes = {"axes": [0]} if opset == 11 else {}
    total = helper.make_node("ReduceSum", ["all", "k1"][: 2 - len(axes)], ["w"], keepdims=0, **axes)
    steps = [loop([KEEP, DOUBLE, node("Identity", ["a"], "c")], ["go_on", "b", "c"]), total]
    model = built(steps, [np.array(3), np.array([0])], opset=opset)
    assert_equal(model, lambda r: 7 * r, lambda r: np.full_like(r, 7))


def test_a_count_that_is_a_size() -> None:
    model = built([*size(2), node("Squeeze", ["size"], "n"), loop([KEEP, DOUBLE], ["go_on", "b"], "n")])
    x = small.images(2, 4)
    assert_equal(model, lambda r: 16 * r, lambda r: np.full_like(r, 16), x)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            [node("ReduceMax", ["r1"], "m", keepdims=0), node("Greater", ["m", "k0"], "c"), doubled_or_negative("c")],
            r"If \(if_q\), whose branch is known only while the model runs; choose a layer behind",
        ),
        (
            [
                node("ReduceMax", ["r1"], "m", keepdims=0),
                node("Cast", ["m"], "n", to=TensorProto.INT64),
                loop([KEEP, DOUBLE], ["go_on", "b"], "n"),
            ],
            r"Loop \(loop\), whose number of rounds is known only while the model runs; choose a layer behind",
        ),
    ],
)
def test_decisions_that_depend_on_the_image_have_no_gradient(steps: list[NodeProto], message: str) -> None:
    model = built(steps, [np.array(0.5, np.float32)])
    opened = xcam.load(model, preprocess="unit", size=(8, 8))
    expected = ort.InferenceSession(model.SerializeToString()).run(None, {"x": X})[0]
    np.testing.assert_allclose(opened.predict(X), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ModelError, match=message):
        opened.trace(X, "relu1", small.cotangents(*CLASSES))
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    for method in ("eigencam", "scorecam"):
        assert xcam.explain(opened, image, layer="relu1", method=method).cam.shape == (8, 8)


def test_a_size_that_is_inferred_wrongly_decides_nothing() -> None:
    """Before opset 22, the last window of a pooling that rounds up is inferred, and is left out by the runtime."""
    pool = helper.make_node(
        "MaxPool", ["r1"], ["p"], "p", kernel_shape=[2, 2], strides=[3, 3], pads=[0, 0, 1, 1], ceil_mode=1
    )
    steps = [
        pool,
        node("Shape", ["p"], "shape"),
        node("Gather", ["shape", "k0"], "size"),
        node("Equal", ["size", "k1"], "c"),
        doubled_or_negative("c"),
    ]
    for expected in (3, 4):
        model = built(steps, [np.array([2]), np.array([expected])])
        right = ort.InferenceSession(model.SerializeToString()).run(None, {"x": X})[0]
        opened = xcam.load(model, size=(8, 8))
        np.testing.assert_allclose(opened.predict(X), right, atol=1e-5)
        try:
            outputs = opened.trace(X, "relu1", small.cotangents(*CLASSES)).outputs
        except ModelError:
            continue
        np.testing.assert_allclose(outputs, right, atol=1e-5)


def test_the_export_fixes_the_size_that_decided(tmp_path: Path) -> None:
    steps = [*size(2), node("Greater", ["size", "k0"], "c"), doubled_or_negative("c")]
    opened = xcam.load(built(steps, [np.array([8])]), size=(12, 12))
    path = xcam.export(opened, tmp_path / "e.onnx", layer="relu1", heatmap="gradcam")
    session = ort.InferenceSession(path)
    assert session.get_inputs()[0].shape == ["N", 3, 12, 12]
    x = small.images(2, 12)
    np.testing.assert_allclose(session.run(["y"], {"x": x})[0], opened.predict(x), atol=1e-6)
    constant = xcam.load(built([doubled_or_negative("k0")], [np.array(True)]), size=(12, 12))
    path = xcam.export(constant, tmp_path / "c.onnx", layer="relu1", heatmap="gradcam")
    assert ort.InferenceSession(path).get_inputs()[0].shape == ["N", 3, "H", "W"]


class Columns(nn.Module):
    """A text recogniser: the height is one in front of `squeeze`, which torch's exporter cannot know."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.column = nn.Conv2d(16, 16, (8, 1))
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.column(self.features(x)).squeeze(2).mean(2))
        return scores


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning")
@pytest.mark.parametrize("layer", ["features.3", None])
def test_a_squeeze_that_torch_exports_as_a_branch(tmp_path: Path, layer: str | None) -> None:
    net, path = Columns().eval(), tmp_path / "m.onnx"
    axes = {"x": {0: "n", 2: "h", 3: "w"}}
    torch.onnx.export(
        net, (torch.zeros(1, 3, 32, 32),), path, dynamo=False, opset_version=13, input_names=["x"], dynamic_axes=axes
    )
    assert "If" in {n.op_type for n in onnx.load(path).graph.node}
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    options: dict[str, Any] = {"preprocess": "unit", "size": (32, 32)}
    expected = xcam.explain(xcam.load(net, **options), image, target=2, layer=layer)
    result = xcam.explain(xcam.load(path, **options), image, target=2, layer=layer and "/features/features.3/Relu")
    assert result.cam.shape == expected.cam.shape
    np.testing.assert_allclose(result.cam, expected.cam, atol=1e-5 * np.abs(expected.cam).max())


def test_models_without_branches_are_recorded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening another size costs neither a copy of the model nor an inference."""
    opened = xcam.load(small.build(shape=("N", 3, "H", "W")))
    monkeypatch.setattr("xcam_onnx.control_flow.inferred", lambda model: pytest.fail("the model was inferred again"))
    for count in (8, 12):
        opened.predict(small.images(1, count))
    assert isinstance(opened._recordings, BoundedCache)
