"""Quantised ONNX graphs in torch, in double precision, with autograd: written from ONNX's definitions, node by node.

Integers are tensors of whole numbers; rounding passes the gradient where it does not clip (as torch.fake_quantize does).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import NodeProto, helper, numpy_helper
from torch.nn import functional

T = torch.Tensor


class _Round(torch.autograd.Function):
    """Round to integers within limits; the gradient is zero where that clips."""

    @staticmethod
    def forward(ctx: Any, x: T, zero: T, low: float, high: float) -> T:
        q = torch.round(x) + zero
        ctx.save_for_backward((q >= low) & (q <= high))
        return q.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: T) -> tuple[T, None, None, None]:
        return gradients[0] * ctx.saved_tensors[0], None, None, None


class Quantised:
    """A model file. `limits`: the types of its integers, by tensor."""

    def __init__(self, path: Path) -> None:
        self.graph = onnx.load(path).graph
        weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.graph.initializer}
        self.kinds = {name: value.dtype for name, value in weights.items()}
        self.weights = {name: _tensor(value) for name, value in weights.items()}
        last = next(node for node in self.graph.node if self.graph.output[0].name in node.output)
        self.final = last.input[0]
        """The integers of the output: their clip is not part of the derivative."""

    def __call__(self, x: np.ndarray, tensor: str) -> tuple[T, T]:
        """Return the output, and the value of a tensor, with respect to which the output can be differentiated."""
        values: dict[str, T] = {**self.weights, "x": torch.from_numpy(x).double()}
        inner = values["x"]
        for node in self.graph.node:
            results = self._results(node, [values[name] if name else None for name in node.input])
            for name, value in zip(node.output, results, strict=False):
                if name == tensor:
                    value = inner = value.detach().requires_grad_()
                values[name] = value
        return values[self.graph.output[0].name], inner

    def _results(self, node: NodeProto, inputs: list[Any]) -> tuple[T, ...]:
        options = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        op = node.op_type
        first = node.input[0] if node.input else ""
        self.kinds[node.output[0]] = self.kinds.get(first, np.dtype(np.float32))
        if op == "DynamicQuantizeLinear":
            x = inputs[0].detach()
            low, high = x.min().clamp(max=0), x.max().clamp(min=0)
            scale = (high - low) / 255
            zero = torch.round(-low / scale).clamp(0, 255)
            return self._quantised(node, inputs[0], scale, zero, "", np.uint8), scale, zero
        if op == "QuantizeLinear":
            return (self._quantised(node, *inputs[:3], node.input[2], axis=options.get("axis", 1)),)
        if op == "DequantizeLinear":
            return (_dequantised(*inputs, axis=options.get("axis", 1), block=options.get("block_size", 0)),)
        if op == "QLinearConcat":
            parts = [_dequantised(*inputs[k : k + 3]) for k in range(2, len(inputs), 3)]
            y = torch.cat(parts, options["axis"])
            return (self._quantised(node, y, *inputs[:2], node.input[1]),)
        if op == "QLinearConv":
            bias = inputs[8] * inputs[1] * inputs[4] if len(inputs) > 8 else None
            y = _conv(options, _dequantised(*inputs[:3]), _dequantised(*inputs[3:6], axis=0), bias)
            return (self._quantised(node, y, *inputs[6:8], node.input[7]),)
        if op == "QLinearMatMul":
            y = _dequantised(*inputs[:3]) @ _dequantised(*inputs[3:6], axis=-1)
            return (self._quantised(node, y, *inputs[6:8], node.input[7]),)
        if op == "QGemm":
            matrix = _dequantised(*inputs[3:6], axis=0 if options.get("transB") else 1)
            y = _dequantised(*inputs[:3]) @ (matrix.T if options.get("transB") else matrix)
            y = y + inputs[6] * inputs[1] * inputs[4]
            return (self._quantised(node, y, *inputs[7:9], node.input[8]) if len(inputs) > 7 else y,)
        if op in ("QLinearAdd", "QLinearMul"):
            a, b = _dequantised(*inputs[:3]), _dequantised(*inputs[3:6])
            return (self._quantised(node, a + b if op == "QLinearAdd" else a * b, *inputs[6:8], node.input[7]),)
        if op.startswith("QLinear"):
            y = OPERATORS[op.removeprefix("QLinear")](options, _dequantised(*inputs[:3]))
            return (self._quantised(node, y, *inputs[3:5], node.input[4]),)
        if op == "ConvInteger":
            return (_conv(options, inputs[0] - inputs[2], inputs[1] - _along(inputs[3], inputs[1], 0), None),)
        if op == "MatMulInteger":
            return ((inputs[0] - inputs[2]) @ (inputs[1] - inputs[3]),)
        return (OPERATORS[op](options, *inputs),)

    def _quantised(self, node: NodeProto, x: T, scale: T, zero: T, like: str, kind: Any = None, axis: int = 1) -> T:
        dtype = np.dtype(kind or self.kinds[like])
        self.kinds[node.output[0]] = dtype
        limits = np.iinfo(np.int64 if node.output[0] == self.final else dtype)
        return _Round.apply(x / _along(scale, x, axis), _along(zero, x, axis), float(limits.min), float(limits.max))  # type: ignore[no-any-return, no-untyped-call]


def _tensor(value: np.ndarray) -> T:
    kind = np.int64 if value.dtype == np.int64 else np.float64
    return torch.from_numpy(np.array(value, kind))


def _along(value: T, x: T, axis: int) -> T:
    if value.numel() == 1:
        return value.reshape(())
    return value.reshape([-1 if k == axis % x.ndim else 1 for k in range(x.ndim)])


def _dequantised(q: T, scale: T, zero: T | None = None, axis: int = 1, block: int = 0) -> T:
    zero = torch.zeros_like(scale) if zero is None else zero
    if block:
        scale, zero = (v.repeat_interleave(block, axis).narrow(axis, 0, q.shape[axis]) for v in (scale, zero))
        return (q - zero) * scale
    return (q - _along(zero, q, axis)) * _along(scale, q, axis)


def _conv(options: dict[str, Any], x: T, kernel: T, bias: T | None = None) -> T:
    top, left, *_ = pads = options.get("pads", [0] * 4)
    assert list(pads[:2]) == list(pads[2:])
    return functional.conv2d(x, kernel, bias, options.get("strides", 1), (top, left), groups=options.get("group", 1))


def _gemm(options: dict[str, Any], a: T, b: T, c: T) -> T:
    return a @ (b.T if options.get("transB") else b) + c


OPERATORS: dict[str, Callable[..., T]] = {
    "Add": lambda o, a, b: a + b,
    "AveragePool": lambda o, x: functional.avg_pool2d(x, o["kernel_shape"], o["strides"]),
    "Cast": lambda o, x: x,
    "Clip": lambda o, x, low, high: x.clamp(low, high),
    "Concat": lambda o, *parts: torch.cat(parts, o["axis"]),
    "Conv": _conv,
    "Flatten": lambda o, x: x.flatten(1),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda o, x: x.mean((2, 3), keepdim=True),
    "HardSigmoid": lambda o, x: (x * o["alpha"] + o["beta"]).clamp(0, 1),
    "LeakyRelu": lambda o, x: functional.leaky_relu(x, o["alpha"]),
    "MatMul": lambda o, a, b: a @ b,
    "MaxPool": lambda o, x: functional.max_pool2d(x, o["kernel_shape"], o["strides"]),
    "Mul": lambda o, a, b: a * b,
    "Relu": lambda o, x: x.relu(),
    "Reshape": lambda o, x, shape: x.reshape([x.shape[k] if n == 0 else n for k, n in enumerate(shape.tolist())]),
    "Sigmoid": lambda o, x: x.sigmoid(),
    "Softmax": lambda o, x: x.softmax(o.get("axis", -1)),
    "Transpose": lambda o, x: x.permute(o["perm"]),
}
