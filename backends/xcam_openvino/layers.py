"""The layers of a graph: names, kinds, layouts, and how outputs depend on them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xcam.contract import Layer, Layout
from xcam.contract.graphs import cuts
from xcam_openvino.graph import FLOATS, Graph, Sizes, Tensor

CHANNELS_FIRST = {
    *("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData"),
    *("DeformableConvolution", "BinaryConvolution", "MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool"),
    *("BatchNormInference", "LRN", "DepthToSpace", "SpaceToDepth", "GroupNormalization"),
}
"""Operators that are defined for [N, C, *space]."""
KERNELS = {
    *("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData"),
    *("DeformableConvolution", "BinaryConvolution", "MatMul"),
}
"""Operators with a kernel."""
TWO_OPERANDS = {
    *("Add", "Subtract", "Multiply", "Divide", "Maximum", "Minimum", "Power", "SquaredDifference", "Mod", "FloorMod"),
    *("PRelu", "Select"),
}
"""Operators on each value, of several operands."""
ELEMENTWISE = {
    *TWO_OPERANDS,
    *(
        "Convert",
        "FakeQuantize",
        "Relu",
        "Gelu",
        "Tanh",
        "Sigmoid",
        "HSigmoid",
        "HSwish",
        "Swish",
        "Mish",
        "Elu",
        "Selu",
    ),
    *(
        "SoftPlus",
        "SoftSign",
        "HardSigmoid",
        "Clamp",
        "Sqrt",
        "Exp",
        "Log",
        "Abs",
        "Negative",
        "Erf",
        "Floor",
        "Round",
    ),
}
"""Operators on each value."""
TOKEN_WISE = {
    *("MVN", "RMS", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Gather", "Slice", "StridedSlice", "Split"),
    *("VariadicSplit", "Concat"),
}
"""Operators that treat every token alike, or only move tokens."""
PICKING = {"Gather", "Slice", "StridedSlice", "Split", "VariadicSplit"}
"""Operators that may pass on a part of the tokens."""
MOST = 0.5
"""The share of a layer's tokens that an output has to depend on."""
NAMED = 1 / 3
"""The share of tensors with names from which on the others are steps inside of the framework's operators."""
SCOPE = re.compile(r"^__module\.(.+?)/(?:aten|prim|quantized|ov_ext)::")
"""The friendly names of models that OpenVINO converts from torch."""


@dataclass(frozen=True)
class Entry:
    """A layer, with the tensors of its value."""

    layer: Layer
    tensor: Tensor
    """The tensor at which the graph is cut there."""
    read: Tensor
    """The tensor of its value: behind the quantiser, where the value is quantised."""


def read_layers(
    graph: Graph, sized: Graph, rows: int, channel: int, outputs: Mapping[str, Tensor], main: str, rank: int
) -> dict[str, Entry]:
    """Return by name the layers of a model.

    Args:
        graph: The graph.
        sized: The same graph for a batch of `rows`, in which all shapes are known.
        rows: The batch size.
        channel: The channel axis of the input.
        outputs: The tensor of each output, by its name.
        main: The name of the output that is explained.
        rank: The number of spatial axes of the input.
    """
    needed = {name: read_by(graph, sized, tensor, rows) for name, tensor in outputs.items()}
    reads: dict[Tensor, list[Tensor]] = {(k, port): graph.reads(k) for k, port in graph.tensors}
    passed = cuts(list(reads), lambda tensor: reads.get(tensor, ()), graph.source, outputs[main])
    axes = _channel_axes(sized, channel)
    final = {*outputs.values(), *graph.results}
    has_names = _has_names(graph)
    ends = quantised(graph)
    absorbed = {k for end in ends.values() for k in end.operators}
    scopes = _scopes(graph)
    entries: dict[str, Entry] = {}
    for tensor in graph.tensors:
        position, port = tensor
        shape = sized.shape(tensor)
        if (
            position not in graph.live
            or position in absorbed
            or graph.kinds[position] in ("Parameter", "Result")
            or graph.dtype(tensor) not in FLOATS
            or not shape
            or len(shape) < 2
            or tensor not in axes
        ):
            continue
        end = ends.get(tensor)
        read = tensor if end is None else end.tensor
        names = sorted({*graph.output(tensor).get_names(), *graph.output(read).get_names()})
        name = graph.name(tensor) if port == 0 else f"{graph.name(tensor)}:{port}"
        aliases = [*names, *([] if end is None else [graph.name((k, 0)) for k in end.operators])]
        aliases += [scope for scope, last in scopes.items() if last == tensor]
        layout = _layout(axes[tensor], len(shape), rank)
        leads_to = tuple(
            output for output, shares in needed.items() if shares.get(tensor, 0) > (MOST if layout == "tokens" else 0)
        )
        unique = name
        while unique in entries:
            unique = f"{name}#{sum(other.partition('#')[0] == name for other in entries)}"
        entries[unique] = Entry(
            Layer(
                name=unique,
                kind=_kind(graph, position, has_names),
                shape=(shape[axes[tensor]], *(n for k, n in enumerate(shape) if k not in (0, axes[tensor]))),
                layout=layout,
                is_output=not final.isdisjoint((tensor, read)),
                folds_batch=len(shape) > 2 and shape[0] != rows,
                reaches_output=bool(leads_to),
                leads_to=leads_to,
                depends_on_input=position in graph.dependent,
                aliases=tuple(dict.fromkeys(alias for alias in aliases if alias != unique)),
                inner=_is_inner(graph, tensor, has_names),
                dtype=_stored_type(graph, read),
                bypassed=tensor not in passed,
            ),
            tensor,
            read,
        )
    return entries


