"""Layers computed from given values at the layers ahead of them: see xcam.contract.abilities.RunsStretches.

In a copy of the standard form every reader of a given layer reads a new input instead. So one run computes each layer from
the given values, without the errors of earlier layers.

The noise that a precision must add is measured in the same run, by two more copies of the nodes: `clean`, in which values
within a stretch are clipped and not rounded; and `noisy`, in which weights and these values get uniform noise, as large as
rounding to a range that fits would make it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from xcam.contract import Array, Layer
from xcam.contract.layouts import from_trace, joined, to_trace
from xcam.contract.quantization import Quantization, QuantizedWeights, Stretch
from xcam_onnx.graph import INTEGERS, Graph, attribute, part, reading, reads, type_name
from xcam_onnx.recording import Recording
from xcam_onnx.sessions import array
from xcam_onnx.standard.form import DEQUANTIZE, QUANTIZE
from xcam_onnx.standard.registry import Writer

QUANTIZING = (QUANTIZE, "DynamicQuantizeLinear")
Kind = Literal["clean", "noisy"]
KINDS: tuple[Kind, ...] = ("clean", "noisy")
PREFIX = "xcam/stretch/"
KERNEL_AXES = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": -1}
"""The axis of the output channels in the second input of an operator."""


def precision(recording: Recording) -> str | None:
    """Return the type of most quantised values; without these that of quantised weights, or float16; None for float32."""
    graph = recording.graph
    values = Counter(entry.dtype for entry in recording.form.quantised.values())
    if not values:
        constants = (node.input[0] for node in graph.nodes if _is_weight(graph, node))
        values = Counter(graph.dtype(name) for name in constants)
    if not values:
        halves = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
        tensors = [t for t in graph.proto.initializer if t.data_type in halves and len(t.dims) > 1]
        values = Counter(tensor.data_type for tensor in tensors)
    return type_name(values.most_common(1)[0][0]) if values else None


def _is_weight(graph: Graph, node: NodeProto) -> bool:
    """Return whether a node turns constant integers into floats."""
    if node.op_type not in (DEQUANTIZE, "Cast") or not node.input or node.input[0] in graph.live:
        return False
    shape = graph.shape(node.input[0])
    return graph.dtype(node.input[0]) in (*INTEGERS, TensorProto.INT32) and bool(shape)


def sources(recording: Recording, targets: Collection[str], known: Collection[str]) -> set[str]:
    """Return the `known` tensors nearest ahead of `targets`."""
    graph, result = recording.graph, set[str]()
    stack = [name for target in targets for name in _inputs(graph, target)]
    seen = set(stack)
    while stack:
        name = stack.pop()
        if name in known:
            result.add(name)
            continue
        for other in _inputs(graph, name):
            if other not in seen:
                seen.add(other)
                stack.append(other)
    return result


def _inputs(graph: Graph, tensor: str) -> list[str]:
    return list(reads(graph.nodes[graph.producer[tensor]])) if tensor in graph.producer else []


def run(
    recording: Recording, x: Array, starts: Mapping[str, tuple[Layer, Array]], targets: Mapping[str, Layer]
) -> dict[str, Stretch]:
    """Compute each target from the given tensors nearest ahead of it.

    Args:
        recording: The model.
        x: A batch.
        starts: Layers and their values [N, C, *spatial], by tensor.
        targets: Layers, by tensor.

    Returns:
        The stretches, by tensor.
    """
    builder = _Builder(recording, list(starts), list(targets))
    session = recording.runtime.session(builder.model(), once=True)
    batches = []
    for rows in recording.slices(len(x)):
        feeds: dict[str, Any] = recording.feed(x[rows])
        for name, (layer, values) in starts.items():
            dtype = recording.dtype(name)
            most = np.finfo(dtype).max if np.dtype(dtype) == np.float16 else np.inf
            feeds[builder.starts[name]] = from_trace(np.clip(values[rows], -most, most), layer).astype(dtype)
        batches.append({name: array(value) for name, value in session(feeds).items()})

    def whole(name: str, layer: Layer) -> Array:
        return joined([to_trace(batch[name], layer) for batch in batches])

    result = {}
    for target, layer in targets.items():
        unrounded, noise = builder.unrounded.get(target), builder.noise.get(target)
        result[target] = Stretch(
            whole(target, layer),
            whole(unrounded, layer) if unrounded else None,
            builder.quantization.get(target),
            tuple(builder.weights_within(target)),
            float(np.mean([batch[noise] for batch in batches])) if noise else None,
        )
    return result


class _Builder:
    """Builds the graph of all stretches.

    Args:
        recording: The model.
        starts: The tensors whose values are given.
        targets: The tensors to compute.
    """

    def __init__(self, recording: Recording, starts: Sequence[str], targets: Sequence[str]) -> None:
        self._recording, self._targets = recording, targets
        self._graph = graph = recording.graph
        self.starts = {name: f"xcam/given/{name}" for name in starts}
        self._w = Writer(graph.opset.get("", 1), PREFIX)
        self._variants: dict[Kind, dict[str, str]] = {"clean": {}, "noisy": {}}
        """Tensor → its counterpart in another copy, where that differs."""
        self._weights: dict[str, QuantizedWeights] = {}
        """The quantised weights, by the tensor of their real numbers."""
        self._readers: dict[str, list[NodeProto]] = {}
        for node in graph.nodes:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._is_per_tensor = self._one_scale()
        """Whether most weights of the model have one scale, so that this is its precision."""
        self.unrounded: dict[str, str] = {}
        """For each target that is quantised, the tensor before that."""
        self.quantization: dict[str, Quantization] = {}
        self.noise: dict[str, str] = {}
        """For each target with noise, the tensor of its mean square."""
        for node in self._needed():
            self._add(node)
        for target in targets:
            self._measure(target)

    def _one_scale(self) -> bool:
        graph = self._graph
        single, several = 0, 0
        for node in graph.nodes:
            if _is_weight(graph, node) and graph.dtype(node.input[0]) in INTEGERS:
                shape = graph.shape(node.input[1]) if node.op_type == DEQUANTIZE else ()
                if len(graph.shape(node.input[0]) or ()) > 1:
                    single, several = single + (shape in ((), (1,))), several + (shape not in ((), (1,)))
        return single > several

    def _needed(self) -> list[NodeProto]:
        """Return the nodes between the given tensors and the targets, in order."""
        needed, nodes = set(self._targets), []
        for node in reversed(self._graph.nodes):
            if any(name in needed for name in node.output):
                nodes.append(node)
                needed.update(name for name in reads(node) if name not in self.starts)
        return nodes[::-1]

    def model(self) -> ModelProto:
        """Return the graph as a model: its outputs are the targets, and the tensors of `unrounded` and `noise`."""
        graph = self._graph
        whole = ModelProto()
        whole.CopyFrom(graph.model)
        del whole.graph.node[:]
        whole.graph.node.extend(self._w.nodes)
        whole.graph.initializer.extend(self._w.constants)
        for name, copy in self.starts.items():
            value = graph.info(name)
            value.name = copy
            whole.graph.input.append(value)
        known = Graph(whole)
        for name in (*self._targets, *self.unrounded.values()):
            shape = graph.shape(name)
            if graph.dtype(name) and shape is not None:
                known.set_type(name, graph.dtype(name), shape)
        outputs = dict.fromkeys([*self._targets, *self.unrounded.values(), *self.noise.values()])
        source = self._recording.signature.source
        model, _ = part(known, [source, *self.starts.values()], list(outputs))
        return model

    def _base(self, name: str) -> str:
        return self.starts.get(name, name)

    def _of(self, kind: Kind, name: str) -> str:
        return self._base(name) if name in self.starts else self._variants[kind].get(name, name)

    def _add(self, node: NodeProto) -> None:
        """Write a node as it is, on given values, and its copies where they differ."""
        self._w.nodes.append(_with(node, [self._base(name) for name in node.input], node.output))
        if _is_weight(self._graph, node):
            self._add_weights(node)
        elif node.op_type in QUANTIZING:
            return
        elif (ahead := self._quantizer(node)) is not None:
            self._add_values(node, ahead)
        else:
            for kind in KINDS:
                names = [self._of(kind, name) for name in node.input]
                if names != [self._base(name) for name in node.input]:
                    outputs = [f"{PREFIX}{kind}/{name}" if name else "" for name in node.output]
                    self._w.nodes.append(_with(node, names, outputs))
                    self._variants[kind] |= dict(zip(node.output, outputs, strict=True))

    def _quantizer(self, node: NodeProto) -> NodeProto | None:
        """Return the QuantizeLinear of the integers that a node turns into floats."""
        if node.op_type not in (DEQUANTIZE, "Cast") or node.input[0] not in self._graph.producer:
            return None
        ahead = self._graph.nodes[self._graph.producer[node.input[0]]]
        return ahead if ahead.op_type in QUANTIZING and node.input[0] == ahead.output[0] else None

    def _add_weights(self, node: NodeProto) -> None:
        """Add noise to weights, as rounding with a scale of each channel makes it."""
        name = node.output[0]
        values = self._constant(node.input[0])
        if values is None or values.ndim == 0:
            return
        scale: Array = np.ones((), np.float32)
        zero: Array = np.zeros((), np.float32)
        if node.op_type == DEQUANTIZE:
            stated = [self._constant(source) if source else None for source in (*node.input, "")[1:3]]
            if stated[0] is None:
                return
            scale, zero = stated[0].astype(np.float32), zero if stated[1] is None else stated[1].astype(np.float32)
        dtype = self._graph.dtype(node.input[0])
        axis, is_bias = self._channel_axis(name, values.ndim)
        block = int(attribute(node, "block_size", 0))
        along = int(attribute(node, "axis", 1))
        full = [_expanded(each, values.shape, along, block) for each in (scale, zero)]
        real = np.abs((values.astype(np.float32) - full[1]) * full[0])
        largest = np.moveaxis(real, axis, 0).reshape(real.shape[axis], -1).max(1)
        is_bias = is_bias or dtype == TensorProto.INT32
        self._weights[name] = QuantizedWeights(
            node.input[0], type_name(dtype), scale.reshape(-1)[0] if scale.size == 1 else scale, largest, is_bias
        )
        if is_bias or dtype not in INTEGERS:
            return
        if scale.size not in (1, len(largest)):  # blocks
            steps = full[0]
        elif self._is_per_tensor:
            steps = largest.max() * 2 / (INTEGERS[dtype][1] - INTEGERS[dtype][0])
        else:
            steps = largest * 2 / (INTEGERS[dtype][1] - INTEGERS[dtype][0])
            steps = steps.reshape([-1 if k == axis else 1 for k in range(values.ndim)])
        self._variants["noisy"][name] = self._with_noise(name, self._w.constant(np.asarray(steps, np.float32)))

    def _with_noise(self, value: str, step: str) -> str:
        w = self._w
        noise = w.RandomUniformLike(value, low=-0.5, high=0.5, seed=float(len(w.nodes)), dtype=TensorProto.FLOAT)
        return w.CastLike(w.Add(w.Cast(value, to=TensorProto.FLOAT), w.Mul(noise, step)), value)

    def _channel_axis(self, name: str, rank: int) -> tuple[int, bool]:
        """Return the axis of the output channels of weights, and whether they are a bias."""
        for node in self._readers.get(name, []):
            if node.op_type in ("Transpose", "Sub") and node.input[0] == name:
                axis, is_bias = self._channel_axis(node.output[0], rank)
                return (attribute(node, "perm")[axis] if node.op_type == "Transpose" else axis), is_bias
            if node.op_type in KERNEL_AXES and name in node.input:
                index = list(node.input).index(name)
                if index == 2:
                    return 0, True
                axis = KERNEL_AXES[node.op_type]
                if node.op_type == "Gemm" and attribute(node, "transB", 0):
                    axis = 0
                return axis % rank, False
        return 0, rank == 1

    def _add_values(self, node: NodeProto, ahead: NodeProto) -> None:
        """Write values within a stretch, which are quantised, without rounding; and with noise instead."""
        dtype = self._graph.dtype(node.input[0])
        if dtype not in INTEGERS or node.op_type == "Cast" or attribute(ahead, "block_size", 0):
            return self._add_integers(node, ahead, dtype) if node.op_type == "Cast" and dtype in INTEGERS else None
        for kind in KINDS:
            value = self._clipped(self._of(kind, ahead.input[0]), node, dtype)
            if kind == "noisy":
                value = self._with_noise(value, self._honest(value, dtype))
            self._variants[kind][node.output[0]] = value
        return None

    def _add_integers(self, node: NodeProto, ahead: NodeProto, dtype: int) -> None:
        """The same for integers that are used as numbers: value / scale + zero point."""
        w = self._w
        source, scale, zero = (
            (*ahead.input, "")[:3] if ahead.op_type == QUANTIZE else (ahead.input[0], *ahead.output[1:3])
        )
        for kind in KINDS:
            value = w.Div(self._of(kind, source), scale)
            if zero:
                value = w.Add(value, w.Cast(zero, to=TensorProto.FLOAT))
            low, high = (np.float32(bound) for bound in INTEGERS[dtype])
            value = w.Min(w.Max(value, low), high)
            self._variants[kind][node.output[0]] = (
                value if kind == "clean" else self._with_noise(value, w.constant(np.float32(1)))
            )

    def _clipped(self, value: str, node: NodeProto, dtype: int) -> str:
        """Clip to the range of a DequantizeLinear with one scale."""
        w = self._w
        if math.prod(n if isinstance(n, int) else 0 for n in self._graph.shape(node.input[1]) or ()) != 1:
            return value
        numpy_type = helper.tensor_dtype_to_np_dtype(dtype)
        ends = []
        for bound in INTEGERS[dtype]:
            names = [w.constant(np.asarray(bound, numpy_type)), *(self._base(name) for name in list(node.input)[1:])]
            ends.append(w.Squeeze(w("DequantizeLinear", *names, domain=node.domain)[0]))
        return w.Min(w.Max(value, ends[0]), ends[1])

    def _honest(self, value: str, dtype: int) -> str:
        """Return the step of a range that just contains zero and the values."""
        w = self._w
        zero = np.float32(0)
        span = w.Sub(w.Max(w.ReduceMax(value, keepdims=0), zero), w.Min(w.ReduceMin(value, keepdims=0), zero))
        return w.Div(span, np.float32(INTEGERS[dtype][1] - INTEGERS[dtype][0]))

    def _measure(self, target: str) -> None:
        """Find the quantisation of a target, and write the noise before it."""
        graph, w = self._graph, self._w
        node = graph.nodes[graph.producer[target]] if target in graph.producer else None
        before = target
        ahead = None if node is None or node.op_type != DEQUANTIZE else self._quantizer(node)
        if node is not None and ahead is not None and ahead.op_type == QUANTIZE:
            before = ahead.input[0]
            scale = self._constant(ahead.input[1])
            zero = (
                self._constant(ahead.input[2]) if len(ahead.input) > 2 and ahead.input[2] else np.zeros((), np.int32)
            )
            dtype = graph.dtype(node.input[0])
            if scale is not None and zero is not None and dtype in INTEGERS:
                self.unrounded[target] = before
                self.quantization[target] = Quantization(
                    type_name(dtype), _single(scale.astype(np.float64)), _single(zero.astype(np.int64))
                )
        clean, noisy = (self._variants[kind].get(before, before) for kind in KINDS)
        if noisy != clean:
            error = w.Cast(w.Sub(noisy, clean), to=TensorProto.FLOAT)
            self.noise[target] = w.ReduceMean(w.Mul(error, error), keepdims=0)

    def weights_within(self, target: str) -> Iterator[QuantizedWeights]:
        """Yield the quantised weights between the given tensors and a target."""
        graph = self._graph
        stack, seen = [target], set[str]()
        while stack:
            for name in _inputs(graph, stack.pop()):
                if name in seen or name in self.starts:
                    continue
                seen.add(name)
                if name in self._weights:
                    yield self._weights[name]
                else:
                    stack.append(name)

    def _constant(self, name: str) -> Array | None:
        tensor = self._graph.initializers.get(name)
        if tensor is not None and tensor.data_location == TensorProto.EXTERNAL:
            return self._recording.runtime.weights.array(tensor)
        value = self._graph.constant(name)
        if value is None and name in self._graph.producer and name not in self._graph.live:
            # Computed from constants, as the scale of a bias is.
            model, _ = part(self._graph, [], [name])
            value = self._recording.runtime.session(model, once=True)({})[name].numpy()
        return value


def _single(values: Array) -> Array:
    return values.reshape(()) if values.size == 1 else values.reshape(-1)


def _expanded(values: Array, shape: tuple[int, ...], axis: int, block: int) -> Array:
    """Return scales or zero points in a shape that broadcasts with the weights."""
    if values.size == 1:
        return values.reshape(())
    axis = axis % len(shape)
    if block:
        return np.repeat(values, block, axis)[tuple(slice(n) for n in shape)]
    if values.ndim == 1:
        return values.reshape(
            [-1 if k == (axis if shape[axis] == values.size else 0) else 1 for k in range(len(shape))]
        )
    return values


def _with(node: NodeProto, inputs: Sequence[str], outputs: Sequence[str]) -> NodeProto:
    """Return a copy of a node with other inputs and outputs."""
    result = reading(node, inputs)
    del result.output[:]
    result.output.extend(outputs)
    result.name = ""
    return result
