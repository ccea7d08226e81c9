"""The framework of this example: a network is a list of NumPy functions, each with its derivative."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


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