def _has_names(graph: Graph) -> bool:
    """Return whether the tensors of the framework have names: a conversion from TensorFlow loses most of them."""
    tensors = [t for t in graph.tensors if t[0] in graph.live and t[1] == 0 and graph.dtype(t) in FLOATS]
    named = [t for t in tensors if graph.output(t).get_names()]
    return len(named) >= NAMED * len(tensors)


def _is_inner(graph: Graph, tensor: Tensor, has_names: bool) -> bool:
    """Return whether a tensor is a step inside of one of the framework's operators: OpenVINO names all others."""
    return has_names and not graph.output(tensor).get_names() and tensor not in graph.results


def _kind(graph: Graph, position: int, has_names: bool) -> str:
    """Return the type of the operator; of a bias or factor behind an inner operator, the type of this one."""
    kind = graph.kinds[position]
    if kind in ("Add", "Subtract", "Multiply", "Divide"):
        operands = [t for t in graph.inputs[position] if t[0] in graph.dependent]
        if len(operands) == 1 and _is_inner(graph, operands[0], has_names):
            before = _kind(graph, operands[0][0], has_names)
            if before not in ("Parameter", "Convert"):
                return before
    return kind


def _scopes(graph: Graph) -> dict[str, Tensor]:
    """Return for each part of a torch model, inner and outer ones, the tensor of its last operator."""
    result: dict[str, Tensor] = {}
    for k, node in enumerate(graph.ops):
        match = SCOPE.match(node.get_friendly_name()) if k in graph.live else None
        if match and graph.dtype((k, 0)) in FLOATS:
            parts = match[1].split(".")
            result.update({".".join(parts[:n]): (k, 0) for n in range(1, len(parts) + 1)})
    return result


@dataclass(frozen=True)
class Quantised:
    """The operators that quantise a value, where nothing reads it before them."""

    tensor: Tensor
    """The value behind them."""
    operators: tuple[int, ...]


def quantised(graph: Graph) -> dict[Tensor, Quantised]:
    """Return the quantisers of float values that nothing reads but them, by the value ahead of them."""
    result = {}
    for position in range(len(graph.ops)):
        if not graph.is_quantiser(position):
            continue
        tensor = graph.inputs[position][0]
        readers = [k for k in graph.readers[tensor] if graph.kinds[k] != "ShapeOf"]
        if (
            readers != [position]
            or graph.kinds[tensor[0]] in ("Parameter", "FakeQuantize")
            or tensor[0] not in graph.live
        ):
            continue
        operators, end = [position], position
        while True:  # integers, and back: as QuantizeLinear and DequantizeLinear are read
            behind = [k for k in graph.readers.get((end, 0), []) if graph.kinds[k] != "ShapeOf"]
            is_integer = graph.dtype((end, 0)) not in FLOATS
            step = behind[0] if behind and (len(behind) == 1 or is_integer) else None
            if step is None or not _dequantises(graph, step, is_integer):
                break
            operators.append(step)
            end = step
        if graph.dtype((end, 0)) in FLOATS:
            result[tensor] = Quantised((end, 0), tuple(operators))
    return result


def _dequantises(graph: Graph, position: int, is_integer: bool) -> bool:
    """Return whether an operator converts a quantised value, or applies the scale and zero point behind a conversion."""
    kind, inputs = graph.kinds[position], graph.inputs[position]
    if kind == "Convert":
        return is_integer or graph.dtype((position, 0)) not in FLOATS
    if is_integer or kind not in ("Subtract", "Multiply"):
        return False
    before = graph.kinds[inputs[0][0]]
    return before in ("Convert", "Subtract") and inputs[1][0] not in graph.live


