"""A small residual network in ONNX, quantised by ONNX Runtime's own tool, and mistakes that are planted in such files."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

SIZE = 24
CHANNELS = 16
CONVS = 6


def images(count: int = 2, seed: int = 0) -> np.ndarray:
    """Smooth images [N, SIZE, SIZE, 3], uint8."""
    waves = np.random.default_rng(seed).uniform(0.5, 4, (count, 3, 2))
    phases = np.random.default_rng(seed + 1).uniform(0, 6, (count, 3))
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    values = [
        [np.sin(6 * (a * y + b * x) + p) for (a, b), p in zip(w, q, strict=True)]
        for w, q in zip(waves, phases, strict=True)
    ]
    return np.moveaxis(127.5 + 120 * np.array(values), 1, -1).astype(np.uint8)


def batch(pixels: np.ndarray) -> np.ndarray:
    """Images as the network takes them: scaled as `tf`, channels first."""
    return (np.moveaxis(pixels, -1, 1) / np.float32(127.5) - 1).astype(np.float32)


def network(seed: int = 0, outlier: int | None = None, gain: tuple[int, float] | None = None) -> ModelProto:
    """conv1 → ReLU → three residual blocks (each: conv → ReLU → conv → Add → ReLU; the second is depthwise) → pool → fc.

    Args:
        seed: Of the weights.
        outlier: The number of a convolution, one of whose channels has weights 30 times as large; its reader takes that back.
        gain: The number of a convolution and a factor of all its weights; its reader takes that back.
    """
    rng = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    nodes: list[NodeProto] = []

    def conv(k: int, source: str, group: int = 1, gain: float = 2.0) -> str:
        inputs = 3 if k == 1 else CHANNELS // group
        weights[f"w{k}"] = rng.normal(0, (gain / (9 * inputs)) ** 0.5, (CHANNELS, inputs, 3, 3))
        weights[f"b{k}"] = rng.normal(0, 0.1, CHANNELS)
        name = f"conv{k}"
        nodes.append(helper.make_node("Conv", [source, f"w{k}", f"b{k}"], [name], name, pads=[1] * 4, group=group))
        return name

    def relu(source: str, name: str) -> str:
        nodes.append(helper.make_node("Relu", [source], [name], name))
        return name

    x = relu(conv(1, "x"), "relu1")
    for block, group in enumerate((1, CHANNELS, 1), 1):
        inner = relu(conv(2 * block, x, group), f"relu{2 * block}")
        nodes.append(helper.make_node("Add", [conv(2 * block + 1, inner, gain=1), x], [f"add{block}"], f"add{block}"))
        x = relu(f"add{block}", f"relu{2 * block + 1}")
    if outlier is not None:
        weights[f"w{outlier}"][3] *= 30
        weights[f"b{outlier}"][3] *= 30
        weights[f"w{outlier + 1}"][(slice(None), 3) if weights[f"w{outlier + 1}"].shape[1] > 1 else 3] /= 30
    if gain is not None:
        number, factor = gain
        weights[f"w{number}"] *= factor
        weights[f"b{number}"] *= factor
        weights[f"w{number + 1}"] /= factor
    weights |= {"wf": rng.normal(0, 0.2, (5, CHANNELS)), "bf": rng.normal(0, 0.1, 5)}
    nodes += [
        helper.make_node("GlobalAveragePool", [x], ["pool"], "pool"),
        helper.make_node("Flatten", ["pool"], ["flat"], "flat"),
        helper.make_node("Gemm", ["flat", "wf", "bf"], ["y"], "fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def quantized(model: ModelProto, x: np.ndarray | None, **options: Any) -> ModelProto:
    """Return the model in integers, calibrated with a batch; where it is None, quantised dynamically.

    Args:
        model: The model in float.
        x: The batch.
        options: Of `quantize_static`: quant_format, per_channel, activation_type, weight_type, calibrate_method, …
    """
    from onnxruntime import quantization

    class Batches(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, name: str, rows: Iterator[np.ndarray]) -> None:
            self.name, self.rows = name, rows

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self.rows, None)
            return None if row is None else {self.name: row[None]}

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "reduced.onnx"
        onnx.save(model, source)
        if x is None:
            quantization.quantize_dynamic(source, target, **options)
        else:
            reader = Batches(model.graph.input[0].name, iter(x))
            quantization.quantize_static(source, target, reader, **options)
        return onnx.load(target)


def half(model: ModelProto) -> ModelProto:
    """Return the model in float16, with float32 input and output."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(copy.deepcopy(model), keep_io_types=True)


