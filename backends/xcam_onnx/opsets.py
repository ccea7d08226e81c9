"""Older operator sets: a model of opset 7 to 10 is converted to opset 11, in memory.

Only the nodes are rewritten: names of tensors and nodes remain, and weights stay in their files. onnx.version_converter
would read all weights into memory, and lacks steps for Upsample and for the operators that ONNX dropped after opset 9.

Source of the operators' versions: github.com/onnx/onnx/blob/main/docs/Changelog.md; of the dropped ones: ONNX Runtime,
which still runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from xcam.errors import ModelError
from xcam_onnx.graph import Graph, attribute, bodies, inferred, sort

OLDEST, TARGET = 7, 11
COMPATIBLE = {
    *("ArgMax", "ArgMin", "AveragePool", "Cast", "Compress", "Concat", "Constant", "Conv", "ConvTranspose"),
    *("DepthToSpace", "Equal", "Flatten", "Gather", "Gemm", "Greater", "Hardmax", "If", "Less", "LogSoftmax", "Loop"),
    *("LpPool", "MatMul", "Max", "MaxPool", "MaxUnpool", "Mean", "Min", "NonMaxSuppression", "OneHot", "PRelu"),
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
    *("ReduceProd", "ReduceSum", "ReduceSumSquare", "Softmax", "Split", "Squeeze", "Sum", "Unsqueeze"),
}
"""Operators whose newer versions compute the same from the same inputs and attributes."""


def convert(model: ModelProto, name: str) -> int | None:
    """Convert a model of opset 7 to 10, in place; leave a newer one as it is.

    Args:
        model: The model, its larger weights as external data.
        name: Its name, for messages.

    Returns:
        The opset that the model had, if it was converted.

    Raises:
        ModelError: An operator has no equivalent in opset 11.
    """
    entry = next((entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    if entry is None or not OLDEST <= entry.version < TARGET:
        return None
    version = entry.version
    sort(model.graph)
    _Converter(model, version, name).convert(model.graph)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]  # IR 3 lists weights as inputs
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    entry.version = TARGET
    model.ir_version = max(model.ir_version, helper.find_min_ir_version_for([helper.make_opsetid("", TARGET)]))
    return version


class _Converter:
    """Rewrites the nodes of a model."""

    def __init__(self, model: ModelProto, version: int, name: str) -> None:
        self._graph = Graph(inferred(model))  # of the old version: a bound has the type of the value
        self._version, self._name = version, name
        self._taken = set(_names(model.graph))

    def convert(self, graph: GraphProto) -> None:
        """Convert a graph, and the graphs in it."""
        nodes: list[NodeProto] = []
        for node in graph.node:
            for inner in bodies(node):
                self.convert(inner)
            nodes += self._converted(node) if node.domain in ("", "ai.onnx") else [node]
        copies = [NodeProto() for _ in nodes]
        for copy, node in zip(copies, nodes, strict=True):
            copy.CopyFrom(node)
        del graph.node[:]
        graph.node.extend(copies)

    def _converted(self, node: NodeProto) -> list[NodeProto]:
        """Return the nodes of opset 11 that compute the same."""
        old, new = _since(node.op_type, self._version), _since(node.op_type, TARGET)
        writer = _Writer(self._graph, node, self._taken, self._version)
        try:
            if node.op_type in STEPS and (old != new or old is None):
                return STEPS[node.op_type](writer, node)
            if new is None or (old != new and old is not None and node.op_type not in COMPATIBLE):
                raise writer.refusal()
        except _Refusal as error:
            raise ModelError(
                f"cannot read {self._name}: it uses opset {self._version}, whose {error} has no equivalent in opset {TARGET}; "
                f"export the model again with opset {TARGET} or newer"
            ) from error
        return [node]


class _Refusal(Exception):  # noqa: N818  (internal: it becomes a ModelError)
    """Error of a node that cannot be converted; the message names it."""


def _names(graph: GraphProto) -> Iterator[str]:
    """Yield the names of all tensors."""
    yield from (value.name for value in (*graph.input, *graph.initializer))
    for node in graph.node:
        yield from node.output
        for inner in bodies(node):
            yield from _names(inner)


def _since(op: str, version: int) -> int | None:
    """Return the version of an operator in an operator set; None where the set lacks it."""
    try:
        schema = onnx.defs.get_schema(op, version, "")
    except Exception:
        return None
    return None if schema.deprecated else schema.since_version


class _Writer:
    """Collects the nodes that replace a node."""

    def __init__(self, graph: Graph, node: NodeProto, taken: set[str], version: int) -> None:
        self._node, self._taken, self.version = node, taken, version
        self.nodes: list[NodeProto] = []
        kind = graph.dtype(node.input[0]) if node.input else 0
        self.dtype = helper.tensor_dtype_to_np_dtype(kind or TensorProto.FLOAT)
        """The type of the node's first input."""
        self.known = graph.constant
        """Returns a small constant."""

    def refusal(self, reason: str = "") -> _Refusal:
        """Return the error for a node that cannot be converted."""
        label = self._node.name or self._node.output[0]
        return _Refusal(f"{self._node.op_type} ({label}){reason and ' '}{reason}")

    def constant(self, values: Any, dtype: Any = None) -> str:
        """Write a constant, of the type of the node's first input by default; return its name."""
        array = np.asarray(values, dtype or self.dtype)
        return self("Constant", value=numpy_helper.from_array(array))

    def integers(self, values: Sequence[int]) -> str:
        """Write a list of integers."""
        return self.constant(values, np.int64)

    def __call__(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Write a node, and return the name of its output."""
        count = len(self.nodes)
        name = f"{self._node.output[0]}/{op}_{count}"
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        self.nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def last(self, op: str, *inputs: str, **attributes: Any) -> list[NodeProto]:
        """Return all nodes, and a last one that has the name, the outputs and the metadata of the replaced node."""
        node = helper.make_node(op, inputs, self._node.output, self._node.name, self._node.doc_string, **attributes)
        node.metadata_props.extend(self._node.metadata_props)
        return [*self.nodes, node]


Step = Callable[[_Writer, NodeProto], list[NodeProto]]


def _batch_normalization(w: _Writer, node: NodeProto) -> list[NodeProto]:
    """`spatial = 0`, which opset 9 dropped, has statistics for each position."""
    epsilon = attribute(node, "epsilon", 1e-5)
    if attribute(node, "spatial", 1):
        momentum = attribute(node, "momentum", 0.9)
        result = w.last("BatchNormalization", *node.input, epsilon=epsilon, momentum=momentum)
        del result[-1].output[1:]
        return result
    x, scale, bias, mean, variance = node.input
    deviation = w("Sqrt", w("Add", variance, w.constant(epsilon)))
    normalised = w("Div", w("Sub", x, mean), deviation)
    result = w.last("Add", w("Mul", normalised, scale), bias)
    del result[-1].output[1:]
    return result


def _clip(w: _Writer, node: NodeProto) -> list[NodeProto]:
    low, high = attribute(node, "min"), attribute(node, "max")
    bounds = ["" if bound is None else w.constant(bound) for bound in (low, high)]
    while bounds and not bounds[-1]:
        bounds.pop()
    return w.last("Clip", node.input[0], *bounds)


def _dropout(w: _Writer, node: NodeProto) -> list[NodeProto]:
    """The mask, which is all ones, has another type from opset 10 on."""
    result = w.last("Dropout", node.input[0], ratio=attribute(node, "ratio", 0.5))
    if len(node.output) > 1 and node.output[1]:
        del result[-1].output[1:]
        shape = w("Shape", node.input[0])
        one = numpy_helper.from_array(np.ones(1, w.dtype))
        mask = helper.make_node("ConstantOfShape", [shape], [node.output[1]], value=one)
        return [*w.nodes, result[-1], mask]
    return result


def _pad(w: _Writer, node: NodeProto) -> list[NodeProto]:
    value = attribute(node, "value", 0.0)
    more = [w.constant(value)] if value else []
    return w.last(
        "Pad", node.input[0], w.integers(attribute(node, "pads")), *more, mode=attribute(node, "mode", "constant")
    )


def _slice(w: _Writer, node: NodeProto) -> list[NodeProto]:
    if len(node.input) > 1:  # since opset 10
        return [node]
    starts, axes = attribute(node, "starts"), attribute(node, "axes")
    axes = list(range(len(starts))) if axes is None else axes
    return w.last("Slice", node.input[0], *(w.integers(v) for v in (starts, attribute(node, "ends"), axes)))


def _top_k(w: _Writer, node: NodeProto) -> list[NodeProto]:
    if len(node.input) > 1:  # since opset 10
        return [node]
    return w.last("TopK", node.input[0], w.integers([attribute(node, "k")]), axis=attribute(node, "axis", -1))


def _scatter(w: _Writer, node: NodeProto) -> list[NodeProto]:
    return w.last("ScatterElements", *node.input, axis=attribute(node, "axis", 0))


def _resize(w: _Writer, node: NodeProto) -> list[NodeProto]:
    """Resize of opset 10, and Upsample: the nearest value is the one below where a side grows, else the one above."""
    x, mode = node.input[0], attribute(node, "mode", "nearest")
    listed = attribute(node, "scales")
    scales = w.constant(listed, np.float32) if len(node.input) < 2 else node.input[1]
    values = np.asarray(listed) if len(node.input) < 2 else w.known(scales)
    region = w.constant([], np.float32)
    options = {"mode": mode, "coordinate_transformation_mode": "asymmetric"}
    if mode != "nearest":
        return w.last("Resize", x, region, scales, **options)
    if node.op_type == "Upsample" or (values is not None and (values >= 1).all()):
        return w.last("Resize", x, region, scales, nearest_mode="floor", **options)
    if values is not None and (values <= 1).all():
        return w.last("Resize", x, region, scales, nearest_mode="ceil", **options)
    one = w.constant(1, np.float32)
    grown = w("Resize", x, region, w("Max", scales, one), nearest_mode="floor", **options)
    return w.last("Resize", grown, region, w("Min", scales, one), nearest_mode="ceil", **options)


def _scan(w: _Writer, node: NodeProto) -> list[NodeProto]:
    """Before opset 9, its inputs had a batch axis."""
    if w.version < 9:
        raise w.refusal()
    return [node]


def _image_scaler(w: _Writer, node: NodeProto) -> list[NodeProto]:
    bias = np.reshape(attribute(node, "bias"), (-1, 1, 1))
    return w.last("Add", w("Mul", node.input[0], w.constant(attribute(node, "scale", 1.0))), w.constant(bias))


def _affine(w: _Writer, node: NodeProto) -> list[NodeProto]:
    alpha, beta = (w.constant(attribute(node, name, default)) for name, default in (("alpha", 1.0), ("beta", 0.0)))
    return w.last("Add", w("Mul", node.input[0], alpha), beta)


def _scaled(function: str) -> Step:
    """Return the step for α·f(β·x)."""

    def step(w: _Writer, node: NodeProto) -> list[NodeProto]:
        alpha, beta = attribute(node, "alpha"), attribute(node, "beta")
        if alpha is None or beta is None:
            raise w.refusal("without alpha or beta")
        return w.last("Mul", w(function, w("Mul", node.input[0], w.constant(beta))), w.constant(alpha))

    return step


def _crop(w: _Writer, node: NodeProto) -> list[NodeProto]:
    """Cut off a border [left, top, right, bottom], or keep a `scale` [height, width] behind its top and left."""
    left, top, right, bottom = attribute(node, "border")
    size = attribute(node, "scale")
    ends = [2**31 - 1 if n == 0 else -n for n in (bottom, right)]
    if size:
        ends = [top + size[0], left + size[1]]
    return w.last("Slice", node.input[0], *(w.integers(v) for v in ([top, left], ends, [2, 3])))


def _normalization(w: _Writer, node: NodeProto) -> list[NodeProto]:
    """MeanVarianceNormalization before opset 9, when ONNX Runtime's own definition applies."""
    if not attribute(node, "normalize_variance", 1):
        raise w.refusal("without normalize_variance")
    axes = [0, 1, 2, 3] if attribute(node, "across_channels", 0) else [0, 2, 3]
    return w.last("MeanVarianceNormalization", node.input[0], axes=axes)


STEPS: dict[str, Step] = {
    "BatchNormalization": _batch_normalization,
    "Clip": _clip,
    "Dropout": _dropout,
    "Pad": _pad,
    "Slice": _slice,
    "TopK": _top_k,
    "Scan": _scan,
    "Scatter": _scatter,
    "Resize": _resize,
    "Upsample": _resize,
    "ImageScaler": _image_scaler,
    "Affine": _affine,
    "ParametricSoftplus": _scaled("Softplus"),
    "ScaledTanh": _scaled("Tanh"),
    "Crop": _crop,
    "MeanVarianceNormalization": _normalization,
}
"""For each operator whose definition changed, or that ONNX dropped, the function that replaces it."""