def _stored_type(graph: Graph, tensor: Tensor) -> str:
    """Return the name of the type in which the runtime stores a value."""
    position = tensor[0]
    while graph.kinds[position] in ("Subtract", "Multiply", "Convert"):
        position = graph.inputs[position][0][0]
    end = graph.quantiser((position, 0))
    if end is None:
        return {"f16": "float16", "bf16": "bfloat16"}.get(graph.dtype(tensor), "float32")
    levels = int(graph.ops[end].get_attributes()["levels"])
    bits = 8 if levels <= 256 else 16
    low = graph.constant(graph.inputs[end][1])
    return f"int{bits}" if low is not None and np.min(low) < 0 else f"uint{bits}"


def _layout(axis: int, rank: int, space: int) -> Layout:
    """Return the layout of a value; a probe corrects it where the operators do not show it."""
    if axis == 1 or rank < 3:
        return "channels_first"
    return "tokens" if rank == 3 and space == 2 else "channels_last"


def _channel_axes(graph: Graph, channel: int) -> dict[Tensor, int]:
    """Return the channel axis of each tensor that depends on the input.

    Tensors whose channels were split or mixed with other axes are left out.

    Args:
        graph: A graph whose shapes are known.
        channel: The channel axis of the input.
    """
    axes = {graph.source: channel}
    for k in range(len(graph.ops)):
        shape = graph.shape((k, 0)) if k in graph.live and graph.kinds[k] != "Result" else None
        if shape is None or graph.kinds[k] == "Parameter":
            continue
        axis = _output_axis(graph, k, axes, len(shape))
        if axis is not None and 1 <= axis < len(shape):
            axes.update({(k, port): axis for port in range(graph.ops[k].get_output_size())})
    for k in range(len(graph.ops) - 1, -1, -1):  # an axis that the producer does not show may follow from a reader
        for tensor in graph.inputs[k][:1] if graph.kinds[k] not in TWO_OPERANDS else graph.inputs[k]:
            shape = graph.shape(tensor)
            if tensor not in axes and tensor[0] in graph.live and shape is not None and len(shape) > 2:
                axis = _input_axis(graph, k, axes, len(shape))
                if axis is not None and 1 <= axis < len(shape):
                    axes[tensor] = axis
    return axes


def _output_axis(graph: Graph, position: int, axes: Mapping[Tensor, int], rank: int) -> int | None:
    """Return the channel axis of the result of an operator."""
    kind, inputs = graph.kinds[position], graph.inputs[position]
    if kind in CHANNELS_FIRST or rank == 2:
        return 1
    if kind == "MatMul":
        return (
            rank - 1 if len([t for t in inputs if t[0] in graph.live]) == 1 and inputs[0][0] in graph.live else None
        )
    if kind in ("MVN", "RMS"):
        normed = graph.constant(inputs[1]) if kind == "MVN" else np.array([-1])
        if normed is not None and [int(n) % rank for n in normed.ravel()] == [rank - 1]:
            return rank - 1
    known = [t for t in inputs if t in axes]
    if not known:
        return None
    axis, shape = axes[known[0]], graph.shape(known[0]) or ()
    if kind == "Transpose":
        order = _values(graph, inputs[1], rank)
        return order.index(axis) if axis in order else None
    if kind == "Reshape":
        return _reshaped(shape, graph.shape((position, 0)) or (), axis)
    if kind == "Squeeze" or (kind.startswith("Reduce") and rank < len(shape)):
        removed = _values(graph, inputs[1], len(shape)) if len(inputs) > 1 else []
        removed = removed or [k for k, n in enumerate(shape) if n == 1]
        return None if axis in removed else axis - sum(k < axis for k in removed)
    if kind == "Unsqueeze":
        inserted = _values(graph, inputs[1], rank)
        left = [k for k in range(rank) if k not in inserted]
        return left[axis] if axis < len(left) else None
    if kind == "Gather" and rank == len(shape) - 1:
        (removed_axis,) = _values(graph, inputs[2], len(shape)) or [0]
        return None if removed_axis == axis else axis - (removed_axis < axis)
    same = [t for t in known if len(graph.shape(t) or ()) == rank]
    return axes[same[0]] if same else None


def _input_axis(graph: Graph, position: int, axes: Mapping[Tensor, int], rank: int) -> int | None:
    """Return the channel axis that an operator expects of its input."""
    kind, result = graph.kinds[position], (position, 0)
    if kind in CHANNELS_FIRST:
        return 1
    shape = graph.shape(result) if graph.ops[position].get_output_size() else None
    if result not in axes or shape is None or len(shape) != rank or kind in ("Reshape", "MatMul", "Einsum"):
        return None
    if kind == "Transpose":
        order = _values(graph, graph.inputs[position][1], rank)
        return order[axes[result]] if order else None
    return axes[result]


