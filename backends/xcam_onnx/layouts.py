"""Where a tensor keeps its channels, followed from the input through the graph, and whose rows its first axis holds."""

from __future__ import annotations

from onnx import NodeProto

from xcam.contract import Layout
from xcam_onnx.graph import Graph, attribute, reads

CHANNELS_FIRST = {
    "Conv",
    "ConvTranspose",
    "MaxPool",
    "AveragePool",
    "LpPool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "BatchNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "LRN",
    "DepthToSpace",
    "SpaceToDepth",
    "QLinearConv",
    "ConvInteger",
}
"""Operators that the standard defines for [N, C, *space]."""

ONE_INPUT = CHANNELS_FIRST | {
    "Split",
    "Slice",
    "Gather",
    "Pad",
    "Resize",
    "Expand",
    "Tile",
    "Clip",
    "LayerNormalization",
}
"""Operators whose further inputs are not values of pictures."""


def channel_axes(graph: Graph, source: str, axis: int) -> dict[str, int]:
    """For each tensor that depends on `source`, whose channels are at `axis`, the axis of its own channels.

    `graph` knows its shapes as numbers. A tensor whose channels were taken apart or mixed away is left out.
    """
    found = {source: axis}
    for node in graph.nodes:
        shape = graph.shape(node.output[0]) if node.output else None
        if shape is None or not any(name in graph.live for name in reads(node)):
            continue
        place = _axis(graph, node, found, len(shape))
        if place is not None and 0 < place < len(shape):
            found.update((name, place) for name in node.output if name)
    for node in reversed(graph.nodes):  # what is not known from its maker may be from its reader
        for name in node.input[:1] if node.op_type in ONE_INPUT else node.input:
            shape = graph.shape(name)
            if name not in found and name in graph.live and shape is not None and len(shape) > 2:
                place = _asked(graph, node, found, len(shape))
                if place is not None and 0 < place < len(shape):
                    found[name] = place
    return found


def _asked(graph: Graph, node: NodeProto, found: dict[str, int], rank: int) -> int | None:
    """The axis that a node takes for its input's channels."""
    if node.op_type in CHANNELS_FIRST:
        return 1
    axis, shape = found.get(node.output[0]), graph.shape(node.output[0])
    if axis is None or shape is None or len(shape) != rank or node.op_type in ("Reshape", "MatMul", "Einsum", "Gemm"):
        return None
    if node.op_type == "Transpose":
        perm = attribute(node, "perm") or list(range(rank))[::-1]
        return perm[axis]
    return axis


def _axis(graph: Graph, node: NodeProto, found: dict[str, int], rank: int) -> int | None:
    op = node.op_type
    if op in CHANNELS_FIRST:
        return 1
    if op == "Gemm" or rank == 2:
        return 1
    if op in ("MatMul", "MatMulInteger", "QLinearMatMul") and node.input[1] not in graph.live:
        return rank - 1
    if op == "LayerNormalization" and attribute(node, "axis", -1) in (-1, rank - 1):
        return rank - 1
    if op in ("MatMul", "Einsum"):
        return None
    known = [(name, found[name]) for name in node.input if name in found and graph.shape(name) is not None]
    if not known:
        return None
    source, axis = known[0]
    shape = graph.shape(source) or ()
    if op == "Transpose":
        perm = attribute(node, "perm") or list(range(rank))[::-1]
        return perm.index(axis)
    if op == "Reshape" or op == "Flatten":
        return _reshaped(shape, graph.shape(node.output[0]) or (), axis)
    if op == "Squeeze" or (op.startswith("Reduce") and not attribute(node, "keepdims", 1)):
        gone = _axes(graph, node, len(shape)) or [i for i, n in enumerate(shape) if n == 1]
        return None if axis in gone else axis - sum(i < axis for i in gone)
    if op == "Unsqueeze":
        new = _axes(graph, node, rank)
        left = [i for i in range(rank) if i not in new]
        return left[axis]
    if op == "Gather" and rank == len(shape) - 1:
        gone = int(attribute(node, "axis", 0)) % len(shape)
        return None if gone == axis else axis - (gone < axis)
    same = [axis for name, axis in known if len(graph.shape(name) or ()) == rank]
    return same[0] if same else None


def _axes(graph: Graph, node: NodeProto, rank: int) -> list[int]:
    given = attribute(node, "axes")
    if given is None and len(node.input) > 1:
        value = graph.constant(node.input[1])
        given = None if value is None else value.ravel().tolist()
    return [int(a) % rank for a in given or []]


def _reshaped(old: tuple, new: tuple, axis: int) -> int | None:
    """The axis in `new` that holds the same values in the same order, where there is one."""
    if not all(isinstance(n, int) for n in (*old, *new)):
        return None
    before = 1
    for n in old[:axis]:
        before *= n
    ahead = 1
    for place, n in enumerate(new):
        if ahead == before and n == old[axis]:
            return place
        ahead *= n
    return None


def layout(axis: int, rank: int, image: bool) -> Layout:
    """How the contract calls it. `image`: the model takes pictures, so that what has one axis of places has tokens."""
    if axis == 1 or rank < 3:
        return "channels_first"
    return "tokens" if rank == 3 and image else "channels_last"
