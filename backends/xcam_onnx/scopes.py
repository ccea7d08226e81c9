"""The modules that the nodes of a graph came from: as torch's exporter records them, and by the names of weights.

Quantisers and optimisers replace nodes, and their nodes do not name a module. The weight that such a node reads does:
`layer4.2.conv3.weight_quantized` belongs to a part of `layer4.2`. Where a module may end with a node of which nothing is
known, its end is unknown.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence

from onnx import NodeProto

from xcam_onnx.graph import Graph, metadata, reads

SCOPES, CLASSES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"
CONVERTING = {
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast", "Identity", "Reshape", "Transpose"),
}
"""Operators that tools insert between others."""
RESCALING = ("Cast", "Mul")
"""Operators that a quantiser writes behind its sum of integers."""

Scope = list[tuple[str, str]]
"""(path, class) of the modules that a node came from, outermost first."""


def modules(node: NodeProto) -> Scope:
    """Return the modules that torch's exporter recorded for a node."""
    entries = metadata(node)
    try:
        paths, classes = ast.literal_eval(entries[SCOPES]), ast.literal_eval(entries[CLASSES])
        pairs = list(zip(paths[:-1], classes, strict=False))
    except (KeyError, ValueError, SyntaxError, TypeError):
        return []
    return [
        (path, str(kind).rpartition(".")[2])
        for path, kind in pairs
        if isinstance(path, str) and path and not path.startswith("_empty_nn_module_stack")
    ]


def is_live(graph: Graph, node: NodeProto) -> bool:
    """Return whether a node depends on the input."""
    return bool(node.output) and node.output[0] in graph.live


def scopes(graph: Graph) -> list[Scope]:
    """Return the modules of each node: those recorded; else those of the weight that it reads; [] for constants.

    The class of the module that has the weight is "": other parts of it may follow.
    """
    result = [modules(node) if is_live(graph, node) else [] for node in graph.nodes]
    known = {path: (path, kind) for scope in result for path, kind in scope}
    if not known:
        return result
    recovered: dict[int, Scope] = {}
    for i, node in enumerate(graph.nodes):
        if result[i] or not is_live(graph, node) or node.op_type.startswith("Fused"):
            continue
        names = [name for source in node.input for name in _weights(graph, source)]
        scope = next((scope for name in names if (scope := _around(name, known))), [])
        before = [
            recovered.get(graph.producer[name])
            for name in node.input
            if name in graph.live and name in graph.producer
        ]
        if not scope and node.op_type in RESCALING and before and all(entry == before[0] for entry in before):
            scope = before[0] or []
        if scope:
            recovered[i] = result[i] = scope
    return result


def _weights(graph: Graph, name: str) -> list[str]:
    """Return the weights that a constant is computed from."""
    if name in graph.live:
        return []
    if name in graph.initializers or name not in graph.producer:
        return [name]
    return [weight for source in reads(graph.nodes[graph.producer[name]]) for weight in _weights(graph, source)]


def _around(weight: str, known: dict[str, tuple[str, str]]) -> Scope:
    """Return the module that has a weight, and the known ones around it: for `a.b.conv.weight`, `a`, `a.b`, `a.b.conv`."""
    *parts, leaf = weight.split(".")[:-1] or [""]
    paths = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return [known[path] for path in paths if path in known] + [(".".join([*parts, leaf]), "")] * bool(leaf)


def unknown_ends(graph: Graph, scoped: Sequence[Scope], ends: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
    """Return the modules that may end behind the last node that is known to belong to them.

    A module ends there if a node that does not belong to it reads its value, or if it is an output. An operator of quantisers
    or optimisers may belong to any module.

    Args:
        graph: The graph.
        scoped: The modules of its nodes: see `scopes`.
        ends: Modules, each with the index of its last known node.
    """
    readers: dict[str, list[int]] = {}
    for i, node in enumerate(graph.nodes):
        for name in reads(node) if is_live(graph, node) else ():
            readers.setdefault(name, []).append(i)

    def is_unknown(path: str, last: int) -> bool:
        pending, seen, result = list(graph.nodes[last].output), set[str](), False
        while pending:
            name = pending.pop()
            for i in readers.get(name, ()) if name not in seen else ():
                node = graph.nodes[i]
                if any(other == path for other, _ in scoped[i]):
                    continue
                if scoped[i] or SCOPES in metadata(node):
                    return False
                if node.op_type in CONVERTING or node.name.startswith("xcam/"):
                    pending.extend(node.output[:1])
                elif node.domain or node.op_type.startswith("QLinear") or node.op_type.endswith("Integer"):
                    result = True
                else:
                    return False
            seen.add(name)
        return result

    return {end for end in ends if is_unknown(*end)}
