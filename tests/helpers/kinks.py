"""Distances of a network's values from the kinks of its operators (ReLU, max-pool, …)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto

import xcam
from xcam_onnx.graph import Graph, attribute

KINKS = {"Relu": (0.0,), "LeakyRelu": (0.0,), "PRelu": (0.0,), "Abs": (0.0,), "HardSwish": (-3.0, 3.0)}
BY_ATTRIBUTES = ("Clip", "HardSigmoid", "MaxPool")
ROUNDING = 1e-6
"""Error of float32 in standard deviations of a tensor: the usual rounding of sums of hundreds of terms."""


def clearest(path: Path, layer: str, x: np.ndarray, count: int = 2) -> tuple[np.ndarray, float]:
    """Return the rows of `x` that stay farthest from every kink behind the layer, and their smallest distance.

    At such inputs rounding changes the branch of no ReLU and no maximum, so the gradient is that of a smooth function:
    every entry is the same on any processor, up to rounding.

    Args:
        path: An ONNX file.
        layer: As xcam calls it.
        x: [N, …].
    """
    distances = clearance(onnx.load(path), xcam.load(path).recording.tensor(layer), x)
    rows = np.argsort(-distances)[:count]
    return rows, float(distances[rows].min())


def clearance(model: ModelProto, tensor: str, x: np.ndarray) -> np.ndarray:
    """Return the smallest distance of a value from a kink, for each row of `x`, in units of its shift by rounding.

    The shift is measured: how far the values move when every pixel is changed by `ROUNDING`; it is `ROUNDING` at least.

    Args:
        model: With its weights; its outputs are replaced.
        tensor: Only kinks of nodes that depend on it count.
        x: [N, …].

    Returns:
        [N], infinite where no kink follows.
    """
    graph = Graph(model)
    behind = graph.after([tensor])
    nodes = [n for n in graph.nodes if n.op_type in (*KINKS, *BY_ATTRIBUTES) and n.input[0] in behind]
    names = list(dict.fromkeys(node.input[0] for node in nodes))
    if not names:
        return np.full(len(x), np.inf)
    del model.graph.output[:]
    model.graph.output.extend(graph.info(name) for name in names)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    source = session.get_inputs()[0].name
    rows = []
    for row in x:
        moved = row * (1 + ROUNDING * rng.normal(size=row.shape).astype(np.float32))
        values, others = (dict(zip(names, session.run(names, {source: v[None]}), strict=True)) for v in (row, moved))
        shift = {
            n: max(float(np.sqrt(np.mean((values[n] - others[n]) ** 2))), ROUNDING * values[n].std()) for n in names
        }
        rows.append(min(_distance(graph, node, values[node.input[0]]) / shift[node.input[0]] for node in nodes))
    return np.array(rows)


def _distance(graph: Graph, node: NodeProto, a: np.ndarray) -> float:
    if node.op_type == "MaxPool":
        return _gap(node, a)
    return min(float(np.abs(a - kink).min()) for kink in _kinks(graph, node))


def _kinks(graph: Graph, node: NodeProto) -> Iterator[float]:
    if node.op_type == "Clip":
        bounds = [graph.constant(name) for name in node.input[1:] if name]
        yield from (float(bound) for bound in bounds if bound is not None)
    elif node.op_type == "HardSigmoid":
        alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
        yield from (-beta / alpha, (1 - beta) / alpha)
    else:
        yield from KINKS[node.op_type]


def _gap(node: NodeProto, a: np.ndarray) -> float:
    """Return the smallest difference between the two largest values of a window; zeros, which ReLU leaves, tie exactly."""
    kernel: Sequence[int] = attribute(node, "kernel_shape")
    if max(kernel) == 1:
        return np.inf
    strides, pads = attribute(node, "strides", [1, 1]), attribute(node, "pads", [0] * 4)
    more = [s if attribute(node, "ceil_mode", 0) else 0 for s in strides]
    sides = [(0, 0), (0, 0), (pads[0], pads[2] + more[0]), (pads[1], pads[3] + more[1])]
    padded = np.pad(a, sides, constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, (2, 3))[:, :, :: strides[0], :: strides[1]]
    second, first = np.partition(windows.reshape(-1, kernel[0] * kernel[1]), -2)[:, -2:].T
    decided = (first != 0) & (second > -np.inf)
    return float(np.min(first[decided] - second[decided], initial=np.inf))
