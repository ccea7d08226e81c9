"""Files in the memory layout of one machine, as ONNX Runtime's optimiser saves them: their graph in plain layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnx_standard import model_of, optimised, run
from xcam.contract import Array
from xcam.errors import ModelError
from xcam_onnx.graph import Graph, copied, inferred
from xcam_onnx.standard import nchwc
from xcam_onnx.standard.form import StandardForm


class Net:
    """Writes a network."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, Array] = {}
        self.rng = np.random.default_rng(0)
        self.feeds = {name: self.rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}

    def __call__(self, op: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        out = out or f"{op}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [out], f"node_{out}", **attributes))
        return out

    def constant(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = (self.rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        return name

    def conv(
        self, x: str, into: int, out: int, size: int = 3, group: int = 1, bias: bool = True, **options: Any
    ) -> str:
        more = [self.constant(out)] if bias else []
        kernel = self.constant(out, into // group, size, size)
        return self("Conv", x, kernel, *more, group=group, pads=[size // 2] * 4, **options)

    def number(self, *values: float, dtype: Any = np.float32) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(values, dtype)
        return name

    def model(self, *outputs: str, dynamic: bool = False, opset: int = 17) -> ModelProto:
        model = model_of(self.nodes, self.feeds, self.weights, list(outputs), opset)
        if dynamic:
            for dim, name in zip(model.graph.input[0].type.tensor_type.shape.dim, "nchw", strict=True):
                if name != "c":
                    dim.dim_param = name
            del model.graph.value_info[:]
        return inferred(model)


def branches(net: Net) -> str:
    """Convolutions of every kind, a sum, and what the optimiser lets read its results."""
    x = net("Relu", net.conv("x", 3, 32, strides=[2, 2]))
    y = net("Relu", net.conv(x, 32, 32, group=32))
    y = net("Relu", net("Add", net.conv(y, 32, 32, 1, bias=False), x))
    pooled = net("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    average = net("AveragePool", y, kernel_shape=[2, 2], strides=[2, 2])
    z = net("Concat", pooled, average, axis=1)
    z = net("Relu", net.conv(z, 64, 64, group=2))
    return upsampled(net, z)


def upsampled(net: Net, x: str) -> str:
    scales, options = (
        net.number(1, 1, 2, 2),
        {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    )
    return net("Resize", x, net.number(), scales, mode="nearest", **options)


def padded(net: Net) -> str:
    """Numbers of channels that are not whole blocks."""
    x = net("Clip", net.conv("x", 3, 12), net.number(0.0), net.number(0.5))
    x = net("LeakyRelu", net.conv(x, 12, 20), alpha=0.2)
    y = net("Sigmoid", net.conv(x, 20, 20, group=20))
    y = net("Tanh", net.conv(y, 20, 20))
    y = net("Add", y, x)
    return net.conv(y, 20, 36)


def gated(net: Net) -> str:
    """Channels that are weighed by their means."""
    x = net("Relu", net.conv("x", 3, 20))
    mean = net("GlobalAveragePool", x)
    y = net("Relu", net.conv(mean, 20, 28, 1))
    y = net("HardSigmoid", net.conv(y, 28, 20, 1), alpha=0.2, beta=0.4)
    return net("Mul", x, y)


def channels_last(net: Net) -> str:
    x = net("Relu", net.conv("x", 3, 20))
    x = net("Transpose", x, perm=[0, 2, 3, 1])
    x = net("Add", x, net.constant(20))
    x = net("Transpose", x, perm=[0, 3, 1, 2])
    return net.conv(x, 20, 16)


def uncertain(net: Net) -> str:
    """A sum of tensors whose sizes may differ, as far as the optimiser knows: it shows the block axis to Add."""
    x = net("Relu", net.conv("x", 3, 32))
    y = net("Add", upsampled(net, net.conv(x, 32, 32, strides=[2, 2])), x)
    variance = net.number(*np.linspace(0.5, 2, 32))
    y = net("BatchNormalization", y, net.constant(32), net.constant(32), net.constant(32), variance)
    y = net.conv(net("Tanh", y), 32, 32)
    return net("Concat", net("GlobalAveragePool", y), net("GlobalMaxPool", y), axis=1)


def hidden(net: Net) -> str:
    """Channels whose number no shape tells."""
    x = net("Relu", net.conv("x", 3, 20))
    x = net("Reshape", x, net("Abs", net("Shape", x)))
    return net.conv(x, 20, 16)


NETS = {
    "hidden": hidden,
    "branches": branches,
    "uncertain": uncertain,
    "padded": padded,
    "gated": gated,
    "channels last": channels_last,
}


def plain_form(model: ModelProto) -> StandardForm:
    """Return the standard form, after checking that it has only standard operators."""
    form = StandardForm(Graph(model))
    assert {node.domain for node in form.model.graph.node} == {""}
    return form


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("name", NETS)
def test_networks(name: str, opset: int, dynamic: bool, tmp_path: Path) -> None:
    net = Net(x=(2, 3, 16, 12))
    out = NETS[name](net)
    model = net.model(out, dynamic=dynamic, opset=opset)
    blocked = optimised(model, tmp_path / "blocked.onnx")
    kinds = {node.op_type for node in blocked.graph.node if node.domain == nchwc.DOMAIN}
    assert {"Conv", "ReorderOutput"} <= kinds
    form = plain_form(blocked)
    (expected,) = run(model, net.feeds)
    (y,) = run(form.model, net.feeds)
    np.testing.assert_allclose(y, expected, atol=2e-5)

    # every blocked tensor has a plain one, with the same value in the standard form and from the original's blocks
    tensors = sorted(set(form.floats.values()) - {value.name for value in model.graph.input})
    assert set(form.floats) >= {
        n.output[0] for n in blocked.graph.node if n.domain == nchwc.DOMAIN and n.op_type == "Conv"
    }
    for first, second in zip(_values(form.model, tensors, net), _values(form.runnable, tensors, net), strict=True):
        np.testing.assert_allclose(first, second, atol=2e-5)


def _values(model: ModelProto, tensors: list[str], net: Net) -> list[Array]:
    model = copied(model)
    del model.graph.output[:]
    model.graph.output.extend(helper.ValueInfoProto(name=name) for name in tensors)
    return run(model, net.feeds)


def test_blocks_hold_the_real_channels(tmp_path: Path) -> None:
    """Also where no node states their number."""
    net = Net(x=(1, 3, 8, 8))
    form = plain_form(optimised(net.model(padded(net)), tmp_path / "blocked.onnx"))
    graph = Graph(form.model)
    counts = {name: (graph.shape(name) or ())[1] for name in form.floats.values()}
    assert set(counts.values()) == {12, 20, 36}


def test_plain_models_are_not_touched() -> None:
    net = Net(x=(1, 3, 8, 8))
    assert nchwc.plain(net.model(padded(net)), None) is None


@pytest.mark.parametrize("block", [8, 16])
def test_blocks_of_another_machine(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their sizes do not fit: the node is named, and the remedy."""
    net = Net(x=(1, 3, 8, 8))
    net.conv(net("Relu", net.conv("x", 3, 8 if block == 16 else 20)), 8 if block == 16 else 20, 24)
    blocked = optimised(net.model(net.nodes[-1].output[0]), tmp_path / "blocked.onnx")
    if nchwc.block_size() == block:
        block = 24 - block
    monkeypatch.setattr(nchwc, "block_size", lambda: block)
    with pytest.raises(
        ModelError, match=r"cannot read the node '.*' .*one machine.*blocks .* have \d+ channels; save it"
    ):
        StandardForm(Graph(blocked))


def test_unknown_operators_in_blocks(tmp_path: Path) -> None:
    net = Net(x=(1, 3, 8, 8))
    blocked = optimised(net.model(padded(net)), tmp_path / "blocked.onnx")
    conv = next(node for node in blocked.graph.node if node.domain == nchwc.DOMAIN)
    index = list(blocked.graph.node).index(conv)
    blocked.graph.node.insert(index + 1, helper.make_node("Softmax", [conv.output[0]], ["s"], "wrong"))
    with pytest.raises(
        ModelError, match=r"cannot read the node 'wrong' \(Softmax\): .*; save it again with graph_opt"
    ):
        StandardForm(Graph(blocked))


def test_the_block_size_is_that_of_the_runtime(tmp_path: Path) -> None:
    net = Net(x=(1, 3, 8, 8))
    blocked = optimised(net.model(net.conv("x", 3, 1)), tmp_path / "blocked.onnx")
    (kernel,) = (t for t in blocked.graph.initializer if len(t.dims) == 4)
    assert numpy_helper.to_array(kernel).shape[0] == nchwc.block_size()
