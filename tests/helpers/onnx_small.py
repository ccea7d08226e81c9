"""A small ONNX network that tests modify, and its values computed in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import NodeProto, TensorProto, helper, numpy_helper

from xcam_onnx.graph import reads

CHANNELS, CLASSES, SIZE = 16, 5, 8
"""CHANNELS² · 9 weights of four bytes are more than weights.SMALL."""


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def arrays(dtype: Any = np.float32) -> dict[str, np.ndarray]:
    r = rng()
    shapes = {
        "w1": (CHANNELS, 3, 3, 3),
        "b1": (CHANNELS,),
        "w2": (CHANNELS, CHANNELS, 3, 3),
        "b2": (CHANNELS,),
        "w3": (CLASSES, CHANNELS),
        "b3": (CLASSES,),
    }
    return {name: (r.normal(size=shape) * 0.3).astype(dtype) for name, shape in shapes.items()}


def images(count: int = 2, size: int = SIZE) -> np.ndarray:
    return rng().normal(size=(count, 3, size, size)).astype(np.float32)


def nodes() -> list[NodeProto]:
    return [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", pads=[1] * 4),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], "fc", transB=1),
    ]


def build(
    steps: Sequence[NodeProto] | None = None,
    *,
    shape: Sequence[Any] = ("N", 3, SIZE, SIZE),
    outputs: Sequence[Any] = ("y",),
    more: Sequence[np.ndarray] = (),
    opset: int = 18,
    kind: int = TensorProto.FLOAT,
    domains: Sequence[str] = (),
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """Return the network; `more`: further constants, called k0, k1, …"""
    dtype = helper.tensor_dtype_to_np_dtype(kind) if kind != TensorProto.UINT8 else np.float32
    weights = arrays(dtype) | {f"k{i}": value for i, value in enumerate(more)}
    steps = nodes() if steps is None else steps
    read = {name for node in steps for name in reads(node)}
    graph = helper.make_graph(
        steps,
        "small",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_empty_tensor_value_info(o) if isinstance(o, str) else o for o in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items() if name in read],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions)
    model.ir_version = 8
    for value in model.graph.output:
        if not value.type.WhichOneof("value"):
            value.type.tensor_type.elem_type = kind if kind != TensorProto.UINT8 else TensorProto.FLOAT
    return model


def inserted(index: int, steps: Sequence[NodeProto]) -> list[NodeProto]:
    """Return the network's nodes with others inserted before node `index`, which then reads the output of the last of them."""
    result = nodes()
    result[index].input[0] = steps[-1].output[0]
    return [*result[:index], *steps, *result[index:]]


def conv(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    windows = sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, w) + b[:, None, None]


def by_hand(x: np.ndarray) -> dict[str, np.ndarray]:
    """Return every value of the network."""
    w = arrays()
    v = {"c1": conv(x, w["w1"], w["b1"])}
    v["r1"] = np.maximum(v["c1"], 0)
    v["c2"] = conv(v["r1"], w["w2"], w["b2"])
    v["r2"] = np.maximum(v["c2"], 0)
    v["y"] = v["r2"].mean((2, 3)) @ w["w3"].T + w["b3"]
    return v


def gradient(x: np.ndarray, layer: str, classes: Sequence[int]) -> np.ndarray:
    """Return the gradient of one class score per image, at r2, c2 or r1."""
    w, v = arrays(), by_hand(x)
    g = np.broadcast_to(w["w3"][list(classes)][:, :, None, None] / v["r2"][0, 0].size, v["r2"].shape)
    if layer == "r2":
        return g
    g = g * (v["c2"] > 0)
    if layer == "c2":
        return g
    flipped = w["w2"].transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]
    return conv(g, flipped, np.zeros(CHANNELS))


def cotangents(*classes: int) -> Any:
    """Return the cotangent that selects the class of each row."""
    return lambda y: [np.eye(y.shape[1], dtype=np.float32)[list(classes)]]
