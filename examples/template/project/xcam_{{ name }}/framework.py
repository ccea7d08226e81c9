"""A toy that stands where your framework will: a network is a list of NumPy functions, each with its derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Node:
    """One step of a network."""

    name: str
    kind: str
    """`Conv`, `ReLU`, …; a last `Softmax` is cut off, so that outputs are logits."""
    inputs: tuple[str, ...]
    """The nodes that it reads; `x` is the network's input."""
    forward: Callable[..., Any]
    """values of its inputs → its value [N, C, …]"""
    backward: Callable[..., Sequence[Any]]
    """gradient of its value, values of its inputs → a gradient for each input"""


@dataclass(frozen=True)
class Graph:
    """A network: nodes in execution order."""

    name: str
    shape: tuple[int, int, int]
    """(C, H, W) of a picture."""
    nodes: Sequence[Node]
    outputs: tuple[str, ...]
    labels: Sequence[str] | None = None

    def run(self, values: dict[str, Any]) -> dict[str, Any]:
        """The value of every node, from `x` or from any values that are known already."""
        known = dict(values)
        for node in self.nodes:
            if node.name not in known:
                known[node.name] = node.forward(*(known[name] for name in node.inputs))
        return known


def read(path: Path) -> Graph:
    """A model file of this toy: NumPy's .npy format, the weights [3, classes] of the mean colour. Raises ValueError."""
    with open(path, "rb") as file:
        weights = np.load(file, allow_pickle=False).astype(np.float32)
    if weights.ndim != 2 or len(weights) != 3:
        raise ValueError(f"weights of shape {weights.shape}, expected (3, classes)")
    return colours(path.stem, weights)


def colours(name: str, weights: Any) -> Graph:
    """A network to try things with: how red, green and blue is a picture, and where?"""

    def paint(x: Any) -> Any:
        return np.maximum(x - x.mean(axis=1, keepdims=True), 0)

    def paint_back(g: Any, x: Any) -> Sequence[Any]:
        g = g * (paint(x) > 0)
        return [g - g.mean(axis=1, keepdims=True)]

    def dense(x: Any) -> Any:
        return x.mean(axis=(2, 3)) @ weights

    def dense_back(g: Any, x: Any) -> Sequence[Any]:
        return [np.broadcast_to((g @ weights.T)[:, :, None, None], x.shape) / (x.shape[2] * x.shape[3])]

    nodes = [
        Node("colours", "Conv", ("x",), paint, paint_back),
        Node("scores", "Dense", ("colours",), dense, dense_back),
    ]
    return Graph(name, (3, 64, 64), nodes, ("scores",))
