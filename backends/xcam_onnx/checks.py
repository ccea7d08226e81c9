"""Checks of a file when it is loaded: its quantisation, and whether the runtime has its operators.

ONNX Runtime takes a scale of 0 or NaN and scales that do not fit the axis, and computes nonsense from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx import NodeProto, TensorProto

from xcam.contract import Array
from xcam.errors import ModelError
from xcam_onnx.graph import INTEGERS, Graph, Shape, attribute
from xcam_onnx.sessions import Runtime
from xcam_onnx.standard.form import MOVING
from xcam_onnx.standard.registry import MICROSOFT

AGAIN = "quantise the model again"
RANGES = f"{AGAIN}, and check the ranges that the calibration finds"
STANDARD = "export the model again with standard operators"
CPU_ONLY = ("CPUExecutionProvider",)
OUTPUT = -1
SAME_TYPE = {*MOVING, "Pad"}
"""Operators on integers whose results have the type of their first input."""


@dataclass(frozen=True)
class Parameters:
    """The inputs of a node that state how one of its values is quantised; -1 where it has no such input."""

    value: int
    """The index of the value among the inputs; OUTPUT: the output."""
    scale: int
    zero_point: int
    axis: int | None = None
    """The axis of several scales; None: there is one scale, or its operator's attribute states the axis."""


_UNARY = (Parameters(0, 1, 2), Parameters(OUTPUT, 3, 4))
_BINARY = (Parameters(0, 1, 2), Parameters(3, 4, 5), Parameters(OUTPUT, 6, 7))
PARAMETERS: dict[str, tuple[Parameters, ...]] = {
    "QuantizeLinear": (Parameters(OUTPUT, 1, 2),),
    "DequantizeLinear": (Parameters(0, 1, 2),),
    "QLinearConv": (_BINARY[0], Parameters(3, 4, 5, axis=0), _BINARY[2]),
    "QLinearMatMul": (_BINARY[0], Parameters(3, 4, 5, axis=-1), _BINARY[2]),
    "QGemm": (_BINARY[0], Parameters(3, 4, 5, axis=-1), Parameters(OUTPUT, 7, 8)),
    "QLinearWhere": (Parameters(1, 2, 3), Parameters(4, 5, 6), Parameters(OUTPUT, 7, 8)),
    "MatMulIntegerToFloat": (Parameters(0, 2, 4), Parameters(1, 3, 5, axis=-1)),
    "DynamicQuantizeMatMul": (Parameters(1, 2, 3, axis=-1),),
    "MatMulNBits": (Parameters(1, 2, -1),),
    "ConvInteger": (Parameters(0, -1, 2), Parameters(1, -1, 3)),
    "MatMulInteger": (Parameters(0, -1, 2), Parameters(1, -1, 3)),
    **dict.fromkeys(("QLinearAdd", "QLinearMul"), _BINARY),
    **dict.fromkeys(("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax"), _UNARY),
    **dict.fromkeys(("QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearReduceMean"), _UNARY),
}
"""By operator, of ONNX and of ONNX Runtime."""


def check(graph: Graph, name: str, runtime: Runtime) -> None:
    """Raise ModelError where a node's quantisation is invalid, or the runtime lacks its operator.

    Args:
        graph: The model, its larger weights as external data.
        name: The name of its file.
        runtime: Reads weights, and creates sessions.
    """
    _check_operators(graph, name, runtime)
    checker = _Checker(graph, runtime)
    for value in checker.values:
        problem, remedy = checker.problem(value)
        if problem:
            raise _refusal(name, value.node, problem, remedy)


def _refusal(name: str, node: NodeProto, problem: str, remedy: str) -> ModelError:
    kind = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
    label = node.name or (node.output[0] if node.output else "")
    return ModelError(f"cannot read {name}: node {label!r} ({kind}) {problem}; {remedy}")


# Quantisation


def _parameters(node: NodeProto) -> Sequence[Parameters]:
    if node.op_type == "QLinearConcat":
        starts = range(2, len(node.input) - 2, 3)
        return [Parameters(OUTPUT, 0, 1), *(Parameters(start, start + 1, start + 2) for start in starts)]
    known = PARAMETERS.get(node.op_type, ())
    return known if known and node.domain in ("", MICROSOFT) else ()


class _Value(NamedTuple):
    """A quantised value of a node, and the tensors of its parameters, "" where one is omitted."""

    node: NodeProto
    name: str
    scale: str
    zero_point: str
    parameters: Parameters


