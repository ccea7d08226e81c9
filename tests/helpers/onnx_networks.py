"""The networks of the conformance suite as ONNX models, with inputs channels first or (as tf2onnx writes them) last."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from xcam.testing import Network, Step


class _Writer:
    def __init__(self, network: Network, opset: int) -> None:
        self.network, self.opset = network, opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def const(self, value: Any, name: str = "") -> str:
        name = name or f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(value), name))
        return name

    def node(self, op: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        out = out or f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], f"node of {out}", **attributes))
        return out

    def squeeze(self, op: str, x: str, axes: list[int], out: str = "") -> str:
        if self.opset < 13:
            return self.node(op, x, out=out, axes=axes)
        return self.node(op, x, self.const(np.array(axes)), out=out)

    def reduce_mean(self, x: str, axes: list[int], keepdims: int, out: str = "") -> str:
        if self.opset < 18:
            return self.node("ReduceMean", x, out=out, axes=axes, keepdims=keepdims)
        return self.node("ReduceMean", x, self.const(np.array(axes)), out=out, keepdims=keepdims)

    def step(self, step: Step, inputs: list[str]) -> None:
        out, x = step.name, inputs[0]
        weights = [self.const(w, f"{out}.w{i}") for i, w in enumerate(step.weights)]
        match step.op:
            case "conv":
                pad = step.weights[0].shape[-1] // 2
                self.node("Conv", x, *weights, out=out, pads=[pad] * 4)
            case "relu" | "tanh":
                self.node(step.op.capitalize(), x, out=out)
            case "add":
                self.node("Add", *inputs, out=out)
            case "concat":
                self.node("Concat", *inputs, out=out, axis=1)
            case "softmax":
                self.node("Softmax", x, out=out, axis=1)
            case "pool":
                self.node("MaxPool", x, out=out, kernel_shape=[2, 2], strides=[2, 2])
            case "mean":
                self.reduce_mean(x, [2, 3], 0, out)
            case "dense":
                self.node("Gemm", x, *weights, out=out, transB=1)
            case "tokens":
                places = self.node("Reshape", x, self.const(np.array([0, step.weights[0].size, -1])))
                places = self.node("Transpose", places, perm=[0, 2, 1])
                count = self.node("Gather", self.node("Shape", x), self.const(np.array([0])), axis=0)
                shape = self.node("Concat", count, self.const(np.array([1, step.weights[0].size])), axis=0)
                first = self.node("Expand", weights[0], shape)
                self.node("Concat", first, places, out=out, axis=1)
            case "norm" if self.opset >= 17:
                self.node("LayerNormalization", x, *weights, out=out, axis=-1, epsilon=1e-6)
            case "norm":
                centred = self.node("Sub", x, self.reduce_mean(x, [-1], 1))
                squares = self.node("Pow", centred, self.const(np.float32(2)))
                variance = self.node("Add", self.reduce_mean(squares, [-1], 1), self.const(np.float32(1e-6)))
                normal = self.node("Div", centred, self.node("Sqrt", variance))
                self.node("Add", self.node("Mul", normal, weights[0]), weights[1], out=out)
            case "attend":
                q, k, v = (self.node("MatMul", x, self.node("Transpose", w, perm=[1, 0])) for w in weights)
                scores = self.node("MatMul", q, self.node("Transpose", k, perm=[0, 2, 1]))
                scores = self.node("Div", scores, self.const(np.float32(np.sqrt(step.weights[0].shape[0]))))
                share = self.node("Softmax", scores, axis=2)
                self.node("Add", x, self.node("MatMul", share, v), out=out)
            case "first":
                self.node("Gather", x, self.const(np.array(0)), out=out, axis=1)


def build(network: Network, *, opset: int = 18, batch: int | str = "batch", nhwc: bool = False) -> onnx.ModelProto:
    """Return the network; the value of each step has the step's name."""
    writer = _Writer(network, opset)
    channels, height, width = network.input
    shape = [batch, height, width, channels] if nhwc else [batch, channels, height, width]
    names = {"x": "x"}
    if nhwc:
        names["x"] = writer.node("Transpose", "x", perm=[0, 3, 1, 2])
    for step in network.steps:
        writer.step(step, [names.get(name, name) for name in step.inputs])
    graph = helper.make_graph(
        writer.nodes,
        network.name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in network.outputs],
        writer.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = min(model.ir_version, 10)
    return model
