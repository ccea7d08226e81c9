"""A toy in place of your framework: a network is a list of NumPy functions, each with its derivative."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    """From the values of its inputs to its value [N, C, …]."""
    backward: Callable[..., Sequence[Any]]
    """From the gradient of its value, and the values of its inputs, to a gradient for each input."""


@dataclass(frozen=True)
class Graph:
    """A network: nodes in execution order."""

    name: str
    shape: tuple[int, int, int]
    """(C, H, W) of an image."""
    nodes: Sequence[Node]
    outputs: tuple[str, ...]
    labels: Sequence[str] | None = None

    def run(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the value of every node, computed from `x` or from any values that are known already."""
        known = dict(values)
        for node in self.nodes:
            if node.name not in known:
                known[node.name] = node.forward(*(known[name] for name in node.inputs))
        return known


def read(path: Path) -> Graph:
    """Return the model in a file of NumPy's .npy format: weights [3, classes] of the mean colour. Raises ValueError."""
    with open(path, "rb") as file:
        weights = np.load(file, allow_pickle=False).astype(np.float32)
    if weights.ndim != 2 or len(weights) != 3:
        raise ValueError(f"weights of shape {weights.shape}, expected (3, classes)")
    return colours(path.stem, weights)


def colours(name: str, weights: Any) -> Graph:
    """Return a network to experiment with: how red, green and blue is an image, and where?"""

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
