"""Networks of many operators that ONNX Runtime's quantiser wrote, in every form and operator set, against torch's autograd."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

import xcam
from onnx_in_torch import Quantised

SIZE, WIDTH, CLASSES = 16, 8, 5
U8, S8, S16, S4 = QuantType.QUInt8, QuantType.QInt8, QuantType.QInt16, QuantType.QInt4
QDQ, OPERATORS = QuantFormat.QDQ, QuantFormat.QOperator


class Net:
    """A network that is being written; the node `y` computes the tensor `y`."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def __call__(self, op: str, out: str, *inputs: Any, **attributes: Any) -> str:
        names = [
            source if isinstance(source, str) else self.weight(f"{out}.{k}", source)
            for k, source in enumerate(inputs)
        ]
        self.nodes.append(helper.make_node(op, names, [out], out, **attributes))
        return out

    def weight(self, name: str, value: Any) -> str:
        self.weights[name] = np.asarray(value)
        return name

    def random(self, *shape: int, gain: float = 1.6) -> np.ndarray:
        fan = np.prod(shape[1:]) if len(shape) == 4 else shape[0]
        return np.asarray(self.rng.normal(0, gain * fan**-0.5 if len(shape) > 1 else 0.2, shape), np.float32)

    def conv(self, out: str, x: str, inputs: int, outputs: int, size: int = 3, group: int = 1, **options: Any) -> str:
        kernel, bias = self.random(outputs, inputs // group, size, size), self.random(outputs)
        pads = [size // 2 if "strides" not in options or size == 3 else 0] * 4
        return self("Conv", out, x, kernel, bias, pads=pads, group=group, kernel_shape=[size] * 2, **options)

    def model(self, opset: int) -> ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", CLASSES])],
            [numpy_helper.from_array(value, name) for name, value in self.weights.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def convolutions(opset: int) -> ModelProto:
    """An inverted residual with hard-swish and a gate, pools that are joined, leaky and bounded ReLUs."""
    net = Net(0)
    stem = net("Relu", "r1", net.conv("c1", "x", 3, WIDTH))
    wide = net.conv("expand", stem, WIDTH, 2 * WIDTH, 1)
    swish = net("Mul", "swish", wide, net("HardSigmoid", "hard", wide, alpha=1 / 6, beta=0.5))
    deep = net(
        "Clip",
        "r6",
        net.conv("depthwise", swish, 2 * WIDTH, 2 * WIDTH, group=2 * WIDTH),
        np.float32(0),
        np.float32(2),
    )
    gate = net(
        "Sigmoid", "gate", net.conv("squeezed", net("GlobalAveragePool", "squeeze", deep), 2 * WIDTH, 2 * WIDTH, 1)
    )
    short = net("Add", "sum", net.conv("project", net("Mul", "gated", deep, gate), 2 * WIDTH, WIDTH, 1), stem)
    windows = {
        "kernel_shape": [3, 3],
        "strides": [2, 2],
    }  # means of four integers would often be ties, which rounding decides
    pools = [net(f"{kind}Pool", kind.lower(), short, **windows) for kind in ("Average", "Max")]
    both = net("Concat", "both", *pools, axis=1)
    leaky = net("LeakyRelu", "leaky", net.conv("last", both, 2 * WIDTH, WIDTH), alpha=0.1)
    flat = net("Flatten", "flat", net("GlobalAveragePool", "mean", leaky))
    net("Gemm", "scores", flat, net.random(WIDTH, CLASSES), net.random(CLASSES))
    return net.model(opset)


def tokens(opset: int) -> ModelProto:
    """Patches, attention, and a layer with x·σ(x); all matrices are products with weights."""
    net, width = Net(1), 32

    def linear(out: str, x: str) -> str:
        return net("Add", out, net("MatMul", f"{out}.product", x, net.random(width, width)), net.random(width))

    patches = net.conv("patches", "x", 3, width, 4, strides=[4, 4])
    rows = net("Transpose", "rows", net("Reshape", "flat", patches, np.array([0, width, -1])), perm=[0, 2, 1])
    q, k, v = (linear(name, rows) for name in "qkv")
    turned = net("Transpose", "turned", k, perm=[0, 2, 1])
    products = net("Mul", "scaled", net("MatMul", "products", q, turned), np.float32(0.1))
    mixed = net("MatMul", "mixed", net("Softmax", "attention", products, axis=-1), v)
    first = net("Add", "t1", rows, linear("o", mixed))
    hidden = linear("h", first)
    second = net("Add", "t2", first, linear("m", net("Mul", "swish", hidden, net("Sigmoid", "gate", hidden))))
    mean = net(
        "GlobalAveragePool",
        "mean",
        net("Reshape", "wide", net("Transpose", "back", second, perm=[0, 2, 1]), np.array([0, width, 4, 4])),
    )
    net("Gemm", "scores", net("Flatten", "end", mean), net.random(width, CLASSES), net.random(CLASSES))
    return net.model(opset)


NETWORKS = {"convolutions": (convolutions, ("r1", "gated", "both")), "tokens": (tokens, ("patches", "t1", "swish"))}
KINDS: dict[str, dict[str, Any]] = {
    "QDQ uint8": {"quant_format": QDQ, "activation_type": U8, "weight_type": S8, "per_channel": True},
    "QDQ int8": {"quant_format": QDQ, "activation_type": S8, "weight_type": S8},
    "QDQ uint8 weights": {"quant_format": QDQ, "activation_type": U8, "weight_type": U8},
    "QDQ int16": {"quant_format": QDQ, "activation_type": S16, "weight_type": S8},
    "QDQ int4 weights": {"quant_format": QDQ, "activation_type": U8, "weight_type": S4, "per_channel": True},
    "operators uint8": {"quant_format": OPERATORS, "activation_type": U8, "weight_type": S8, "per_channel": True},
    "operators int8": {"quant_format": OPERATORS, "activation_type": S8, "weight_type": S8},
    "operators uint8 weights": {"quant_format": OPERATORS, "activation_type": U8, "weight_type": U8},
    "dynamic int8": {"weight_type": S8, "per_channel": False},
    "dynamic uint8": {"weight_type": U8},
}
OPSETS = {"QDQ uint8": (13, 21), "operators uint8": (13, 21), "dynamic int8": (13,), "QDQ int4 weights": (21,)}


def images(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(count, 3, 4, 4)).repeat(4, 2).repeat(4, 3)
    return np.asarray(coarse + 0.3 * rng.normal(size=(count, 3, SIZE, SIZE)), np.float32)


class Images(CalibrationDataReader):  # type: ignore[misc]
    """Images for calibration."""

    def __init__(self) -> None:
        self._batches: Iterator[dict[str, np.ndarray]] = iter([{"x": image[None]} for image in images(4, 5)])

    def get_next(self) -> Any:
        return next(self._batches, None)


def quantised(model: ModelProto, kind: str, path: Path) -> Path:
    source = path.with_suffix(".float.onnx")
    onnx.save(model, source)
    if kind.startswith("dynamic"):
        quantize_dynamic(source, path, **KINDS[kind])
    else:
        quantize_static(source, path, Images(), **KINDS[kind])
    return path


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    assert a.size == b.size
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def source_of(path: Path, layer: str) -> str:
    """Return the tensor of a layer in a file: its integers where its readers take these."""
    nodes = onnx.load(path).graph.node
    outputs = {name for node in nodes if node.op_type != "DynamicQuantizeLinear" for name in node.output}
    names = [f"{layer}_QuantizeLinear_Output", f"{layer}_quantized", layer]
    return next(name for name in names if name in outputs)


@pytest.mark.parametrize(
    ("network", "kind", "opset"),
    [(network, kind, opset) for network in NETWORKS for kind in KINDS for opset in OPSETS.get(kind, (17,))],
)
def test_values_and_gradients(network: str, kind: str, opset: int, tmp_path: Path) -> None:
    build, layers = NETWORKS[network]
    path, x = quantised(build(opset), kind, tmp_path / "net.onnx"), images(1, 11)
    model = xcam.load(path, preprocess="raw", threads=1)
    plain = ort.InferenceSession(path).run(None, {"x": x})[0]
    np.testing.assert_array_equal(model.predict(x), plain)
    cotangent = np.eye(CLASSES, dtype=np.float32)[[1]] - 0.5 * np.eye(CLASSES, dtype=np.float32)[[3]]
    reference = Quantised(path)
    known = {name for entry in model.layers for name in (entry.name, *entry.aliases)}
    for layer in layers:
        layer = layer if layer in known else "c1"  # as QOperator files call an activation that the quantiser absorbed
        trace = model.trace(x, layer, lambda _: [cotangent])
        np.testing.assert_array_equal(trace.outputs, plain)
        y, value = reference(x, source_of(path, layer))
        (expected,) = torch.autograd.grad(y, value, torch.from_numpy(cotangent).double())
        gradient, activations = trace.gradients[0], trace.activations
        if value.ndim == 3:
            gradient, activations = gradient.swapaxes(1, 2), activations.swapaxes(1, 2)
        assert correlation(activations, value.detach().numpy()) > 0.999, layer
        assert correlation(gradient, expected.numpy()) > 0.99, layer


@pytest.mark.parametrize("kind", ["float", "QDQ uint8", "operators uint8", "dynamic int8"])
def test_the_output_itself_is_a_layer(kind: str, tmp_path: Path) -> None:
    model, x = convolutions(17), images(1, 11)
    source = model if kind == "float" else quantised(model, kind, tmp_path / "net.onnx")
    opened = xcam.load(source, "onnx", preprocess="raw")
    layer = opened.layers[-1]
    assert layer.is_output
    cotangent = np.arange(CLASSES, dtype=np.float32)[None]
    trace = opened.trace(x, layer.name, lambda _: [cotangent])
    np.testing.assert_array_equal(trace.activations, opened.predict(x))
    np.testing.assert_array_equal(trace.gradients[0], cotangent)
    np.testing.assert_array_equal(opened.resume(trace, 2 * cotangent).outputs, 2 * cotangent)


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, False)])
def test_weights_in_blocks_of_few_bits(bits: int, symmetric: bool, tmp_path: Path) -> None:
    """Compare with a float file that has the dequantised weights."""
    path, x = tmp_path / "net.onnx", images(1, 11)
    quantizer = MatMulNBitsQuantizer(
        tokens(21), algo_config=DefaultWeightOnlyQuantConfig(block_size=16, bits=bits, is_symmetric=symmetric)
    )
    quantizer.process()
    onnx.save(quantizer.model.model, path)
    floats = unpacked(path)
    model, plain = xcam.load(path, preprocess="raw"), ort.InferenceSession(path).run(None, {"x": x})[0]
    reference = xcam.load(floats, "onnx", preprocess="raw")
    np.testing.assert_array_equal(model.predict(x), plain)
    np.testing.assert_allclose(reference.predict(x), plain, atol=1e-4)
    for layer in NETWORKS["tokens"][1]:
        traces = [m.trace(x, layer, lambda _: [np.ones((1, CLASSES), np.float32)]) for m in (model, reference)]
        np.testing.assert_allclose(traces[0].gradients[0], traces[1].gradients[0], rtol=1e-3, atol=1e-4)


