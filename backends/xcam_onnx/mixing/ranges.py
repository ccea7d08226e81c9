"""New ranges of quantised values, in the file: where a value is quantised, where it is read, and the biases that follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from xcam.contract import Array
from xcam.contract.quantization import Range
from xcam.errors import ModelError
from xcam_onnx.graph import INTEGERS, Graph, attribute, copied, reading
from xcam_onnx.mixing.parts import Parts
from xcam_onnx.standard.form import DEQUANTIZE, MOVING, QUANTIZE, Quantised
from xcam_onnx.weights import WeightFiles

RESULTS = {
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QLinearAdd", "QLinearMul"), 6),
    **dict.fromkeys(("QGemm", "QLinearWhere"), 7),
    **dict.fromkeys(
        ("QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax"), 3
    ),
    "QLinearConcat": 0,
    QUANTIZE: 1,
}
"""The input that holds the scale of an operator's result; the zero point follows it."""
READERS = {*RESULTS, DEQUANTIZE} - {QUANTIZE}
"""Operators that have scale and zero point behind each quantised input."""
BIASES = {"QLinearConv": (8, 1, 4), "QGemm": (6, 1, 4)}
"""The inputs with the bias, and with the scales whose product is its scale."""
SYMMETRIC = 0.9
"""Values are quantised around zero where this share of the zero points is zero."""


def with_ranges(
    parts: Parts, ranges: Mapping[str, Range], weights: tuple[WeightFiles, WeightFiles]
) -> tuple[ModelProto, dict[str, Quantised]]:
    """Return the quantised file with new ranges of some values, and how these are represented now.

    Args:
        parts: The common values.
        ranges: By the tensor of the float file.
        weights: The files with the weights of the float file, and of the quantised one.

    Raises:
        ModelError: A value has a range for each channel, or an unknown operator reads it.
    """
    writer = _Ranges(parts, weights)
    for target, range_ in ranges.items():
        writer.change(target, range_)
    writer.model.graph.initializer.extend(writer.constants)
    return writer.model, writer.entries


