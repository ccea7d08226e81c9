"""Files that ONNX Runtime's quantiser wrote, against the same networks in torch with its fake quantisation.

The torch networks read scales, zero points and integer weights from the file, and no other part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch.nn import functional

import xcam

SIZE, CLASSES, WIDTH = 16, 5, 8
LEVELS = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767)}
KINDS = ("qdq", "qdq uint8 per tensor", "qdq int16", "qoperator", "dynamic")


def images(count: int = 4) -> np.ndarray:
    rng = np.random.default_rng(1)
    coarse = rng.normal(size=(count, 3, SIZE // 4, SIZE // 4)).repeat(4, 2).repeat(4, 3)
    return np.asarray(coarse + 0.3 * rng.normal(size=(count, 3, SIZE, SIZE)), np.float32)


class Graph:
    """An ONNX graph whose node `y` computes the tensor `y`; weights are random."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: dict[str, np.ndarray] = {}
        self.rng = np.random.default_rng(0)

    def __call__(self, op: str, out: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [out], name=out, **attributes))
        return out

    def weight(self, name: str, *shape: int, spread: float | None = None) -> str:
        fan_in = np.prod(shape[1:]) if len(shape) != 2 else shape[0]
        self.weights[name] = np.asarray(self.rng.normal(0, spread or 1.4 * fan_in**-0.5, shape), np.float32)
        return name

    def constant(self, name: str, value: Any) -> str:
        self.weights[name] = np.asarray(value)
        return name

    def model(self) -> ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", CLASSES])],
            [numpy_helper.from_array(value, name) for name, value in self.weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
        model.ir_version = 10
        onnx.checker.check_model(model)
        return model


def residual() -> ModelProto:
    """Convolutions with ReLUs, a residual block, a strided one with ReLU6."""
    g = Graph()

    def conv(out: str, x: str, inputs: int, outputs: int, **attributes: Any) -> str:
        weight, bias = g.weight(f"{out}.w", outputs, inputs, 3, 3), g.weight(f"{out}.b", outputs, spread=0.3)
        return g("Conv", out, x, weight, bias, pads=[1] * 4, **attributes)

    r1 = g("Relu", "r1", conv("c1", "x", 3, WIDTH))
    r2 = g("Relu", "r2", conv("c2", r1, WIDTH, WIDTH))
    r3 = g("Relu", "r3", g("Add", "a", conv("c3", r2, WIDTH, WIDTH), r1))
    p = g("MaxPool", "p", r3, kernel_shape=[2, 2], strides=[2, 2])
    low, high = g.constant("low", np.float32(0)), g.constant("high", np.float32(2))
    r4 = g("Clip", "r4", conv("c4", p, WIDTH, 2 * WIDTH), low, high)
    flat = g("Flatten", "flat", g("GlobalAveragePool", "mean", r4))
    g("Gemm", "scores", flat, g.weight("fc.w", 2 * WIDTH, CLASSES), g.weight("fc.b", CLASSES))
    return g.model()


def transformer() -> ModelProto:
    """Patches, attention of one head, and two layers with x·σ(x) between them; the mean of the tokens is classified."""
    g, wide = Graph(), 3 * WIDTH

    def linear(out: str, x: str, inputs: int, outputs: int) -> str:
        product = g("MatMul", f"{out}.product", x, g.weight(f"{out}.w", inputs, outputs))
        return g("Add", out, product, g.weight(f"{out}.b", outputs, spread=0.3))

    def norm(out: str, x: str) -> str:
        scale = g.constant(f"{out}.w", g.rng.uniform(0.5, 1.5, wide).astype(np.float32))
        return g("LayerNormalization", out, x, scale, g.weight(f"{out}.b", wide, spread=0.1))

    kernel, bias = g.weight("patches.w", wide, 3, 4, 4), g.weight("patches.b", wide)
    patches = g("Conv", "patches", "x", kernel, bias, strides=[4, 4])
    rows = g("Reshape", "rows", patches, g.constant("rows.shape", [0, wide, -1]))
    tokens = g("Transpose", "tokens", rows, perm=[0, 2, 1])
    n1 = norm("n1", tokens)
    q, k, v = (linear(name, n1, wide, wide) for name in "qkv")
    turned = g("Transpose", "turned", k, perm=[0, 2, 1])
    scaled = g("Mul", "scaled", g("MatMul", "products", q, turned), g.constant("factor", np.float32(0.25)))
    mixed = g("MatMul", "mixed", g("Softmax", "attention", scaled, axis=-1), v)
    t1 = g("Add", "t1", tokens, linear("o", mixed, wide, wide))
    h = linear("h", norm("n2", t1), wide, 2 * wide)
    swish = g("Mul", "swish", h, g("Sigmoid", "gate", h))
    t2 = g("Add", "t2", t1, linear("m", swish, 2 * wide, wide))
    mean = g("ReduceMean", "mean", t2, g.constant("axis", [1]), keepdims=0)
    g("Gemm", "scores", mean, g.weight("fc.w", wide, CLASSES), g.weight("fc.b", CLASSES))
    return g.model()


class Fake:
    """Scales and integer weights of a file; values are quantised with torch.fake_quantize."""

    def __init__(self, path: Path, is_dynamic: bool) -> None:
        graph = onnx.load(path).graph
        self.arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.nodes = {node.name for node in graph.node}
        self.is_dynamic = is_dynamic
        self.values: dict[str, torch.Tensor] = {}
        self.names: dict[str, str] = {}
        """The name in the file of each activation that the quantiser removed."""

    def weight(self, name: str, of: tuple[str, str] = ("", "")) -> torch.Tensor:
        """Return a weight. `of`: the operands whose scales, multiplied, are that of a bias."""
        if f"{name}_quantized" not in self.arrays:
            return torch.from_numpy(self.arrays[name].copy())
        integers = self.arrays[f"{name}_quantized"].astype(np.float32)
        kind = name if f"{name}_scale" in self.arrays else f"{name}_quantized"
        zero: Any = np.float32(0)
        if integers.ndim == 1 and of[0]:
            scale = np.asarray(self.arrays[f"{of[0]}_scale"] * self.arrays[f"{of[1]}_scale"])
        else:
            scale, zero = self.arrays[f"{kind}_scale"], self.arrays[f"{kind}_zero_point"].astype(np.float32)
        if scale.size > 1:
            axis = 1 if integers.ndim == 2 else 0  # the output channels of a matrix, or of a kernel
            shape = [-1 if k == axis else 1 for k in range(integers.ndim)]
            scale, zero = scale.reshape(shape), np.broadcast_to(zero, scale.shape).reshape(shape)
        return torch.from_numpy(np.asarray((integers - zero) * scale, np.float32))

    def __call__(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Return a value of the network, quantised where the file quantises it."""
        if (scale := self.arrays.get(f"{name}_scale")) is not None and not self.is_dynamic:
            zero = self.arrays[f"{name}_zero_point"]
            value = torch.fake_quantize_per_tensor_affine(value, float(scale), int(zero), *LEVELS[zero.dtype.name])
        if value.requires_grad:
            value.retain_grad()
        self.values[name] = value
        return value

    def operand(self, value: torch.Tensor) -> torch.Tensor:
        """Return an operand of a convolution or product: dynamic quantisation takes the range of these, as a constant."""
        if not self.is_dynamic:
            return value
        low, high = min(float(value.detach().min()), 0.0), max(float(value.detach().max()), 0.0)
        scale = float(np.float32(high - low) / np.float32(255))
        return torch.fake_quantize_per_tensor_affine(value, scale, round(-low / scale), 0, 255)

    def rectified(self, name: str, source: str, value: torch.Tensor, high: float | None = None) -> torch.Tensor:
        """Return a value behind a ReLU, unless the quantiser removed it: the clip of its output does its work.

        The result has the name of the ReLU in QDQ files, and that of its operand, `source`, in QOperator files.
        """
        if name in self.nodes:
            return self(name, self(source, value).clamp(0, high))
        self.names[name] = name if f"{name}_scale" in self.arrays else source
        return self(self.names[name], value)

    def conv(self, name: str, x: torch.Tensor, of: str, **options: Any) -> torch.Tensor:
        bias = self.weight(f"{name}.b", (self.names.get(of, of), f"{name}.w"))
        return functional.conv2d(self.operand(x), self.weight(f"{name}.w"), bias, **options)

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        product = self(f"{name}.product", self.operand(x) @ self.weight(f"{name}.w"))
        return self(name, product + self.weight(f"{name}.b"))

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self(name, functional.layer_norm(x, x.shape[-1:], self.weight(f"{name}.w"), self.weight(f"{name}.b")))

    def classified(self, x: torch.Tensor) -> torch.Tensor:
        return self.operand(x) @ self.weight("fc.w") + self.weight("fc.b", ("mean", "fc.w"))


def residual_in_torch(fake: Fake, x: torch.Tensor) -> torch.Tensor:
    r1 = fake.rectified("r1", "c1", fake.conv("c1", fake("x", x), "x", padding=1))
    r2 = fake.rectified("r2", "c2", fake.conv("c2", r1, "r1", padding=1))
    r3 = fake.rectified("r3", "a", fake("c3", fake.conv("c3", r2, "r2", padding=1)) + r1)
    r4 = fake.rectified("r4", "c4", fake.conv("c4", functional.max_pool2d(r3, 2), "r3", padding=1), 2)
    return fake.classified(fake("mean", r4.mean((2, 3))))


def transformer_in_torch(fake: Fake, x: torch.Tensor) -> torch.Tensor:
    patches = fake("patches", fake.conv("patches", fake("x", x), "x", stride=4))
    tokens = patches.flatten(2).transpose(1, 2)
    n1 = fake.norm("n1", tokens)
    q, k, v = (fake.linear(name, n1) for name in "qkv")
    products = fake("products", fake.operand(q) @ fake.operand(k.transpose(1, 2)))
    factor = fake("factor", fake.weight("factor"))
    attention = fake("attention", torch.softmax(fake("scaled", products * factor), -1))
    t1 = fake("t1", tokens + fake.linear("o", fake("mixed", fake.operand(attention) @ fake.operand(v))))
    h = fake.linear("h", fake.norm("n2", t1))
    t2 = fake("t2", t1 + fake.linear("m", fake("swish", h * fake("gate", torch.sigmoid(h)))))
    return fake.classified(fake("mean", t2.mean(1)))


NETWORKS: dict[
    str, tuple[Callable[[], ModelProto], Callable[[Fake, torch.Tensor], torch.Tensor], tuple[str, ...]]
] = {
    "residual": (residual, residual_in_torch, ("r1", "r3", "r4")),
    "transformer": (transformer, transformer_in_torch, ("patches", "t1", "t2")),
}


class Images(CalibrationDataReader):  # type: ignore[misc]
    """Images for calibration."""

    def __init__(self) -> None:
        self._batches: Iterator[dict[str, np.ndarray]] = iter([{"x": image[None]} for image in images()])

    def get_next(self) -> Any:
        return next(self._batches, None)


def written(model: ModelProto, kind: str, path: Path) -> Path:
    """Write the model in a kind of reduced precision."""
    source = path.with_suffix(".float.onnx")
    onnx.save(model, source)
    if kind == "dynamic":
        quantize_dynamic(source, path)
    elif kind == "float16":
        onnx.save(convert_float_to_float16(model, keep_io_types=True), path)
    else:
        activation = {"uint8": QuantType.QUInt8, "int16": QuantType.QInt16}
        quantize_static(
            source,
            path,
            Images(),
            quant_format=QuantFormat.QOperator if kind == "qoperator" else QuantFormat.QDQ,
            activation_type=next((value for key, value in activation.items() if key in kind), QuantType.QInt8),
            weight_type=QuantType.QInt8,
            per_channel="tensor" not in kind,
            extra_options={"UseQDQContribOps": "int16" in kind},
        )
    return path


def opened(path: Path) -> Any:
    return xcam.load(path, preprocess="raw", threads=1)


def plain(path: Path, x: np.ndarray) -> np.ndarray:
    return np.asarray(ort.InferenceSession(path).run(None, {"x": x})[0])


def first_class(outputs: np.ndarray) -> list[np.ndarray]:
    return [np.eye(CLASSES, dtype=np.float32)[[0] * len(outputs)]]


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def channels_first(value: torch.Tensor | None) -> np.ndarray:
    assert value is not None
    return (value if value.ndim == 4 else value.transpose(1, 2)).detach().numpy()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", NETWORKS)
def test_values_and_gradients_are_those_of_fake_quantisation(network: str, kind: str, tmp_path: Path) -> None:
    build, in_torch, layers = NETWORKS[network]
    path, x = written(build(), kind, tmp_path / "net.onnx"), images(1)
    model, fake = opened(path), Fake(path, kind == "dynamic")
    outputs = in_torch(fake, torch.from_numpy(x).requires_grad_())
    torch.autograd.backward(outputs[:, 0].sum())
    np.testing.assert_array_equal(model.predict(x), plain(path, x))
    assert correlation(fake("scores", outputs).detach().numpy(), model.predict(x)) > 0.999
    for layer in layers:
        name = fake.names.get(layer, layer)
        trace = model.trace(x, name, first_class)
        np.testing.assert_array_equal(trace.outputs, plain(path, x))
        assert correlation(channels_first(fake.values[name]), trace.activations) > 0.9999, layer
        expected = channels_first(fake.values[name].grad)
        assert correlation(expected, trace.gradients[0]) > 0.999, layer
        np.testing.assert_allclose(np.linalg.norm(trace.gradients[0]), np.linalg.norm(expected), rtol=0.01)


@pytest.mark.parametrize("network", NETWORKS)
def test_float16_with_float_input_and_output(network: str, tmp_path: Path) -> None:
    """The nodes of such a file are not in the order in which they run."""
    build, _, layers = NETWORKS[network]
    path, x = written(build(), "float16", tmp_path / "half.onnx"), images(2)
    model, whole = opened(path), opened(tmp_path / "half.float.onnx")
    np.testing.assert_array_equal(model.predict(x), plain(path, x))
    for layer in layers:
        ours, reference = (each.trace(x, layer, first_class) for each in (model, whole))
        assert correlation(ours.activations, reference.activations) > 0.9999
        assert correlation(ours.gradients[0], reference.gradients[0]) > 0.999


@pytest.mark.parametrize("kind", ["qdq", "qoperator", "dynamic"])
def test_the_order_of_the_nodes_does_not_matter(kind: str, tmp_path: Path) -> None:
    path, x = written(residual(), kind, tmp_path / "net.onnx"), images(1)
    proto = onnx.load(path)
    backwards = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(backwards)
    onnx.save(proto, tmp_path / "backwards.onnx")
    sorted_model, model = opened(path), opened(tmp_path / "backwards.onnx")
    np.testing.assert_array_equal(model.predict(x), plain(tmp_path / "backwards.onnx", x))
    layer = "r1" if kind == "dynamic" else "c1"
    expected, result = (each.trace(x, layer, first_class) for each in (sorted_model, model))
    np.testing.assert_allclose(result.gradients[0], expected.gradients[0], atol=1e-6)


def test_images_do_not_change_the_dynamic_range_of_others(tmp_path: Path) -> None:
    path, x = (
        written(residual(), "dynamic", tmp_path / "net.onnx"),
        images(3) * np.array([1, 5, 25], np.float32).reshape(3, 1, 1, 1),
    )
    result = opened(path).trace(x, "r3", first_class)
    for k in range(3):
        alone = opened(path).trace(x[k : k + 1], "r3", first_class)
        np.testing.assert_array_equal(result.outputs[k], plain(path, x[k : k + 1])[0])
        np.testing.assert_allclose(result.gradients[0][k], alone.gradients[0][0], atol=1e-6)
