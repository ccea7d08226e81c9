"""The axis of a tensor that contains its channels, followed from the input through the graph."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnx import NodeProto

from xcam.contract import Array, Layout
from xcam_onnx.graph import Graph, Shape, attribute

CHANNELS_FIRST = {
    *("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "DepthToSpace", "SpaceToDepth"),
    *("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"),
    *("BatchNormalization", "InstanceNormalization", "GroupNormalization", "LRN"),
}
"""Operators that the standard defines for [N, C, *space]."""

ONE_INPUT = {
    *CHANNELS_FIRST,
    *("Split", "Slice", "Gather", "Pad", "Resize", "Expand", "Tile", "Clip", "LayerNormalization"),
}
"""Operators whose further inputs do not depend on the image."""


SAME_AXES = {
    *("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Clip", "Relu", "Neg", "Abs", "Sqrt", "Log", "Exp"),
    *("Cast", "Identity", "Dropout", "Pad", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
}
"""Operators in front of the first convolution whose result has the axes of their input."""


def convolved_axes(graph: Graph, source: str) -> list[int | None] | None:
    """Return which axis of the input is each axis [N, C, *space] of the first convolution's input; None if unknown.

    An axis that the graph inserts is None in the list: [None, 0, 1, 2] for an image without a batch axis, [0, None, 1, 2]
    for one without a channel axis.
    """
    axes: list[int | None] = list(range(len(graph.shape(source) or ())))
    name = source
    for node in graph.nodes:  # in execution order: each reader comes after the node that it reads
        if name not in node.input or not node.output or node.op_type in ("Shape", "Size"):
            continue
        if node.op_type in CHANNELS_FIRST:  # of ONNX: the runtime's own may have another layout
            return axes if name == node.input[0] and len(axes) > 2 and not node.domain else None
        shape = graph.shape(node.output[0])
        rank = None if shape is None else len(shape)
        if node.op_type == "Transpose":
            axes = [axes[i] for i in _permutation(node, len(axes))]
        elif node.op_type == "Unsqueeze":
            for axis in sorted(_axes(graph, node, rank or len(axes) + 1)):
                axes.insert(axis, None)
        elif node.op_type == "Reshape":
            inserted = _with_ones(axes, graph.shape(name) or (), graph.constant(node.input[1]))
            if inserted is None:
                return None
            axes = inserted
        elif node.op_type not in SAME_AXES:
            return None
        if rank not in (None, len(axes)):
            return None
        name = node.output[0]
    return None


def _with_ones(axes: Sequence[int | None], shape: Shape, target: Array | None) -> list[int | None] | None:
    """Return the axes of a tensor that is reshaped to `target`, None for the ones that this inserts; None otherwise."""
    if target is None or len(shape) != len(axes):
        return None
    sizes = [shape[i] if n == 0 and i < len(shape) else n for i, n in enumerate(target.ravel().tolist())]
    known = [n for n in shape if isinstance(n, int)]
    if -1 in sizes and len(known) == len(shape):
        sizes[sizes.index(-1)] = math.prod(known) // -math.prod(n for n in sizes if isinstance(n, int))
    result: list[int | None] = []
    left = list(zip(axes, shape, strict=True))
    for n in sizes:
        if left and n in (-1, left[0][1]):
            result.append(left.pop(0)[0])
        elif n == 1:
            result.append(None)
        else:
            return None
    return None if left else result


def channel_axes(graph: Graph, source: str, axis: int | None, least: int = 1) -> dict[str, int]:
    """Return the channel axis of each tensor that depends on the input.

    Args:
        graph: A graph whose shapes are known as numbers.
        source: The input.
        axis: The channel axis of the input; None where it has none.
        least: The smallest axis of channels: 0 where the graph computes values without a batch axis.

    Returns:
        The axis by tensor name. Tensors whose channels were split or mixed with other axes are left out.
    """
    axes = {} if axis is None else {source: axis}
    for node, read in zip(graph.nodes, graph.reads, strict=True):
        shape = graph.shape(node.output[0]) if node.output else None
        if shape is None or graph.live.isdisjoint(read):
            continue
        result = _output_axis(graph, node, axes, len(shape))
        if result is not None and least <= result < len(shape):
            axes.update((name, result) for name in node.output if name)
    for node in reversed(graph.nodes):  # an axis that the producer does not determine may follow from a reader
        for name in node.input[:1] if node.op_type in ONE_INPUT else node.input:
            shape = graph.shape(name)
            if name not in axes and name in graph.live and shape is not None and len(shape) > 2:
                result = _input_axis(graph, node, axes, len(shape))
                if result is not None and least <= result < len(shape):
                    axes[name] = result
    return axes


def _input_axis(graph: Graph, node: NodeProto, axes: dict[str, int], rank: int) -> int | None:
    """Return the channel axis that a node expects of its input."""
    if node.op_type in CHANNELS_FIRST:
        return 1
    axis, shape = axes.get(node.output[0]), graph.shape(node.output[0])
    if axis is None or shape is None or len(shape) != rank or node.op_type in ("Reshape", "MatMul", "Einsum", "Gemm"):
        return None
    return _permutation(node, rank)[axis] if node.op_type == "Transpose" else axis


def _output_axis(graph: Graph, node: NodeProto, axes: dict[str, int], rank: int) -> int | None:
    """Return the channel axis of a node's output."""
    op = node.op_type
    if op in CHANNELS_FIRST or op == "Gemm" or rank == 2:
        return 1
    if op in ("MatMul", "MatMulInteger", "QLinearMatMul") and node.input[1] not in graph.live:
        return rank - 1
    if op == "LayerNormalization" and attribute(node, "axis", -1) in (-1, rank - 1):
        return rank - 1
    if op in ("MatMul", "Einsum"):
        return None
    known = [(name, axes[name]) for name in node.input if name in axes and graph.shape(name) is not None]
    if not known:
        return None
    source, axis = known[0]
    shape = graph.shape(source) or ()
    if op == "Transpose":
        return _permutation(node, rank).index(axis)
    if op in ("Reshape", "Flatten"):
        return _reshaped(shape, graph.shape(node.output[0]) or (), axis)
    if op == "Squeeze" or (op.startswith("Reduce") and not attribute(node, "keepdims", 1)):
        removed = _axes(graph, node, len(shape)) or [i for i, n in enumerate(shape) if n == 1]
        return None if axis in removed else axis - sum(i < axis for i in removed)
    if op == "Unsqueeze":
        inserted = _axes(graph, node, rank)
        return [i for i in range(rank) if i not in inserted][axis]
    if op == "Gather" and rank == len(shape) - 1:
        removed_axis = int(attribute(node, "axis", 0)) % len(shape)
        return None if removed_axis == axis else axis - (removed_axis < axis)
    same_rank = [axis for name, axis in known if len(graph.shape(name) or ()) == rank]
    return same_rank[0] if same_rank else None