class _Checker:
    """Finds invalid parameters of quantised values.

    Args:
        graph: The model.
        runtime: Reads weights.

    Attributes:
        values: Every quantised value.
    """

    def __init__(self, graph: Graph, runtime: Runtime) -> None:
        self._graph, self._weights = graph, runtime.weights
        self.values: list[_Value] = []
        self._types: dict[str, int] = {}
        """The types of quantised values that the nodes state."""
        for node in graph.nodes:
            self._read(node)
        scales = {value.scale for value in self.values}
        self._positive = _positive([t for name, t in graph.initializers.items() if name in scales])
        self._wrong = _wrong_integers([t for t in graph.initializers.values() if len(t.int32_data)])

    def _read(self, node: NodeProto) -> None:
        if node.op_type == "DynamicQuantizeLinear":
            self._types |= dict.fromkeys([*node.output[:1], *node.output[2:]], TensorProto.UINT8)
        elif node.op_type in SAME_TYPE and node.input and node.input[0] in self._types:
            self._types |= dict.fromkeys(node.output, self._types[node.input[0]])
        for parameters in _parameters(node):
            inputs = (parameters.value, parameters.scale, parameters.zero_point)
            names = list(node.input)
            name, scale, zero = [names[index] if 0 <= index < len(names) else "" for index in inputs]
            if parameters.value == OUTPUT:
                name = node.output[0]
                self._types[name] = self._graph.dtype(zero)
            self.values.append(_Value(node, name, scale, zero, parameters))

    def problem(self, value: _Value) -> tuple[str | None, str]:
        """Return the problem of a value, None where it has none; and the remedy."""
        node, name, scale, zero, parameters = value
        problem = self._wrong.get(name) or self._wrong.get(zero) or self._two_types(name, zero)
        if problem or self._positive.get(scale) == ():
            return problem, AGAIN
        axis = _axis(node, parameters)
        problem = self._shapes(node, node.input[0] if node.op_type == "QuantizeLinear" else name, scale, zero, axis)
        return (problem, AGAIN) if problem else (self._steps(name, scale, zero, axis), RANGES)

    def _dtype(self, name: str) -> int:
        return self._graph.dtype(name) or self._types.get(name, 0) or (self._graph.typed.dtype(name) if name else 0)

    def _shape(self, name: str) -> Shape | None:
        shape = self._graph.shape(name) if name else ()
        return self._graph.typed.shape(name) if shape is None else shape

    def _two_types(self, value: str, zero: str) -> str | None:
        first, second = (self._dtype(value), self._dtype(zero)) if zero else (0, 0)
        if first == second or not first or not second:
            return None
        return f"has a zero point of {_type(second)} for values of {_type(first)}"

    def _shapes(self, node: NodeProto, value: str, scale: str, zero: str, axis: int | None) -> str | None:
        scales = self._shape(scale)
        block = attribute(node, "block_size", 0)
        if not scales or (scales == (1,) and not block) or axis is None:
            return None
        zeros = self._shape(zero)
        if zeros and zeros != (1,) and _differ(zeros, scales):
            return f"has {_listed(scales)} scales and {_listed(zeros)} zero points"
        shape = self._shape(value)
        if shape is None or (len(scales) > 1 and not block):
            return None
        if not -len(shape) <= axis < len(shape):
            return f"has the axis {axis} for a value with {len(shape)} axes"
        needed: Shape = (shape[axis],)
        if block:
            size, axis = shape[axis], axis % len(shape)
            blocks = -(-size // block) if isinstance(size, int) else None
            needed = (*shape[:axis], blocks, *shape[axis + 1 :])
        if _differ(scales, needed):
            return f"has {_listed(scales)} scales, and axis {axis} of {_listed(shape)} values needs {_listed(needed)}"
        return None

    def _steps(self, value: str, scale: str, zero: str, axis: int | None) -> str | None:
        """Judge the scales themselves. Those of weights may be negative, and 0 where the weights are 0 anyway."""
        array = None if scale in self._positive else self._constant(scale)
        if array is None or not array.size:
            return None
        array = np.asarray(array, np.float64)
        if np.isnan(array).any():
            return "has a scale that is not a number"
        if np.isinf(array).any():
            return "has an infinite scale (float16 ends at 65504)"
        if (array > 0).all():
            return None
        if value in self._graph.live:
            return f"has a scale of {float(array.min()):g}, and a step is positive"
        return "has a scale of 0" if (array == 0).any() and not self._vanishes(value, zero, array, axis) else None

    def _vanishes(self, value: str, zero: str, scales: Array, axis: int | None) -> bool:
        """Return whether weights are 0 wherever their scale is."""
        weights, shift = self._constant(value), self._constant(zero) if zero else np.zeros(())
        if weights is None or shift is None or axis is None or scales.ndim > 1:
            return True
        channels = np.moveaxis(weights, axis, 0) if scales.size > 1 else weights[None]
        dead = channels[np.ravel(scales) == 0].astype(np.int64)
        shift = np.broadcast_to(np.ravel(shift), scales.size)[np.ravel(scales) == 0].astype(np.int64)
        return bool((dead == shift.reshape(-1, *[1] * (dead.ndim - 1))).all())

    def _constant(self, name: str) -> Array | None:
        tensor = self._graph.initializers.get(name)
        if tensor is not None and tensor.data_location == TensorProto.EXTERNAL:
            return self._weights.array(tensor)
        return self._graph.constant(name) if name else None


def _positive(scales: Sequence[TensorProto]) -> dict[str, Shape]:
    """Return the shape of each float32 scale in the graph, if all are positive, as those of most files are."""
    inside = [t for t in scales if t.data_type == TensorProto.FLOAT and t.data_location != TensorProto.EXTERNAL]
    raw = np.frombuffer(b"".join(t.raw_data for t in inside), "<f4")
    values = np.concatenate([raw, _joined([t.float_data for t in inside], np.float32)])
    return {t.name: tuple(t.dims) for t in inside} if ((values > 0) & (values < np.inf)).all() else {}


def _wrong_integers(tensors: Sequence[TensorProto]) -> dict[str, str]:
    """Find integers that are stored in 32 bits, and are outside their own type. Two of 4 bits are in a byte."""
    problems: dict[str, str] = {}
    for dtype in {t.data_type for t in tensors} & set(INTEGERS):
        low, high = INTEGERS[dtype]
        if high - low < 255:
            low, high = -128 if low < 0 else 0, 255
        stored = {t.name: t.int32_data for t in tensors if t.data_type == dtype}
        values = _joined(list(stored.values()), np.int32)
        if values.min() < low or values.max() > high:
            for name, listed in stored.items():
                wrong = next((value for value in listed if not low <= value <= high), None)
                if wrong is not None:
                    problems[name] = f"reads {wrong} in {name!r}, which is outside {_type(dtype)}"
    return problems


def _joined(fields: Sequence[Sequence[float]], dtype: type[np.generic]) -> Array:
    """Join lists of numbers; those of one, which most are, without an array for each."""
    single = [numbers[0] for numbers in fields if len(numbers) == 1]
    several: list[Array] = [np.asarray(numbers, dtype) for numbers in fields if len(numbers) > 1]
    return np.concatenate([np.asarray(single, dtype), *several])


def _axis(node: NodeProto, parameters: Parameters) -> int | None:
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return int(attribute(node, "axis", 1))
    if parameters.axis is not None and node.op_type == "QGemm":
        return 0 if attribute(node, "transB", 0) else 1
    return parameters.axis


def _differ(first: Shape, second: Shape) -> bool:
    """Return whether shapes differ for certain."""
    if first == second:
        return False
    pairs = zip(first, second, strict=False)
    return len(first) != len(second) or any(a != b for a, b in pairs if isinstance(a, int) and isinstance(b, int))


def _listed(shape: Shape) -> str:
    return " x ".join("?" if n is None else str(n) for n in shape)


def _type(dtype: int) -> str:
    return TensorProto.DataType.Name(dtype).lower()


# Operators


@cache
def _operators() -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """Return the operators that the runtime knows, and those that it has for the CPU; none where it does not list them."""
    internals = ort.capi.onnxruntime_pybind11_state
    try:
        known = {(schema.domain, schema.name) for schema in internals.get_all_operator_schema()}
        kernels = internals.get_all_opkernel_def()
    except AttributeError:  # a build without these lists
        return set(), set()
    return known, {(k.domain, k.op_name) for k in kernels if k.provider == "CPUExecutionProvider"}


def _check_operators(graph: Graph, name: str, runtime: Runtime) -> None:
    functions = {(function.domain, function.name) for function in graph.model.functions}
    others = [node for node in graph.nodes if node.domain or not onnx.defs.has(node.op_type)]
    others = [node for node in others if (node.domain, node.op_type) not in functions]
    known, on_cpu = _operators() if others else (set(), set())
    for node in others if known else []:
        key, version = (node.domain, node.op_type), f"ONNX Runtime {ort.__version__}"
        if node.domain not in {domain for domain, _ in known}:
            raise _refusal(name, node, f"is of the domain {node.domain!r}, which {version} does not have", STANDARD)
        if key not in known:
            raise _refusal(name, node, f"is unknown to {version}", f"update onnxruntime, or {STANDARD}")
        if key not in on_cpu and runtime.providers == CPU_ONLY:
            try:  # the runtime may replace it by others
                runtime.session(graph.model, once=True)
            except ModelError as error:
                remedy = f"choose a device that has it (device=), or {STANDARD}"
                raise _refusal(name, node, f"is not available on the CPU in {version}", remedy) from error
            return