def unpacked(path: Path) -> ModelProto:
    """Return the model with its MatMulNBits as MatMul, the weights unpacked in NumPy."""
    model = onnx.load(path)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    count = 0
    for node in model.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        options = {entry.name: entry.i for entry in node.attribute}
        bits, rows, blocks = options["bits"], options["N"], -(-options["K"] // options["block_size"])

        def split(packed: np.ndarray, bits: int = bits) -> np.ndarray:
            parts = [(packed >> low) & (2**bits - 1) for low in range(0, 8, bits)]
            return np.stack(parts, -1).reshape(*packed.shape[:-1], -1).astype(np.float32)

        integers = split(arrays[node.input[1]].reshape(rows, blocks, -1))
        zeros = np.float32(2 ** (bits - 1))
        if len(node.input) > 3 and node.input[3]:
            zeros = split(arrays[node.input[3]].reshape(rows, -1))[:, :blocks, None]
        weights = (integers - zeros) * arrays[node.input[2]].reshape(rows, blocks, 1)
        weight = np.ascontiguousarray(weights.reshape(rows, -1)[:, : options["K"]].T, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, f"unpacked{count}"))
        node.CopyFrom(helper.make_node("MatMul", [node.input[0], f"unpacked{count}"], list(node.output), node.name))
        count += 1
    assert count == 6
    return model
