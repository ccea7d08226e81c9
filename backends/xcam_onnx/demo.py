"""The demo network as an ONNX model."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from xcam.models import demo


def build() -> ModelProto:
    """Return the trained demo network, for a batch of any size. The value of a step has the step's name."""
    network = demo.network()
    nodes: list[NodeProto] = []
    weights: list[TensorProto] = []
    value = "image"

    def node(op: str, name: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, list(inputs), [name], name, **attributes))
        return name

    def parameters(name: str) -> list[str]:
        names = [f"{name}.weight", f"{name}.bias"]
        weights.extend(
            numpy_helper.from_array(np.ascontiguousarray(array), n)
            for array, n in zip(network.weights[name], names, strict=True)
        )
        return names

    for step in network.steps:
        match step:
            case demo.Conv(name, _, kernel):
                pads = [kernel // 2] * 4
                conv = node(
                    "Conv", f"{name}/conv", value, *parameters(name), pads=pads, kernel_shape=[kernel, kernel]
                )
                value = node("Relu", name, conv)
            case demo.Pool(name):
                value = node("MaxPool", name, value, kernel_shape=[2, 2], strides=[2, 2])
            case demo.Mean(name):
                value = node("Flatten", name, node("GlobalAveragePool", f"{name}/pool", value))
            case demo.Dense(name, _):
                logits = node("Gemm", f"{name}/dense", value, *parameters(name), transB=1)
                value = node("Softmax", name, logits, axis=1)
    graph = helper.make_graph(
        nodes,
        "demo",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, *network.size])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", len(network.labels)])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], producer_name="xcam")
    model.ir_version = 8
    return model