# Mistakes

OUTPUTS = {
    "QuantizeLinear": (1, 2),
    "QLinearConv": (6, 7),
    "QLinearMatMul": (6, 7),
    "QLinearAdd": (6, 7),
    "QLinearMul": (6, 7),
    "QGemm": (7, 8),
    "QLinearGlobalAveragePool": (3, 4),
    "QLinearAveragePool": (3, 4),
    "QLinearSigmoid": (3, 4),
    "QLinearLeakyRelu": (3, 4),
}
"""The inputs of an operator that hold the scale and the zero point of its result."""
MOVING = ("MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze")


def producers(model: ModelProto) -> list[NodeProto]:
    """The nodes that quantise a value inside the model, in order."""
    sources = {value.name for value in model.graph.input}
    nodes = [node for node in model.graph.node if node.op_type in OUTPUTS and node.input[0] not in sources]
    final = {value.name for value in model.graph.output}
    ends = {node.input[0] for node in model.graph.node if final & set(node.output)}
    return [node for node in nodes if not {node.output[0]} & (final | ends)]


def readers(model: ModelProto, tensor: str) -> list[tuple[NodeProto, int]]:
    """Return each node that reads integers as numbers, and the index of their scale among its inputs."""
    result = []
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == tensor and node.op_type in MOVING:
                result += readers(model, node.output[0])
            elif name == tensor:
                result.append((node, index + 1))
    return result


def _value(model: ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def _replace(model: ModelProto, node: NodeProto, index: int, value: np.ndarray) -> None:
    name = f"planted/{len(model.graph.initializer)}"
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    node.input[index] = name


def planted(model: ModelProto, number: int, factor: float = 1, shift: int = 0, where: str = "both") -> ModelProto:
    """Return a copy in which the scale of a value is multiplied, or its zero point shifted.

    Args:
        model: The model in integers.
        number: Of the value, among `producers`.
        factor: Of the scale.
        shift: Of the zero point; where it leaves the type, in the other direction.
        where: `both`: where the value is quantised and where it is restored; or only in one of these, `first` or `second`.
    """
    result = copy.deepcopy(model)
    node = producers(result)[number]
    places = [(node, *OUTPUTS[node.op_type])] if where != "second" else []
    if where != "first":
        places += [(reader, index, index + 1) for reader, index in readers(result, node.output[0])]
    for target, scale, zero in places:
        if factor != 1:
            _replace(result, target, scale, (_value(result, target.input[scale]) * factor).astype(np.float32))
            if where == "both" and target.op_type == "QLinearConv" and scale == 1 and len(target.input) > 8:
                bias = _value(result, target.input[8])  # its scale is the product of those of input and weights
                _replace(result, target, 8, np.round(bias / factor).astype(bias.dtype))
        if shift:
            value = _value(result, target.input[zero])
            info = np.iinfo(value.dtype)
            moved = int(value) + (shift if info.min <= int(value) + shift <= info.max else -shift)
            _replace(result, target, zero, np.asarray(moved, value.dtype))
    return result


def per_tensor(model: ModelProto, weight: str) -> ModelProto:
    """Return a copy in which a weight has one scale for all channels."""
    result = copy.deepcopy(model)
    tensor = next(t for t in result.graph.initializer if t.name == f"{weight}_quantized")
    integers = numpy_helper.to_array(tensor)
    scale = _value(result, f"{weight}_scale")
    real = integers * scale.reshape(-1, *[1] * (integers.ndim - 1))
    one = np.float32(np.abs(real).max() / 127)
    tensor.CopyFrom(numpy_helper.from_array(np.round(real / one).astype(integers.dtype), tensor.name))
    for node in result.graph.node:
        for index, name in enumerate(node.input):
            if name == f"{weight}_scale":
                _replace(result, node, index, np.asarray(one))
                _replace(result, node, index + 1, np.zeros((), integers.dtype))
                if (
                    node.op_type == "QLinearConv"
                ):  # the scale of its bias is the product of those of input and weights
                    bias = _value(result, node.input[8])
                    _replace(result, node, 8, np.round(bias * (scale / one)).astype(bias.dtype))
    return result
