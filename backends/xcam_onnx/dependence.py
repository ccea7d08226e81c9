"""How the tensors of a graph depend on its input, and its outputs on them: by value, and on how many tokens."""

from __future__ import annotations

from onnx import NodeProto

from xcam.contract.graphs import cuts
from xcam_onnx.graph import Graph, attribute, reads

MOST = 0.5
"""The share of a layer's tokens that an output has to depend on."""
SHAPE_ONLY = ("Shape", "Size", "EyeLike", "RandomNormalLike", "RandomUniformLike")
"""Operators that read the shape of their input, and not its values."""
STORAGE_ONLY = ("Identity", "Cast", "Dropout")
"""Operators that only change how a value is stored."""
MATRIX_PRODUCTS = ("MatMul", "Gemm")
TOKEN_WISE = {"LayerNormalization", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split"}
"""Operators that treat every token alike, or only move tokens."""
ELEMENTWISE = {
    *("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Where", "Relu", "Gelu", "Erf", "Tanh", "Sigmoid"),
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
    *STORAGE_ONLY,
}
"""Operators that treat every token alike where no operand has more axes than the result."""


def depending_on_input(graph: Graph) -> set[str]:
    """Return the tensors whose values depend on the model's input, and not only on its shape."""
    dependent = {value.name for value in graph.inputs}
    for node, read in zip(graph.nodes, graph.reads, strict=True):
        if not dependent.isdisjoint(read) and not _reads_shape_only(node):
            dependent.update(name for name in node.output if name)
    return dependent


def passed_by_all(graph: Graph, source: str, output: str) -> set[str]:
    """Return the tensors through which every path from the input to an output leads: see Layer.bypassed."""
    read: dict[str, list[str]] = {
        name: list(reads(node)) for node in graph.nodes if not _reads_shape_only(node) for name in node.output if name
    }
    return cuts([source, *read], lambda name: read.get(name, ()), source, output)


def read_by(graph: Graph, output: str, rows: int) -> dict[str, float]:
    """Return the tensors on whose values an output depends, each with the share of its tokens that the output depends on.

    Behind the last attention of a vision transformer only the class token is read: a map of the others would be blank.
    Of a tensor without tokens the share is 1.

    Args:
        graph: a graph from `sized`.
        output: the output's tensor.
        rows: its batch size.
    """
    shares = {output: 1.0}
    for node in reversed(graph.nodes):
        needed = [shares[name] for name in node.output if name in shares]
        if not needed or _reads_shape_only(node):
            continue
        picked = _picked(graph, node, rows, shares)
        share = max(needed) if _treats_tokens_alike(graph, node) else 1.0
        for index, name in enumerate(reads(node)):
            before = shares.get(name, 0.0)
            shares[name] = max(before, share) if picked is None or index else min(1.0, before + picked)
    return shares


def _reads_shape_only(node: NodeProto) -> bool:
    return node.op_type in SHAPE_ONLY and node.domain == ""


def _picked(graph: Graph, node: NodeProto, rows: int, shares: dict[str, float]) -> float | None:
    """Return the share of its first input's tokens that a Gather, Slice or Split passes on; None: it takes no part of them.

    Tokens are on the axis of a [N, T, C] or [T, N, C] that is not the batch.
    """
    if node.op_type not in ("Gather", "Slice", "Split") or node.domain:
        return None
    shape = graph.shape(node.input[0])
    if shape is None or len(shape) != 3:
        return None
    axis = 1 if shape[0] == rows else 0
    tokens = shape[axis]
    if not isinstance(tokens, int) or tokens < 3:
        return None
    if node.op_type == "Gather":
        indices = graph.constant(node.input[1])
        same_axis = int(attribute(node, "axis", 0)) % 3 == axis
        return shares[node.output[0]] * indices.size / tokens if same_axis and indices is not None else None
    results = {name: graph.shape(name) for name in node.output if name in shares}
    counts = {name: s[axis] if s is not None and len(s) == 3 else None for name, s in results.items()}
    if not all(isinstance(n, int) for n in counts.values()) or set(counts.values()) == {tokens}:
        return None
    return sum(shares[name] * n for name, n in counts.items() if isinstance(n, int)) / tokens


def _treats_tokens_alike(graph: Graph, node: NodeProto) -> bool:
    live = [name for name in node.input if name in graph.live]
    if node.op_type in MATRIX_PRODUCTS:
        return len(live) == 1
    result = graph.shape(node.output[0])
    return node.op_type in TOKEN_WISE or (
        node.op_type in ELEMENTWISE
        and result is not None
        and all(len(graph.shape(name) or ()) <= len(result) for name in live)
    )