def _permutation(node: NodeProto, rank: int) -> list[int]:
    return attribute(node, "perm") or list(range(rank))[::-1]


def _axes(graph: Graph, node: NodeProto, rank: int) -> list[int]:
    axes = attribute(node, "axes")
    if axes is None and len(node.input) > 1:
        value = graph.constant(node.input[1])
        axes = None if value is None else value.ravel().tolist()
    return [int(axis) % rank for axis in axes or []]


def _reshaped(old: Shape, new: Shape, axis: int) -> int | None:
    """Return the axis of `new` that contains the same values in the same order, or None."""
    before, after = [n for n in old if isinstance(n, int)], [n for n in new if isinstance(n, int)]
    if len(before) < len(old) or len(after) < len(new):
        return None
    offset = math.prod(before[:axis])
    matches = (i for i, n in enumerate(after) if n == before[axis] and math.prod(after[:i]) == offset)
    return next(matches, None)


def layout(axis: int, rank: int, image: bool) -> Layout:
    """Return the contract's name for a layout.

    Args:
        axis: The channel axis.
        rank: The number of axes.
        image: The model takes images, so that a tensor with a single spatial axis consists of tokens.
    """
    if axis == 1 or rank < 3:
        return "channels_first"
    return "tokens" if rank == 3 and image else "channels_last"
