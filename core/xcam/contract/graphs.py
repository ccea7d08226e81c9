"""Traversal of a recorded forward pass, and the names of its calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from typing import TypeVar

N = TypeVar("N", bound=Hashable)


def reachable(starts: Iterable[N], neighbours: Callable[[N], Iterable[N]], stop: Collection[N] = ()) -> dict[N, None]:
    """Return the nodes that a path leads to from `starts`, these included, each once.

    Args:
        starts: nodes of a graph.
        neighbours: the nodes one step further: inputs for ancestors, users for the nodes computed from it.
        stop: nodes that are returned, but not traversed.
    """
    result: dict[N, None] = dict.fromkeys(starts)
    queue = [node for node in result if node not in stop]
    for node in queue:  # grows during the loop
        for neighbour in neighbours(node):
            if neighbour not in result:
                result[neighbour] = None
                if neighbour not in stop:
                    queue.append(neighbour)
    return result


def call_names(names: Sequence[str]) -> list[str]:
    """Return a name for each call of a layer: the layer's own for its last call, `name#0`, `name#1`, … for the others."""
    total, count = Counter(names), Counter[str]()
    result = []
    for name in names:
        result.append(name if count[name] == total[name] - 1 else f"{name}#{count[name]}")
        count[name] += 1
    return result