def _values(graph: Graph, tensor: Tensor, rank: int) -> list[int]:
    """Return the axes that a constant lists; [] where it is computed."""
    value = graph.constant(tensor)
    return [] if value is None else [int(n) % rank for n in value.ravel()]


def _reshaped(old: Sizes, new: Sizes, axis: int) -> int | None:
    """Return the axis of `new` that contains the same values in the same order, or None."""
    before, after = [n or 0 for n in old], [n or 0 for n in new]
    offset = math.prod(before[:axis])
    matches = (k for k, n in enumerate(after) if n == before[axis] and math.prod(after[:k]) == offset)
    return next(matches, None)


def input_channel_axis(graph: Graph) -> int | None:
    """Return which axis of the input is the channel axis of the first operator with one; None where that is not known."""
    tensor = graph.source
    axes = list(range(len(graph.shape(tensor) or ())))
    for k in range(len(graph.ops)):
        if tensor not in graph.inputs[k] or graph.kinds[k] in ("ShapeOf", "Result"):
            continue
        if graph.kinds[k] in CHANNELS_FIRST:
            return axes[1] if len(axes) > 2 else None
        if graph.kinds[k] == "Transpose":
            order = graph.constant(graph.inputs[k][1])
            if order is None:
                return None
            axes = [axes[int(i)] for i in order.ravel()]
        elif graph.kinds[k] not in ELEMENTWISE and graph.kinds[k] not in ("Pad", "Interpolate", "Gather", "Reverse"):
            return None
        tensor = (k, 0)
        if len(graph.shape(tensor) or ()) != len(axes):
            return None
    return None


def read_by(graph: Graph, sized: Graph, output: Tensor, rows: int) -> dict[Tensor, float]:
    """Return the tensors on whose values an output depends, each with the share of its tokens that the output depends on.

    Behind the last attention of a vision transformer only the class token is read: a map of the others would be blank.
    Of a tensor without tokens the share is 1.

    Args:
        graph: The graph.
        sized: The same graph with all shapes.
        output: The output's tensor.
        rows: The batch size of `sized`.
    """
    shares = {output: 1.0}
    for k in range(len(graph.ops) - 1, -1, -1):
        results = [(k, port) for port in range(graph.ops[k].get_output_size()) if (k, port) in shares]
        if not results or k not in graph.dependent or not graph.reads(k):
            continue
        picked = _picked(graph, sized, k, results, shares, rows)
        share = max(shares[t] for t in results) if _treats_tokens_alike(graph, sized, k) else 1.0
        for index, tensor in enumerate(graph.reads(k)):
            before = shares.get(tensor, 0.0)
            shares[tensor] = max(before, share) if picked is None or index else min(1.0, before + picked)
    return shares


def _picked(
    graph: Graph, sized: Graph, position: int, results: Sequence[Tensor], shares: Mapping[Tensor, float], rows: int
) -> float | None:
    """Return the share of its first input's tokens that an operator passes on; None: it takes no part of them.

    Tokens are on the axis of a [N, T, C] or [T, N, C] that is not the batch.
    """
    if graph.kinds[position] not in PICKING:
        return None
    shape = sized.shape(graph.inputs[position][0])
    if shape is None or len(shape) != 3 or None in shape:
        return None
    axis = 1 if shape[0] == rows else 0
    tokens = shape[axis] or 0
    if tokens < 3:
        return None
    others = [n or 0 for k, n in enumerate(shape) if k != axis]
    total = 0.0
    for tensor in results:
        size: Sizes = sized.shape(tensor) or ()
        if None in size:
            return None
        count = math.prod(n or 0 for n in size) / math.prod(others)
        left = [n for n in size if n != 1]
        if count >= tokens or count != int(count) or left[-1:] != [n for n in others if n != 1][-1:]:
            return None
        total += shares[tensor] * count
    return total / tokens


def _treats_tokens_alike(graph: Graph, sized: Graph, position: int) -> bool:
    kind = graph.kinds[position]
    live = [t for t in graph.inputs[position] if t[0] in graph.live]
    if kind == "MatMul":
        return len(live) == 1
    result = sized.shape((position, 0))
    return kind in TOKEN_WISE or (
        kind in ELEMENTWISE and result is not None and all(len(sized.shape(t) or ()) <= len(result) for t in live)
    )
