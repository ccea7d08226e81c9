"""Files that ONNX Runtime's optimiser saved in the memory layout of one machine: their graph in plain layout.

The runtime keeps channels in blocks, 16 with AVX-512 or NEON, else 8: [batch, channels/block, height, width, block], and
pads them to whole blocks. The file holds kernels in that layout, and states the shapes without the block axis. Its first
convolution reads plain values if these have fewer channels than a block.

Source: ONNX Runtime, core/optimizer/nchwc_transformer.cc and core/mlas/lib/reorder.cpp.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from xcam.contract import Array
from xcam.errors import ModelError
from xcam_onnx.graph import Graph, attribute, copied, inferred
from xcam_onnx.standard.registry import MICROSOFT, Original, Writer
from xcam_onnx.weights import WeightFiles

DOMAIN = "com.microsoft.nchwc"
PREFIX = "xcam/nchw/"
"""Begins the names of the plain tensors that the original lacks."""
REORDER_IN, REORDER_OUT = "ReorderInput", "ReorderOutput"
POOLS = {"MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "Upsample"}
ELEMENTWISE = {
    *("Add", "Sum", "Mul", "Sub", "Div", "Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip", "HardSigmoid", "HardSwish"),
    *("Elu", "Gelu", "QuickGelu", "FastGelu", "Softplus", "Mish", "Swish", "Erf", "Exp", "Neg", "Identity"),
}
"""Operators that the optimiser lets read blocked values."""
REMEDY = "save it again with graph_optimization_level = ORT_ENABLE_EXTENDED, or use the original file"


@dataclass
class Plain:
    """A model in plain layout."""

    model: ModelProto
    tensors: dict[str, str]
    """Blocked tensor → the plain tensor with its value."""
    nodes: list[NodeProto]
    """Nodes that compute those plain tensors that the original lacks, from its blocked ones."""


def plain(model: ModelProto, weights: WeightFiles | None) -> Plain | None:
    """Return a model in plain layout; None where it is. Fused convolutions become FusedConv.

    Raises:
        ModelError: The file was optimised for another machine, or has an operator that is not known in this layout.
    """
    if not any(node.domain == DOMAIN for node in model.graph.node):
        return None
    return _Unblocker(Graph(_with_shapes(model)), weights).result()


@functools.cache
def block_size() -> int:
    """Return the number of channels in a block on this machine."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 1, 1])
    node = helper.make_node(REORDER_IN, ["x"], ["y"], domain=DOMAIN)
    graph = helper.make_graph([node], "probe", [value], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    opsets = [helper.make_opsetid("", 11), helper.make_opsetid(DOMAIN, 1)]
    probe = helper.make_model(graph, opset_imports=opsets, ir_version=6)
    session = ort.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    (blocked,) = session.run(None, {"x": np.zeros((1, 4, 1, 1), np.float32)})
    return int(blocked.shape[1])


def _with_shapes(model: ModelProto) -> ModelProto:
    """Return the model with the shapes behind its reordered tensors, of which the nodes state the channels."""
    result = copied(model)
    for node in model.graph.node:
        if _is(node, REORDER_OUT):
            shape: list[int | None] = [None, None, None, None]
            shape[3 if attribute(node, "channels_last", 0) else 1] = attribute(node, "channels", 0)
            result.graph.value_info.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, shape))
    return inferred(result)


def is_name(tensor: str) -> bool:
    """Return whether the optimiser named a tensor, for lack of its own name, as one in blocks."""
    return tensor.startswith(("reorder", "bn_scale", "bn_B"))


def _is(node: NodeProto, op: str) -> bool:
    return node.domain == DOMAIN and node.op_type == op


