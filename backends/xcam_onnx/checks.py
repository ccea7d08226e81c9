"""Checks of a file when it is loaded: its quantisation, and whether the runtime has its operators.

ONNX Runtime takes a scale of 0 or NaN and scales that do not fit the axis, and computes nonsense from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto

from xcam.contract import Array
from xcam.errors import ModelError
from xcam_onnx.graph import INTEGERS, Graph, Shape, attribute
from xcam_onnx.sessions import Runtime
from xcam_onnx.standard.registry import MICROSOFT

AGAIN = "quantise the model again"
RANGES = f"{AGAIN}, and check the ranges that the calibration finds"
STANDARD = "export the model again with standard operators"
CPU_ONLY = ("CPUExecutionProvider",)
OUTPUT = -1


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


def check(model: ModelProto, name: str, runtime: Runtime) -> None:
    """Raise ModelError where a node's quantisation is invalid, or the runtime lacks its operator.

    Args:
        model: The model, its larger weights as external data.
        name: The name of its file.
        runtime: Reads weights, and creates sessions.
    """
    graph = Graph(model)
    _check_operators(graph, name, runtime)
    checker = _Checker(graph, runtime)
    for node in graph.nodes:
        for parameters in _parameters(node):
            problem, remedy = checker.problem(node, parameters)
            if problem:
                raise _refusal(name, node, problem, remedy)


def _refusal(name: str, node: NodeProto, problem: str, remedy: str) -> ModelError:
    kind = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
    label = node.name or (node.output[0] if node.output else "")
    return ModelError(f"cannot read {name}: node {label!r} ({kind}) {problem}; {remedy}")


# Quantisation


def _parameters(node: NodeProto) -> Sequence[Parameters]:
    if node.domain not in ("", MICROSOFT):
        return ()
    if node.op_type == "QLinearConcat":
        starts = range(2, len(node.input) - 2, 3)
        return [Parameters(OUTPUT, 0, 1), *(Parameters(start, start + 1, start + 2) for start in starts)]
    return PARAMETERS.get(node.op_type, ())


class _Checker:
    """Finds invalid parameters of quantised values."""

    def __init__(self, graph: Graph, runtime: Runtime) -> None:
        self._graph, self._weights = graph, runtime.weights
        self._narrow = {t.name for t in graph.initializers.values() if t.data_type in INTEGERS and len(t.int32_data)}

    def problem(self, node: NodeProto, parameters: Parameters) -> tuple[str | None, str]:
        """Return the problem of a value, None where it has none; and the remedy."""
        scale, zero = (_input(node, index) for index in (parameters.scale, parameters.zero_point))
        value = node.output[0] if parameters.value == OUTPUT else _input(node, parameters.value)
        source = node.input[0] if node.op_type == "QuantizeLinear" else value
        axis = _axis(node, parameters)
        problem = self._integers(value) or self._integers(zero) or self._types(value, zero)
        problem = problem or self._shapes(node, source, scale, zero, axis)
        return (problem, AGAIN) if problem else (self._steps(value, scale, zero, axis), RANGES)

    def _integers(self, name: str) -> str | None:
        """Find integers that are stored in 32 bits, and are outside their own type. Two of 4 bits are in a byte."""
        if name not in self._narrow:
            return None
        tensor = self._graph.initializers[name]
        low, high = INTEGERS[tensor.data_type]
        is_packed = high - low < 255
        values = np.asarray(tensor.int32_data)
        low, high = (-128 if low < 0 else 0, 255) if is_packed else (low, high)
        wrong = values[(values < low) | (values > high)]
        return (
            f"reads {int(wrong[0])} in {name!r}, which is outside {_type(tensor.data_type)}" if wrong.size else None
        )

    def _types(self, value: str, zero: str) -> str | None:
        first, second = self._graph.dtype(value), self._graph.dtype(zero)
        if not zero or not first or not second or first == second:
            return None
        return f"has a zero point of {_type(second)} for values of {_type(first)}"

    def _shapes(self, node: NodeProto, value: str, scale: str, zero: str, axis: int | None) -> str | None:
        shape, scales, zeros = (self._graph.shape(name) for name in (value, scale, zero))
        block = attribute(node, "block_size", 0)
        if not scales or (scales == (1,) and not block) or axis is None:
            return None
        if zeros and zeros != (1,) and _differ(zeros, scales):
            return f"has {_listed(scales)} scales and {_listed(zeros)} zero points"
        if shape is None or (len(scales) > 1 and not block):
            return None
        if not -len(shape) <= axis < len(shape):
            return f"has the axis {axis} for a value with {len(shape)} axes"
        needed: list[int | str | None] = [shape[axis]]
        if block:
            size = shape[axis]
            needed = list(shape)
            needed[axis] = -(-size // block) if isinstance(size, int) else None
        if _differ(scales, needed):
            return f"has {_listed(scales)} scales, and axis {axis} of {_listed(shape)} values needs {_listed(needed)}"
        return None

    def _steps(self, value: str, scale: str, zero: str, axis: int | None) -> str | None:
        """Judge the scales themselves. Those of weights may be negative, and 0 where the weights are 0 anyway."""
        array = self._constant(scale)
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


def _input(node: NodeProto, index: int) -> str:
    return node.input[index] if 0 <= index < len(node.input) else ""


def _axis(node: NodeProto, parameters: Parameters) -> int | None:
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return int(attribute(node, "axis", 1))
    if parameters.axis is not None and node.op_type == "QGemm":
        return 0 if attribute(node, "transB", 0) else 1
    return parameters.axis


def _differ(first: Sequence[int | str | None], second: Sequence[int | str | None]) -> bool:
    """Return whether shapes differ for certain."""
    pairs = zip(first, second, strict=False)
    return len(first) != len(second) or any(a != b for a, b in pairs if isinstance(a, int) and isinstance(b, int))


def _listed(shape: Sequence[int | str | None] | Shape) -> str:
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
