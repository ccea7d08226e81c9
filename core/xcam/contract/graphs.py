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


def cuts(order: Sequence[N], inputs: Callable[[N], Iterable[N]], source: N, output: N) -> set[N]:
    """Return the nodes through which every path from `source` to `output` leads, these included: see `Layer.bypassed`.

    Args:
        order: the nodes of a graph, each after those that it reads.
        inputs: the nodes that a node reads.
        source: the node of the input.
        output: the node of the output. Where no path leads to it, there are none.
    """
    ahead = reachable([output], inputs)
    paths: dict[N, int] = {}
    readers: dict[N, int] = {}
    for node in order:
        sources = [other for other in inputs(node) if other in paths]
        if node in ahead and (node == source or sources):
            paths[node] = len(paths)
            readers.update(dict.fromkeys(sources, paths[node]))
    if output not in paths:
        return set()
    result, last = set(), 0  # the last node that reads one of those before
    for node, position in paths.items():
        if position >= last:
            result.add(node)
        last = max(last, readers.get(node, 0))
    return result


def call_names(names: Sequence[str]) -> list[str]:
    """Return a name for each call of a layer: the layer's own for its last call, `name#0`, `name#1`, … for the others."""
    total, count = Counter(names), Counter[str]()
    result = []
    for name in names:
        result.append(name if count[name] == total[name] - 1 else f"{name}#{count[name]}")
        count[name] += 1
    return result
