"""What the tensors of a graph are called: by the module path that torch's exporter notes, by node, by tensor.

torch.onnx.export(dynamo=True) writes into each node's metadata the modules that it came from: `layer4`, `layer4.2`,
`layer4.2.bn3`. A module's output is that of its last node. A batch norm that was folded into its convolution leaves its
own name on the node: the convolution's value is no longer computed anywhere.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

from onnx import NodeProto

from xcam_onnx.graph import Graph

SCOPES, CLASSES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"


@dataclass
class Place:
    """A name of a tensor."""

    name: str
    tensor: str
    kind: str
    aliases: list[str] = field(default_factory=list)
    inner: bool = False
    """A value inside a module."""


def places(graph: Graph) -> list[Place]:
    """Every tensor that a node of the main graph gives first, in execution order, under all of its names.

    Where the file knows modules, each module is a place of its own, an outer one ahead of the inner one that ends it;
    what has no module's name is `inner` then.
    """
    scopes = {i: modules(node) for i, node in enumerate(graph.nodes)}
    ends: dict[int, list[tuple[str, str]]] = {}
    runs: dict[str, list[int]] = {}
    kinds: dict[str, str] = {}
    for i, node in enumerate(graph.nodes):
        if not node.output or node.output[0] not in graph.live:
            continue
        for path, kind in scopes[i]:
            calls = runs.setdefault(path, [])
            kinds[path] = kind
            if calls and _inside(graph, scopes, path, calls[-1], i):
                calls[-1] = i
            else:
                calls.append(i)
    for path, calls in runs.items():
        for k, i in enumerate(calls):
            name = path if k == len(calls) - 1 else f"{path}#{k}"
            ends.setdefault(i, []).append((name, kinds[path]))
    found = []
    for i, node in enumerate(graph.nodes):
        if not node.output or node.output[0] not in graph.live or node.output[0].startswith("xcam/"):
            continue
        own = [n for n in (node.name, node.output[0]) if n]
        named = sorted(ends.get(i, []), key=lambda entry: len(entry[0]))
        if named:
            found += [Place(name, node.output[0], kind) for name, kind in named[:-1]]
            found.append(Place(named[-1][0], node.output[0], named[-1][1], own))
        else:
            found.append(Place(own[0], node.output[0], node.op_type, own[1:], inner=bool(runs)))
    taken: set[str] = set()
    for place in found:  # a name stands for one place: the first that has it
        if place.name in taken:
            place.name = place.tensor
        taken.add(place.name)
    return found


def modules(node: NodeProto) -> list[tuple[str, str]]:
    """(path, class) of the modules that a node came from, outermost first."""
    notes = {entry.key: entry.value for entry in node.metadata_props}
    try:
        paths, classes = ast.literal_eval(notes[SCOPES]), ast.literal_eval(notes[CLASSES])
        pairs = list(zip(paths[:-1], classes, strict=False))
    except (KeyError, ValueError, SyntaxError, TypeError):
        return []
    return [
        (path, str(kind).rpartition(".")[2])
        for path, kind in pairs
        if isinstance(path, str) and path and not path.startswith("_empty_nn_module_stack")
    ]


def _inside(graph: Graph, scopes: dict[int, list[tuple[str, str]]], path: str, last: int, i: int) -> bool:
    """Whether a node belongs to the call that node `last` belongs to: nothing of other modules stands between."""
    between = (scopes[k] for k in range(last + 1, i) if graph.nodes[k].output[0] in graph.live)
    return all(not found or any(p == path for p, _ in found) for found in between)


def folded(graph: Graph, name: str) -> str | None:
    """The batch norm that was folded into the convolution called `name`, where that is what became of it."""
    for node in graph.nodes:
        if any(given.startswith(f"{name}.weight") for given in node.input[1:2]):
            paths = modules(node)
            if paths and paths[-1][0] != name:
                return paths[-1][0]
    return None