class _Unblocker:
    """Rewrites the nodes of a model.

    Blocked tensors that have the same channels, such as the input and the output of a pooling, form a group: how many of
    the padded channels are real is known where one of them is reordered, and else from their kernels.
    """

    def __init__(self, graph: Graph, weights: WeightFiles | None) -> None:
        self._graph, self._weights, self._block = graph, weights, block_size()
        self._same: dict[str, str] = {}
        """Blocked tensors that were reshaped to show the block axis → the tensor without it."""
        self._padded: dict[str, int] = {}
        """The number of channels of each blocked tensor, with padding."""
        self._parents: dict[str, str] = {}
        """Tensor → another of its group."""
        self._exact: dict[str, int] = {}
        """The number of channels of a tensor where it is stated."""
        self._least: dict[str, int] = {}
        """The number of channels of a convolution's output up to the last that is not zero."""
        self._names: dict[str, str] = {}
        """Blocked tensor → plain tensor of the original."""
        self._channels: dict[str, int] = {}
        """The number of channels of each blocked tensor, without padding."""
        self._constants: list[TensorProto] = []

    def result(self) -> Plain:
        """Return the model in plain layout."""
        for node in self._graph.nodes:
            self._read(node)
        sizes: dict[str, int] = {}
        for name, count in self._least.items():
            sizes[self._root(name)] = max(count, sizes.get(self._root(name), 0))
        sizes |= {self._root(name): count for name, count in self._exact.items()}
        self._channels = {name: sizes.get(self._root(name), count) for name, count in self._padded.items()}
        nodes = [copy for node in self._graph.nodes for copy in self._written(node)]
        model = copied(self._graph.model)
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(self._constants)
        tensors = {name: self._plain(name) for name in [*self._padded, *self._same]}
        recovered = [
            helper.make_node(
                REORDER_OUT,
                [name],
                [self._plain(name)],
                self._plain(name),
                domain=DOMAIN,
                channels=self._channels[name],
            )
            for name in self._padded
            if self._plain(name).startswith(PREFIX)
        ]
        return Plain(model, tensors, recovered)

    # first pass: which tensors are blocked, and their channels

    def _read(self, node: NodeProto) -> None:
        sources = [self._same.get(name, name) for name in node.input]
        blocked = [name for name in sources if name in self._padded]
        out = node.output[0]
        if _is(node, REORDER_IN):
            shape = self._graph.shape(node.input[0])
            count = shape[-1 if attribute(node, "channels_last", 0) else 1] if shape else None
            if not attribute(node, "channels_last", 0):
                self._names[out] = node.input[0]
            if isinstance(count, int):
                self._padded[out], self._exact[out] = self._whole(count), count
            else:
                self._padded[out] = self._padding_read(node)
        elif _is(node, REORDER_OUT):
            count = attribute(node, "channels", 0)
            if not blocked or self._whole(count) != self._padded[blocked[0]]:
                raise self._foreign(node)
            self._exact[blocked[0]] = count
            if not attribute(node, "channels_last", 0):
                self._names.setdefault(blocked[0], out)
        elif _is(node, "Conv"):
            self._read_convolution(node, bool(blocked) and blocked[0] == sources[0])
        elif not blocked:
            if node.domain == DOMAIN:
                raise self._refusal(node, "its input is not in that layout")
        elif node.op_type == "Reshape":
            self._same[out] = blocked[0]
        elif node.op_type == "Concat" and attribute(node, "axis") == 1 and len(blocked) == len(sources):
            self._exact |= {name: self._padded[name] for name in blocked}  # only whole blocks are concatenated
            self._padded[out] = self._exact[out] = sum(self._padded[name] for name in blocked)
        elif (node.domain == DOMAIN and node.op_type in POOLS) or (
            node.domain in ("", MICROSOFT) and node.op_type in ELEMENTWISE
        ):
            if any(name in self._same for name in node.input):  # the block axis is removed behind it
                reader = next(n for n in self._graph.nodes if out in n.input)
                self._same[out], out = reader.output[0], reader.output[0]
            self._padded[out] = self._padded[blocked[0]]
            self._join(out, *blocked)
        else:
            raise self._refusal(node, "it is not known in that layout")

    def _padding_read(self, node: NodeProto) -> int:
        """Return the number of channels, with padding, that a convolution reads from a reordered tensor."""
        for reader in self._graph.nodes:
            if _is(reader, "Conv") and reader.input[0] == node.output[0]:
                shape = self._graph.shape(reader.input[1]) or ()
                if len(shape) == 4 and isinstance(shape[1], int):
                    return shape[1] * int(attribute(reader, "group", 1))
        raise self._refusal(node, "the number of its channels is not known")

    def _read_convolution(self, node: NodeProto, is_blocked: bool) -> None:
        original, out = Original(node, self._graph, self._weights), node.output[0]
        kernel, bias = original.constant(node.input[1]), original.constant(original.input(2))
        if kernel is None or kernel.ndim != 4 or kernel.dtype != np.float32:
            raise self._refusal(node, "its kernel is not a constant of four axes in float32")
        count, depth, *size = kernel.shape
        group, block = original.attr("group", 1), self._block
        is_depthwise = group == count > 1 and depth == 1
        source = self._padded.get(self._same.get(node.input[0], node.input[0]), 0)
        fits = (
            (source == count if is_depthwise else source == depth * group and depth % block == 0)
            if is_blocked
            else group == 1 and depth < block
        )
        if count % block or not fits:
            raise self._foreign(node)
        whole = is_blocked and not is_depthwise  # its inputs are in blocks too
        split = kernel.reshape(count // block, -1, *size, *([block, block] if whole else [block]))
        self._padded[out] = count
        if is_blocked and group == 1:  # the optimiser reorders whole fours of channels
            read = np.flatnonzero(split.any((0, 2, 3, 5)))
            name = self._same.get(node.input[0], node.input[0])
            self._least[name] = max(self._least.get(name, 0), -(-(int(read[-1]) + 1) // 4) * 4 if read.size else 4)
        if is_depthwise:
            self._join(out, self._same.get(node.input[0], node.input[0]))
        used = split.any((1, 2, 3, 4) if whole else (1, 2, 3)).ravel() | (bias != 0 if bias is not None else False)
        self._least[out] = int(np.flatnonzero(used)[-1]) + 1 if used.any() else 1
        if group > 1 and not is_depthwise:
            self._exact[out] = count
        if original.input(3):
            self._join(out, self._same.get(original.input(3), original.input(3)))

    def _whole(self, count: int) -> int:
        """Return a number of channels with padding."""
        return -(-count // self._block) * self._block

    def _join(self, *names: str) -> None:
        for name in names[1:]:
            first, second = self._root(names[0]), self._root(name)
            if first != second:
                self._parents[second] = first

    def _root(self, name: str) -> str:
        while name in self._parents:
            name = self._parents[name]
        return name

    def _foreign(self, node: NodeProto) -> ModelError:
        return self._refusal(
            node, f"the sizes do not fit the blocks of this machine, which have {self._block} channels"
        )

    def _refusal(self, node: NodeProto, reason: str) -> ModelError:
        return ModelError(
            f"cannot read the node {node.name or node.output[0]!r} ({node.op_type}): the file was optimised for the memory "
            f"layout of one machine, and {reason}; {REMEDY}"
        )

    # second pass: the nodes in plain layout

    def _plain(self, name: str) -> str:
        """Return the plain tensor of a blocked one, and any other as it is."""
        name = self._same.get(name, name)
        return self._names.get(name, f"{PREFIX}{name}") if name in self._padded else name

    def _written(self, node: NodeProto) -> list[NodeProto]:
        sources, outs = [self._plain(name) for name in node.input], [self._plain(name) for name in node.output]
        if not any(name in self._padded or name in self._same for name in (*node.input, *node.output)):
            return [node]
        if node.op_type == "Reshape":
            return []
        last = attribute(node, "channels_last", 0)
        if _is(node, REORDER_IN) or _is(node, REORDER_OUT):
            if last:
                order = [0, 3, 1, 2] if _is(node, REORDER_IN) else [0, 2, 3, 1]
                return [helper.make_node("Transpose", sources, outs, node.name, perm=order)]
            return [] if sources == outs else [helper.make_node("Identity", sources, outs, node.name)]
        copy = NodeProto()
        copy.CopyFrom(node)
        del copy.input[:], copy.output[:]
        copy.input.extend(sources)
        copy.output.extend(outs)
        if _is(node, "Conv"):
            return self._convolution(node, copy)
        if _is(node, "Upsample"):
            scales = np.asarray(attribute(node, "scales"), np.float32)
            names = [
                sources[0],
                self._constant(node, "region", np.zeros(0, np.float32)),
                self._constant(node, "scales", scales),
            ]
            mode = attribute(node, "mode", "nearest")
            position = attribute(node, "coordinate_transformation_mode", "asymmetric")
            rounding = {"nearest_mode": "floor"} if mode == "nearest" else {}
            return [
                helper.make_node(
                    "Resize", names, outs, node.name, mode=mode, coordinate_transformation_mode=position, **rounding
                )
            ]
        if node.domain == DOMAIN:
            copy.domain = ""
            kept = [entry for entry in node.attribute if entry.name != "dilations" or any(n > 1 for n in entry.ints)]
            del copy.attribute[:]
            copy.attribute.extend(kept)
        return [copy]

    def _convolution(self, node: NodeProto, copy: NodeProto) -> list[NodeProto]:
        """Return a convolution with its kernel in plain layout, without the padded channels; the runtime folds the nodes."""
        name, block = node.output[0], self._block
        shape = [n for n in self._graph.shape(node.input[1]) or () if isinstance(n, int)]
        padded, padded_depth, *size = shape
        source = self._same.get(node.input[0], node.input[0])
        count, depth, group = self._channels[name], padded_depth, attribute(node, "group", 1)
        is_depthwise = group == padded > 1 and depth == 1
        if group == 1:
            depth = self._channels.get(source, depth)
        elif is_depthwise:
            group = count
        w = Writer(self._graph.opset.get("", 1), f"{PREFIX}{name}/")
        if source in self._padded and not is_depthwise:
            split = w.Reshape(node.input[1], [padded // block, padded_depth // block, *size, block, block])
            ordered = w.Transpose(split, perm=[0, 5, 1, 4, 2, 3])
        else:
            split = w.Reshape(node.input[1], [padded // block, padded_depth, *size, block])
            ordered = w.Transpose(split, perm=[0, 4, 1, 2, 3])
        kernel = w.Reshape(ordered, shape)
        copy.op_type, copy.domain = "FusedConv", MICROSOFT
        copy.input[1] = w.Slice(kernel, [0, 0], [count, depth], [0, 1]) if [count, depth] != shape[:2] else kernel
        if count != padded and len(node.input) > 2 and node.input[2]:
            copy.input[2] = w.Slice(node.input[2], [0], [count], [0])
        for entry in copy.attribute:
            if entry.name == "group":
                entry.i = group
        self._constants += w.constants
        return [*w.nodes, copy]

    def _constant(self, node: NodeProto, kind: str, value: Array) -> str:
        name = f"{PREFIX}{node.output[0]}/{kind}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name
