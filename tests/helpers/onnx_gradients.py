"""Gradients of small ONNX graphs: by xcam's gradient graph, and by central differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from xcam_onnx import cut
from xcam_onnx.graph import inferred

NEWEST = onnx.defs.onnx_opset_version()
HALVES = (TensorProto.FLOAT, TensorProto.FLOAT16)

Arrays = Mapping[str, np.ndarray]
Function = Callable[[np.ndarray], np.ndarray]


def single(
    op: str,
    inputs: Arrays,
    *,
    fixed: Sequence[str] = (),
    outputs: int = 1,
    symbolic: bool | Sequence[str] = False,
    opset: int = 21,
    domain: str = "",
    shape: Sequence[int] | None = None,
    **attributes: Any,
) -> onnx.ModelProto:
    """Return a model of one node. An input called `_…` is left out; those in `fixed` are initialisers.

    symbolic: True for `x`, or the inputs whose sizes have names; shape: y's, where ONNX cannot infer it.
    """
    names = ["" if name.startswith("_") else name for name in inputs]
    present = {name: value for name, value in inputs.items() if not name.startswith("_")}
    results = [f"y{i}" if i else "y" for i in range(outputs)]
    node = helper.make_node(op, names, results, "node", domain=domain, **attributes)
    named = () if not symbolic else ("x",) if isinstance(symbolic, int) else symbolic

    def sizes(name: str) -> list[Any]:
        return [f"{name}{i}" if name in named else n for i, n in enumerate(present[name].shape)]

    graph = helper.make_graph(
        [node],
        "single",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), sizes(n))
            for n, v in present.items()
            if n not in fixed
        ],
        [helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(present["x"].dtype), shape)],
        [numpy_helper.from_array(present[n], n) for n in fixed],
    )
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = helper.find_min_ir_version_for(opsets, ignore_unknown=True)
    return inferred(model)


def written(text: str, opset: int = 21, more: str = "", **initialisers: np.ndarray) -> onnx.ModelProto:
    """Return a model from ONNX's text format: `(float[N, 3] x) => (float[N, 3] y) { [name] y = Relu(x) }`.

    more: further operator sets, such as `, "com.microsoft": 1`.
    """
    lowest = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    model = parser.parse_model(f'<ir_version: {lowest}, opset_import: ["": {opset}{more}]> g {text}')
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in initialisers.items())
    return inferred(model)


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def by_graph(
    model: onnx.ModelProto, feeds: Arrays, v: np.ndarray | None = None, at: str = "x"
) -> tuple[Any, Any, Any]:
    """Return the output, the cotangent (drawn at random by default), and the gradient at the input `at`."""
    forward, gradient = cut.gradient(model, [at], ["y"])
    values = values_of(forward, feeds)
    if v is None:
        v = np.random.default_rng(9).normal(size=values["y"].shape).astype(values["y"].dtype)
    return values["y"], v, backward(gradient, values, {"y": v})


def values_of(forward: onnx.ModelProto, feeds: Arrays) -> dict[str, np.ndarray]:
    """Return the inputs and outputs of a model."""
    run = session(forward)
    names = [value.name for value in run.get_outputs()]
    return dict(zip(names, run.run(names, dict(feeds)), strict=True)) | dict(feeds)


def backward(gradient: cut.Gradient, values: Arrays, cotangents: Arrays) -> np.ndarray:
    """Run the gradient graph, after checking that it is valid and has the declared inputs."""
    onnx.checker.check_model(gradient.model, full_check=True)
    back = session(gradient.model)
    wanted = {value.name for value in back.get_inputs()}
    assert wanted == {*gradient.forward_values, *gradient.cotangents.values()}
    feeds = {gradient.cotangents[name]: v for name, v in cotangents.items()} | dict(values)
    return back.run([cut.GRADIENT], {name: feeds[name] for name in wanted})[0]


def by_reference(model: onnx.ModelProto, feeds: Arrays, at: str = "x") -> Function:
    """Return the output as a function of the input `at`, in float64, by ONNX's reference evaluator."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    del wide.graph.value_info[:]
    for cast in (a for node in wide.graph.node if node.op_type == "Cast" for a in node.attribute):
        cast.i = TensorProto.DOUBLE if cast.name == "to" and cast.i in HALVES else cast.i
    for value in (*wide.graph.input, *wide.graph.output):
        if value.type.tensor_type.elem_type in HALVES:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in wide.graph.initializer:
        if tensor.data_type in HALVES and tensor.name != "scales":  # Resize supports only float32
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    run = ReferenceEvaluator(wide)
    base = {n: x.astype(np.float64) if x.dtype in (np.float32, np.float16) else x for n, x in feeds.items()}
    return lambda x: np.asarray(run.run(["y"], base | {at: x})[0])


def by_runtime(model: onnx.ModelProto, feeds: Arrays, at: str = "x") -> Function:
    """Return the output by ONNX Runtime, in the model's precision, for functions that are linear between distant points."""
    run = session(model)
    return lambda x: np.asarray(run.run(["y"], {**feeds, at: x.astype(feeds[at].dtype)})[0], np.float64)


def slopes(f: Function, x: np.ndarray, v: np.ndarray, directions: Sequence[np.ndarray], step: float) -> np.ndarray:
    """Return ∂⟨v, f(x)⟩ along each direction, by central differences."""
    x, v = x.astype(np.float64), v.astype(np.float64)
    sums = [[float((f(x + sign * step * d) * v).sum()) for sign in (1, -1)] for d in directions]
    return np.array([(up - down) / (2 * step) for up, down in sums])


def by_differences(model: onnx.ModelProto, feeds: Arrays, v: np.ndarray, at: str = "x", step: float = 1e-5) -> Any:
    """Return ∂⟨v, y⟩/∂(input `at`), in float64, by the reference evaluator."""
    units = np.eye(feeds[at].size).reshape(-1, *feeds[at].shape)
    return slopes(by_reference(model, feeds, at), feeds[at], v, list(units), step).reshape(feeds[at].shape)


def error(value: np.ndarray, true: np.ndarray) -> float:
    """Return the largest difference, relative to the largest magnitude."""
    true = np.asarray(true, np.float64)
    return float(np.abs(value - true).max(initial=0) / max(np.abs(true).max(initial=0), 1e-3))
