"""The demo network as an ONNX model."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from xcam.models import demo
from xcam.models.demo import detector as demo_detector


class _Graph:
    """The nodes and weights of a network. The value of a step has the step's name."""

    def __init__(self, network: demo.Network) -> None:
        self.network = network
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []

    def node(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [name], name, **attributes))
        return name

    def constant(self, name: str, array: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def conv(self, name: str, value: str, step: str) -> str:
        """Add the convolution `name` with the weights of a step."""
        kernel, _ = self.network.weights[step]
        side = kernel.shape[-1]
        return self.node("Conv", name, value, *self.parameters(step), pads=[side // 2] * 4, kernel_shape=[side, side])

    def parameters(self, step: str) -> list[str]:
        names = [f"{step}.weight", f"{step}.bias"]
        return [self.constant(name, array) for name, array in zip(names, self.network.weights[step], strict=True)]

    def steps(self, value: str) -> str:
        """Add all steps, and return the last value."""
        for step in self.network.steps:
            match step:
                case demo.Conv(name, _, _):
                    value = self.node("Relu", name, self.conv(f"{name}/conv", value, name))
                case demo.Pool(name):
                    value = self.node("MaxPool", name, value, kernel_shape=[2, 2], strides=[2, 2])
                case demo.Mean(name):
                    value = self.node("Flatten", name, self.node("GlobalAveragePool", f"{name}/pool", value))
                case demo.Dense(name, _):
                    logits = self.node("Gemm", f"{name}/dense", value, *self.parameters(name), transB=1)
                    value = self.node("Softmax", name, logits, axis=1)
        return value

    def model(self, name: str, output: str, *shape: int) -> ModelProto:
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, *self.network.size])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", *shape])],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], producer_name="xcam")
        model.ir_version = 8
        return model


def build() -> ModelProto:
    """Return the trained demo network, for a batch of any size."""
    graph = _Graph(demo.network())
    return graph.model("demo", graph.steps("image"), len(graph.network.labels))


def detector() -> ModelProto:
    """Return the trained demo detector, for a batch of any size: see xcam.models.demo.detector."""
    graph = _Graph(demo_detector.network())
    node, constant = graph.node, graph.constant
    value = graph.steps("image")
    cells = np.arange(graph.network.size[0] // demo_detector.STRIDE, dtype=np.float32) + 0.5
    middles = constant("middles", np.stack(np.meshgrid(cells, cells)))
    numbers = graph.conv(demo_detector.BOXES, value, demo_detector.BOXES)
    graph.nodes.append(
        helper.make_node(
            "Split", [numbers, constant("halves", np.array([2, 2], np.int64))], ["offsets", "sizes"], "split", axis=1
        )
    )
    centres = node(
        "Mul",
        "centres",
        node("Add", "cells", "offsets", middles),
        constant("stride", np.float32(demo_detector.STRIDE)),
    )
    sides = node("Mul", "sides", node("Exp", "exp", "sizes"), constant("side", np.float32(demo_detector.SIDE)))
    logits = graph.conv(demo_detector.CLASSES, value, demo_detector.CLASSES)
    joined = node("Concat", "joined", centres, sides, node("Sigmoid", "probabilities", logits), axis=1)
    output = node("Reshape", "output", joined, constant("shape", np.array([0, 0, -1], np.int64)))
    return graph.model(demo_detector.NAME, output, 4 + len(graph.network.labels), len(cells) ** 2)