class _Ranges:
    def __init__(self, parts: Parts, weights: tuple[WeightFiles, WeightFiles]) -> None:
        self.parts, self.weights = parts, weights
        self.model = copied(parts.reduced.model)
        self.entries: dict[str, Quantised] = {}
        self.constants: list[TensorProto] = []
        self._graph = parts.reduced
        self._readers: dict[str, list[tuple[int, int]]] = {}
        for k, node in enumerate(self._graph.nodes):
            for index, name in enumerate(node.input):
                self._readers.setdefault(name, []).append((k, index))

    def change(self, target: str, range_: Range) -> None:
        entry = self.parts.entry(target)
        if entry is None or entry.axis is not None or entry.dtype not in INTEGERS:
            raise ModelError(
                f"cannot mend the range of {target!r}: it has no single scale; put its nodes back into float"
            )
        scale, zero = self._parameters(entry, range_)
        dtype = self._graph.dtype(entry.scale) or TensorProto.FLOAT
        names = (
            self._constant(scale.astype(helper.tensor_dtype_to_np_dtype(dtype)), f"{entry.integers}/scale"),
            self._constant(zero.astype(helper.tensor_dtype_to_np_dtype(entry.dtype)), f"{entry.integers}/zero_point"),
        )
        producer = self._graph.nodes[self._graph.producer[entry.integers]]
        if producer.op_type not in RESULTS:
            raise ModelError(
                f"cannot mend the range of {target!r}: {producer.op_type} gives it the scale of its input; mend the range ahead"
            )
        self._set(self._graph.producer[entry.integers], RESULTS[producer.op_type], names)
        followers = list(self._followers(entry.integers))
        for name in followers:
            old = next((p.entry for p in self.parts.partners.values() if p.entry and p.entry.integers == name), entry)
            self.entries[name] = replace(old, integers=name, scale=names[0], zero_point=names[1])
        for name in followers:
            for k, index in self._readers.get(name, []):
                node = self._graph.nodes[k]
                if node.op_type in READERS:
                    self._set(k, index + 1, names)
                    self._follow(k, index)
                elif not _moves(node):
                    raise ModelError(
                        f"cannot mend the range of {target!r}: {node.op_type} reads it; put its nodes back into float"
                    )

    def _followers(self, integers: str) -> Iterator[str]:
        """Yield integers, and those that operators moved from them."""
        yield integers
        for k, index in self._readers.get(integers, []):
            node = self._graph.nodes[k]
            if _moves(node) and index == 0:
                for name in node.output:
                    if name:
                        yield from self._followers(name)

    def _parameters(self, entry: Quantised, range_: Range) -> tuple[Array, Array]:
        lowest, highest = INTEGERS[entry.dtype]
        low, high = min(range_[0], 0.0), max(range_[1], 0.0)
        zeros = [
            self._value(e.zero_point)
            for e in self.parts.form.quantised.values()
            if e.zero_point and e.dtype == entry.dtype
        ]
        known = [float(np.ravel(zero)[0]) for zero in zeros if zero is not None]
        if lowest < 0 and (not known or sum(zero == 0 for zero in known) >= SYMMETRIC * len(known)):
            scale = max(-low, high) / highest
            return np.asarray(scale or 1.0), np.zeros(())
        scale = (high - low) / (highest - lowest) or 1.0
        return np.asarray(scale), np.asarray(np.clip(np.round(lowest - low / scale), lowest, highest))

    def _constant(self, value: Array, name: str) -> str:
        taken = {t.name for t in self.constants} | set(self._graph.initializers) | set(self._graph.producer)
        unique, count = f"{name}/mended", 1
        while unique in taken:
            unique, count = f"{name}/mended{count}", count + 1
        self.constants.append(numpy_helper.from_array(np.asarray(value), unique))
        return unique

    def _set(self, k: int, index: int, names: tuple[str, str]) -> None:
        node = self.model.graph.node[k]
        inputs = list(node.input)
        old = inputs[index]
        shape = self._graph.shape(old)
        inputs[index : index + 2] = names if len(inputs) > index + 1 else [names[0], names[1]]
        if shape == (1,):
            inputs[index : index + 2] = [self._reshaped(name) for name in names]
        node.CopyFrom(reading(node, inputs))

    def _reshaped(self, name: str) -> str:
        value = next(numpy_helper.to_array(t) for t in self.constants if t.name == name)
        return name if value.ndim else self._constant(value.reshape(1), name.removesuffix("/mended"))

    # Biases

    def _follow(self, k: int, index: int) -> None:
        """Write the bias of a reader again, whose scale is the product of those of its inputs."""
        node = self.model.graph.node[k]
        if node.op_type in BIASES and index == 0:
            part, first, second = BIASES[node.op_type]
            if len(node.input) > part and node.input[part]:
                old = self._product(self._graph.nodes[k], first, second)
                new = self._product(node, first, second)
                bias = self._bias(k, self._value(node.input[part]), old)
                if bias is not None and new is not None:
                    node.input[part] = self._integers(bias / new, node.input[part])
        elif node.op_type == DEQUANTIZE:
            for reader, at in self._readers.get(node.output[0], []):
                self._follow_dequantised(reader, at, node)

    def _follow_dequantised(self, k: int, index: int, x: NodeProto) -> None:
        node = self._graph.nodes[k]
        if node.op_type not in ("Conv", "Gemm", "ConvTranspose") or index != 0 or len(node.input) < 3:
            return
        sources = [self._graph.producer.get(name) for name in list(node.input)[1:3]]
        if any(s is None or self._graph.nodes[s].op_type != DEQUANTIZE for s in sources):
            return
        kernel, bias = (self.model.graph.node[s] for s in sources if s is not None)
        scales = self._value(x.input[1]), self._value(kernel.input[1])
        old, integers = self._value(bias.input[1]), self._value(bias.input[0])
        if scales[0] is None or scales[1] is None or old is None or integers is None or integers.dtype != np.int32:
            return
        new = np.asarray(scales[0].reshape(()) * scales[1], np.float32)
        real = self._bias(k, integers, old)
        if real is None:
            return
        inputs = list(bias.input)
        inputs[0] = self._integers(real / new, inputs[0])
        inputs[1] = self._constant(new.reshape(old.shape) if new.size == old.size else new, inputs[1])
        bias.CopyFrom(reading(bias, inputs))

    def _integers(self, values: Array, name: str) -> str:
        bounds = np.iinfo(np.int32)
        return self._constant(np.clip(np.round(values), bounds.min, bounds.max).astype(np.int32), name)

    def _product(self, node: NodeProto, first: int, second: int) -> Array | None:
        scales = [self._value(node.input[index]) for index in (first, second)]
        if scales[0] is None or scales[1] is None:
            return None
        return np.asarray(scales[0].reshape(()) * scales[1].reshape(-1), np.float64) * float(
            attribute(node, "alpha", 1.0)
        )

    def _bias(self, k: int, integers: Array | None, scale: Array | None) -> Array | None:
        """Return the bias of a node in the quantised file: that of the float file, or its own integers."""
        for target in self.parts.groups:
            if k in self.parts.replaced[target]:
                graph = self.parts.reference
                layers = [graph.nodes[i] for i in self.parts.groups[target].nodes]
                layers = [n for n in layers if n.op_type in ("Conv", "Gemm", "ConvTranspose") and len(n.input) > 2]
                if len(layers) == 1:
                    bias = _value(graph, self.weights[0], layers[0].input[2])
                    if bias is not None and integers is not None and bias.size == integers.size:
                        return np.asarray(bias.reshape(integers.shape), np.float64)
        return None if integers is None or scale is None else integers.astype(np.float64) * scale

    def _value(self, name: str) -> Array | None:
        mended = next((numpy_helper.to_array(t) for t in self.constants if t.name == name), None)
        return _value(self._graph, self.weights[1], name) if mended is None else mended


def _value(graph: Graph, weights: WeightFiles, name: str) -> Array | None:
    tensor = graph.initializers.get(name)
    if tensor is not None and tensor.data_location == TensorProto.EXTERNAL:
        return np.asarray(weights.array(tensor))
    return graph.constant(name)


def _moves(node: NodeProto) -> bool:
    return node.op_type in MOVING and node.op_type != "Concat" and not node.domain
