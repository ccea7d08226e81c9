"""A small quantised network for OpenVINO."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
from openvino import opset13 as ops


def quantised(batch: int = -1) -> openvino.Model:
    """Return a network of 8 bits, as NNCF writes it: each value and each kernel is quantised; two branches are added."""
    rng = np.random.default_rng(3)

    def kernel(*shape: int) -> Any:
        weights = rng.normal(size=shape).astype(np.float32)
        limit = np.abs(weights).max(axis=(1, 2, 3), keepdims=True)
        integers = np.rint(weights / limit * 127).astype(np.int8)
        return ops.multiply(ops.convert(ops.constant(integers), np.float32), ops.constant(limit / 127))

    def rounded(value: Any, low: float, high: float, name: str) -> Any:
        limits = [ops.constant(np.float32(n).reshape(1, 1, 1, 1)) for n in (low, high, low, high)]
        return named(ops.fake_quantize(value, *limits, 256), f"{name}/fq_output_0")

    def named(node: Any, name: str) -> Any:
        node.set_friendly_name(name)
        node.output(0).set_names({name})
        return node.output(0)

    def convolved(value: Any, channels: int, name: str) -> Any:
        taken = value.get_partial_shape()[1].get_length()
        conv = ops.convolution(value, kernel(channels, taken, 3, 3), [1, 1], [1, 1], [1, 1], [1, 1])
        bias = rng.normal(size=(1, channels, 1, 1)).astype(np.float32)
        return named(ops.relu(named(ops.add(conv, bias), name)), f"{name}/relu")

    image = ops.parameter([batch, 3, 12, 16], np.float32, "image")
    image.output(0).set_names({"image"})
    first = rounded(convolved(rounded(image, -2, 2, "image"), 6, "conv1"), 0, 15, "conv1")
    pooled = named(ops.max_pool(first, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2]), "pool")
    second = rounded(convolved(pooled, 6, "conv2"), 0, 150, "conv2")
    total = named(ops.add(second, pooled), "add")
    mean = named(ops.reduce_mean(total, np.array([2, 3]), False), "mean")
    dense = ops.matmul(mean, ops.constant(rng.normal(size=(4, 6)).astype(np.float32)), False, True)
    return openvino.Model([named(dense, "scores")], [image], "quantised")
