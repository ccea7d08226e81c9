"""The demo network as an OpenVINO model."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
from openvino import opset13 as ops

from xcam.models import demo


def build() -> openvino.Model:
    """Return the trained demo network, for a batch of any size. The value of a step has the step's name."""
    network = demo.network()
    image = ops.parameter([-1, 3, *network.size], np.float32, "image")
    image.output(0).set_names({"image"})
    value: Any = image

    def named(node: Any, name: str) -> Any:
        node.set_friendly_name(name)
        node.output(0).set_names({name})
        return node.output(0)

    for step in network.steps:
        match step:
            case demo.Conv(name, _, kernel):
                weight, bias = network.weights[name]
                pads = [kernel // 2] * 2
                value = ops.convolution(value, np.ascontiguousarray(weight), [1, 1], pads, pads, [1, 1])
                value = named(ops.add(value, bias.reshape(1, -1, 1, 1)), f"{name}/conv")
                value = named(ops.relu(value), name)
            case demo.Pool(name):
                value = named(ops.max_pool(value, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2]), name)
            case demo.Mean(name):
                value = named(ops.reduce_mean(value, np.array([2, 3]), False), name)
            case demo.Dense(name, _):
                weight, bias = network.weights[name]
                value = ops.matmul(value, np.ascontiguousarray(weight), False, True)
                value = named(ops.add(value, bias.reshape(1, -1)), f"{name}/dense")
                value = named(ops.softmax(value, 1), name)
    return openvino.Model([value], [image], "demo")
