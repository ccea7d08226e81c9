"""Expansions of operators on quantised values, each against ONNX Runtime on the original operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from onnx_gradients import by_graph, session, written
from xcam_onnx.graph import Graph, inferred
from xcam_onnx.standard import quantized
from xcam_onnx.standard.registry import EXPANSIONS, MICROSOFT, NotExpandable, Original, Writer

F, U, J = np.float32, np.uint8, np.int8
Inputs = dict[str, Any]
"""The inputs of a node in order; a name that begins with `_` is omitted, one in capitals is fixed."""


def integers(dtype: Any, *shape: int, seed: int = 0) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(limits.min, int(limits.max) + 1, shape).astype(dtype)


def scales(n: int) -> np.ndarray:
    return np.linspace(0.01, 0.03, n).astype(F)


def model_of(
    op: str, inputs: Inputs, kind: Any, opset: int = 17, domain: str = MICROSOFT, **attributes: Any
) -> onnx.ModelProto:
    """Return a model of one node; the first axis of its computed inputs has a name."""
    names = ["" if name.startswith("_") else name for name in inputs]
    values = {name: np.asarray(value) for name, value in inputs.items() if name[0] != "_"}
    live = [name for name in values if name.islower()]
    node = helper.make_node(op, names, ["y"], "node", domain=domain, **attributes)
    declared = [
        helper.make_tensor_value_info(
            n, helper.np_dtype_to_tensor_dtype(values[n].dtype), [f"{n}0", *values[n].shape[1:]][: values[n].ndim]
        )
        for n in live
    ]
    weights = [numpy_helper.from_array(values[n], n) for n in values if n not in live]
    output = onnx.ValueInfoProto(name="y")
    output.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    graph = helper.make_graph([node], "one", declared, [output], weights)
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    result = helper.make_model(graph, opset_imports=opsets)
    result.ir_version = helper.find_min_ir_version_for(opsets, ignore_unknown=True)
    return inferred(result)


def standard(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with its nodes expanded, as far as they have an expansion."""
    graph, writer = Graph(model), Writer(Graph(model).opset[""])
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for node in model.graph.node:
        expansion = EXPANSIONS.get((node.domain, node.op_type))
        if expansion:
            expansion(Original(node, graph, None), writer)
        else:
            writer.nodes.append(node)
    del result.graph.node[:]
    result.graph.node.extend(writer.nodes)
    result.graph.initializer.extend(writer.constants)
    result.opset_import.extend(helper.make_opsetid(d, 1) for d in writer.domains if d not in graph.opset)
    for node in writer.nodes:  # ONNX does not infer shapes of operators of another domain
        if node.domain and node.input[0] in graph.initializers:
            shape = graph.shape(node.input[0])
            result.graph.value_info.append(
                helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, shape)
            )
    return inferred(result)


def both(model: onnx.ModelProto, inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    feeds = {name: np.asarray(value) for name, value in inputs.items() if name[0] != "_" and name.islower()}
    original, expanded = (session(m).run(["y"], feeds)[0] for m in (model, standard(model)))
    assert original.dtype == expanded.dtype
    assert original.shape == expanded.shape
    return original, expanded


X = integers(U, 3, 8, 9, 9)
S = integers(J, 3, 8, 9, 9)
KERNEL = integers(J, 6, 8, 3, 3, seed=1)
BIAS = np.arange(-3, 3).astype(np.int32) * 900
DEPTHWISE = integers(J, 8, 1, 3, 3, seed=1)


def conv(x: np.ndarray, kernel: np.ndarray, per_channel: bool = True, bias: bool = True, **zeros: int) -> Inputs:
    n = len(kernel)
    k_scale = scales(n) / 4 if per_channel else F(0.005)
    k_zero = np.full(n if per_channel else (), zeros.get("k", 0), kernel.dtype)
    options = {"B": np.resize(BIAS, n)} if bias else {}
    y_scale, y_zero = F(zeros.get("scale", 10) / 10), x.dtype.type(zeros.get("y", 7))
    return {
        **{"x": x, "XS": F(0.02), "XZ": x.dtype.type(zeros.get("x", 3)), "K": kernel, "KS": k_scale, "KZ": k_zero},
        **{"YS": y_scale, "YZ": y_zero},
        **options,
    }


def matrices(a: np.ndarray, b: np.ndarray, b_scale: Any, b_zero: Any, y_scale: float = 3.0) -> Inputs:
    kind = a.dtype.type
    return {
        "a": a,
        "AS": F(0.02),
        "AZ": kind(9),
        "B": b,
        "BS": b_scale,
        "BZ": b_zero,
        "YS": F(y_scale),
        "YZ": kind(12),
    }


def binary(x: np.ndarray, y: np.ndarray, scale: float = 0.06) -> Inputs:
    kind = x.dtype.type
    return {
        **{"x": x, "XS": F(0.02), "XZ": kind(30), "z": y, "ZS": F(0.031), "ZZ": kind(11)},
        **{"YS": F(scale), "YZ": kind(5)},
    }


def unary(x: np.ndarray, scale: float = 0.011, x_zero: bool = True, y_zero: bool = True) -> Inputs:
    kind = x.dtype.type
    return {
        **{"x": x, "XS": F(0.02), "XZ" if x_zero else "_XZ": kind(30)},
        **{"YS": F(scale), "YZ" if y_zero else "_YZ": kind(5)},
    }


A, B = integers(U, 5, 16), integers(J, 16, 7, seed=2)
LAST = integers(U, 3, 9, 9, 8)
C = np.arange(7, dtype=np.int32) * 500

FEW = np.random.default_rng(3).normal(size=(2, 3, 40)).astype(F)
NK = {"N": 6, "K": 40}


def few_bits(bits: int, kind: str) -> Inputs:
    """Return the inputs of a MatMulNBits of 6 · 40 weights in blocks of 16: the last block is half empty."""
    zeros: Inputs = {"_Z": 0}
    if " zeros" in kind:
        zeros = {"Z": integers(U, 6, -(-3 * bits // 8))}
    if "float" in kind:
        zeros = {"Z": np.linspace(1, 2**bits - 1, 18).reshape(6, 3).astype(F)}
    groups = {"G": (np.arange(40) % 3).astype(np.int32)} if "groups" in kind else {"_G": 0}
    bias = {"BIAS": scales(6) * 9} if "bias" in kind else {}
    return {"x": FEW, "B": integers(U, 6, 3, 2 * bits), "S": scales(18).reshape(6, 3), **zeros, **groups, **bias}


def attend(kernel_scale: Any, kernel_zero: int = 0) -> Inputs:
    zero = np.full(np.shape(kernel_scale), kernel_zero, J)
    return {
        **{
            "x": integers(U, 2, 5, 8),
            "K": integers(J, 8, 24, seed=4),
            "B": scales(24),
            "XS": F(0.02),
            "KS": kernel_scale,
        },
        **{"_M": 0, "XZ": U(120), "KZ": zero},
    }


CASES: dict[str, tuple[str, Inputs, dict[str, Any]]] = {
    "conv": ("QLinearConv", conv(X, KERNEL), {"pads": [1, 1, 1, 1]}),
    "conv int8": ("QLinearConv", conv(S, KERNEL, bias=False), {"strides": [2, 2]}),
    "conv uint8 kernel": ("QLinearConv", conv(X, KERNEL.view(U), per_channel=False, k=120), {}),
    "conv uint8 kernels": ("QLinearConv", conv(X, KERNEL.view(U), k=120), {}),
    "conv one zero point": ("QLinearConv", conv(X, KERNEL) | {"KZ": np.int8(0)}, {}),
    "depthwise": ("QLinearConv", conv(X, DEPTHWISE, scale=2), {"group": 8, "pads": [1, 1, 1, 1]}),
    "conv opset 11": ("QLinearConv", conv(X, KERNEL), {"opset": 11}),
    "conv opset 11 one scale": ("QLinearConv", conv(X, KERNEL, per_channel=False), {"opset": 11}),
    "conv opset 21": ("QLinearConv", conv(X, KERNEL), {"opset": 21}),
    "conv channels last": (
        "com.microsoft.QLinearConv",
        conv(LAST, KERNEL),
        {"channels_last": 1, "pads": [1, 0, 1, 2]},
    ),
    "conv channels first": ("com.microsoft.QLinearConv", conv(X, KERNEL), {"dilations": [2, 2]}),
    "matmul": ("QLinearMatMul", matrices(A, B, F(0.02), J(0)), {}),
    "matmul int8": ("QLinearMatMul", matrices(integers(J, 2, 5, 16), B, F(0.02), J(3)), {}),
    "matmul columns": ("QLinearMatMul", matrices(A, B, scales(7), np.arange(7).astype(J)), {}),
    "matmul columns opset 11": ("QLinearMatMul", matrices(A, B, scales(7), np.arange(7).astype(J)), {"opset": 11}),
    "matmul opset 21": ("QLinearMatMul", matrices(A, B, scales(7), np.zeros(7, J)), {"opset": 21}),
    "matmul stacks": (
        "QLinearMatMul",
        matrices(integers(U, 2, 5, 16), integers(J, 2, 16, 7), scales(14).reshape(2, 1, 7), np.zeros((2, 1, 7), J)),
        {},
    ),
    "gemm": ("com.microsoft.QGemm", {**matrices(A, B, F(0.02), J(2)), "order": "C"}, {"alpha": 0.7}),
    "gemm columns": (
        "com.microsoft.QGemm",
        {**matrices(A, np.ascontiguousarray(B.T), scales(7), np.zeros(7, J)), "order": "C"},
        {"transB": 1},
    ),
    "gemm transposed": (
        "com.microsoft.QGemm",
        {**matrices(integers(J, 16, 5), B, F(0.02), J(0)), "order": "C"},
        {"transA": 1},
    ),
    "gemm float": ("com.microsoft.QGemm", {**matrices(A, B, scales(7), np.zeros(7, J)), "order": "float"}, {}),
    "add": ("com.microsoft.QLinearAdd", binary(X, X[:, ::-1].copy()), {}),
    "add int8": ("com.microsoft.QLinearAdd", binary(S, S[:, ::-1].copy()), {}),
    "add broadcast": ("com.microsoft.QLinearAdd", binary(X, integers(U, 1, 8, 1, 1)), {}),
    "mul": ("com.microsoft.QLinearMul", binary(X, X[:, ::-1].copy()), {}),
    "mul broadcast": ("com.microsoft.QLinearMul", binary(X, integers(U, 3, 8, 1, 1)), {}),
    "sigmoid": ("com.microsoft.QLinearSigmoid", unary(X, 1 / 256, y_zero=False), {}),
    "sigmoid int8": ("com.microsoft.QLinearSigmoid", unary(S, 1 / 128, x_zero=False, y_zero=False), {}),
    "leaky relu": ("com.microsoft.QLinearLeakyRelu", unary(X, 0.02), {"alpha": 0.3}),
    "leaky relu default": ("com.microsoft.QLinearLeakyRelu", unary(S, 0.02), {}),
    "softmax": ("com.microsoft.QLinearSoftmax", unary(A, 1 / 256), {"opset_": 13, "axis": -1}),
    "softmax of an axis": ("com.microsoft.QLinearSoftmax", unary(X, 1 / 256), {"opset_": 13, "axis": 1}),
    "softmax joined": ("com.microsoft.QLinearSoftmax", unary(X, 1 / 4096), {"opset_": 11, "axis": 1}),
    "softmax joined opset 11": (
        "com.microsoft.QLinearSoftmax",
        unary(X, 1 / 4096),
        {"opset_": 11, "axis": 1, "opset": 11},
    ),
    "softmax of an axis opset 11": (
        "com.microsoft.QLinearSoftmax",
        unary(X, 1 / 256),
        {"opset_": 13, "axis": 1, "opset": 11},
    ),
    "global pool": ("com.microsoft.QLinearGlobalAveragePool", unary(X), {}),
    "global pool last": ("com.microsoft.QLinearGlobalAveragePool", unary(LAST), {"channels_last": 1}),
    "pool": ("com.microsoft.QLinearAveragePool", unary(X, 0.02), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "pool last": (
        "com.microsoft.QLinearAveragePool",
        unary(LAST, 0.02),
        {"kernel_shape": [3, 2], "strides": [2, 2], "channels_last": 1},
    ),
    "pool whole": (
        "com.microsoft.QLinearAveragePool",
        unary(S, 0.02),
        {"kernel_shape": [3, 3], "pads": [1, 1, 0, 0], "count_include_pad": 1, "ceil_mode": 1, "strides": [2, 2]},
    ),
    "concat": (
        "com.microsoft.QLinearConcat",
        {
            **{"YS": F(0.03), "YZ": U(4), "x": X, "XS": F(0.02), "XZ": U(3)},
            **{"z": X[:, :2].copy(), "ZS": F(0.035), "ZZ": U(100)},
        },
        {"axis": 1},
    ),
    "where": (
        "com.microsoft.QLinearWhere",
        {"condition": X[:, :1] > 100, **binary(X, X[:, ::-1].copy())},
        {},
    ),
    "conv integer": ("ConvInteger", {"x": X, "K": KERNEL, "xz": U(7), "KZ": J(3)}, {"pads": [1, 1, 1, 1]}),
    "conv integer kernels": (
        "ConvInteger",
        {"x": X, "K": KERNEL.view(U), "_xz": 0, "KZ": U(120)},
        {"strides": [2, 1]},
    ),
    "conv integer plain": ("ConvInteger", {"x": X, "K": KERNEL}, {}),
    "matmul integer": ("MatMulInteger", {"a": A, "B": B, "az": U(9), "BZ": J(2)}, {}),
    "matmul integer columns": ("MatMulInteger", {"a": A, "B": B, "az": U(9), "BZ": np.arange(7).astype(J)}, {}),
    "matmul integer plain": ("MatMulInteger", {"a": integers(J, 2, 5, 16), "B": B}, {}),
    "matmul to float": (
        "com.microsoft.MatMulIntegerToFloat",
        {"a": A, "B": B, "as": F(0.02), "BS": scales(7), "az": U(9), "BZ": np.zeros(7, J), "BIAS": scales(7) * 9},
        {},
    ),
    "matmul to float plain": (
        "com.microsoft.MatMulIntegerToFloat",
        {"a": A, "B": B, "as": F(0.02), "BS": F(0.1)},
        {},
    ),
    "dynamic matmul": (
        "com.microsoft.DynamicQuantizeMatMul",
        {"a": A.astype(F) - 99.5, "B": B, "BS": scales(7), "BZ": np.zeros(7, J), "BIAS": scales(7) * 9},
        {},
    ),
    "dynamic matmul plain": ("com.microsoft.DynamicQuantizeMatMul", {"a": A.astype(F), "B": B, "BS": F(0.01)}, {}),
    **{
        f"{bits} bits{kind}": (
            "com.microsoft.MatMulNBits",
            few_bits(bits, kind),
            {"bits": bits, "block_size": 16} | NK,
        )
        for bits in (2, 4, 8)
        for kind in ("", " zeros", " float zeros", " groups", " groups zeros", " bias")
        if bits == 4 or (" groups" not in kind and (bits, kind) != (8, " float zeros"))
    },
    "attention": ("com.microsoft.QAttention", attend(scales(24) / 3), {"num_heads": 2}),
    "causal attention": ("com.microsoft.QAttention", attend(F(0.01), 5), {"num_heads": 4, "unidirectional": 1}),
    "masked attention": (
        "com.microsoft.QAttention",
        {**attend(F(0.01), 5), "M": np.array([[1, 1, 0, 1, 1], [1, 1, 1, 0, 1]], np.int32)},
        {"num_heads": 2},
    ),
    "4 bits opset 11": (
        "com.microsoft.MatMulNBits",
        few_bits(4, " zeros"),
        {"bits": 4, "block_size": 16, "opset": 11} | NK,
    ),
    **{
        f"bitsandbytes {kind}": (
            "com.microsoft.MatMulBnb4",
            {"x": FEW, "B": integers(U, 6 * 40 // 2), "ABS": scales(15)},
            {"block_size": 16, "quant_type": kind} | NK,
        )
        for kind in (0, 1)
    },
}
FLOAT_RESULTS = {"QAttention", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits", "MatMulBnb4"}
SUMS = {"ConvInteger", "MatMulInteger"}


def prepared(name: str) -> tuple[onnx.ModelProto, Inputs]:
    key, inputs, attributes = CASES[name]
    domain, _, op = key.rpartition(".")
    inputs, attributes = dict(inputs), dict(attributes)
    order = inputs.pop("order", "")
    if order == "C":
        items = list(inputs.items())
        inputs = dict([*items[:6], ("C", C), *items[6:]])
    elif order:
        inputs = dict(list(inputs.items())[:6])
    if "M" in inputs:
        inputs = {
            "M" if name == "_M" else name: inputs["M" if name == "_M" else name] for name in inputs if name != "M"
        }
    first = next(v for k, v in inputs.items() if k in ("x", "a"))
    kind = F if op in FLOAT_RESULTS or order == "float" else np.int32 if op in SUMS else first.dtype
    if "opset_" in attributes:
        semantics = attributes.pop("opset_")
        opset = attributes.pop("opset", 17)
        model = model_of(op, inputs, kind, opset, domain, **attributes)
        model.graph.node[0].attribute.append(helper.make_attribute("opset", semantics))
        return model, inputs
    return model_of(op, inputs, kind, attributes.pop("opset", 17), domain, **attributes), inputs


@pytest.mark.parametrize("name", CASES)
def test_same_values(name: str) -> None:
    """Integers may differ by one step at ties, which rounding decides: in at most one of a thousand values."""
    original, expanded = both(*prepared(name))
    if original.dtype == F:
        np.testing.assert_allclose(expanded, original, rtol=1e-5, atol=1e-5 * np.abs(original).max())
    elif original.dtype == np.int32:
        np.testing.assert_array_equal(expanded, original)
    else:
        assert len(np.unique(original)) > 5
        steps = np.abs(original.astype(int) - expanded.astype(int))
        assert steps.max() <= 1
        assert (steps > 0).sum() <= max(1, steps.size // 1000), (steps > 0).mean()


def test_every_expansion_has_a_case() -> None:
    operators = {key for key, expansion in EXPANSIONS.items() if expansion.__module__ == quantized.__name__}
    assert operators == {(d, op) for d, _, op in (key.rpartition(".") for key, _, _ in CASES.values())}


# Gradients


def gradient(text: str, x: np.ndarray, opset: int = 17, **weights: Any) -> tuple[np.ndarray, ...]:
    arrays = {name: np.asarray(value) for name, value in weights.items()}
    model = written(text, opset, ', "com.microsoft": 1', **arrays)
    y, v, g = by_graph(standard(model), {"x": x})
    np.testing.assert_allclose(session(model).run(["y"], {"x": x})[0], y, rtol=1e-5, atol=1e-5)
    return y, v, g


def fake(x: torch.Tensor, scale: float, zero: int, low: int = 0, high: int = 255) -> torch.Tensor:
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, low, high)


IMAGE = np.random.default_rng(0).normal(size=(2, 8, 6, 6)).astype(F)
WEIGHTS = {"xs": F(0.02), "xz": U(100), "k": KERNEL, "ks": F(0.004), "kz": J(0), "b": BIAS, "ys": F(0.08), "yz": U(0)}


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize("per_channel", [False, True])
def test_gradient_of_a_convolution_is_that_of_fake_quantisation(opset: int, per_channel: bool) -> None:
    """The output's zero point of 0 is a ReLU that the quantiser absorbed."""
    weights = WEIGHTS | ({"ks": scales(6) / 4, "kz": np.zeros(6, J)} if per_channel else {})
    text = """(float[2, 8, 6, 6] x) => (float[2, 6, 4, 4] y) {
        q = QuantizeLinear(x, xs, xz)
        r = QLinearConv(q, xs, xz, k, ks, kz, ys, yz, b)
        y = DequantizeLinear(r, ys, yz) }"""
    y, v, g = gradient(text, IMAGE, opset, **weights)
    x = torch.from_numpy(IMAGE).requires_grad_()
    scale = weights["ks"].reshape(-1, 1, 1, 1)
    kernel, bias = torch.from_numpy(KERNEL * scale), torch.from_numpy((BIAS * F(0.02) * weights["ks"]).astype(F))
    true = fake(torch.nn.functional.conv2d(fake(x, 0.02, 100), kernel, bias), 0.08, 0)
    true.backward(torch.from_numpy(v))
    assert 0.2 < (true == 0).float().mean() < 0.8
    np.testing.assert_allclose(y, true.detach(), atol=1e-4)
    np.testing.assert_allclose(g, x.grad, rtol=1e-4, atol=1e-4)


DYNAMIC = {
    "integer": """{
        q, s, z = DynamicQuantizeLinear(x)
        r = ConvInteger(q, k, z, kz)
        f = Cast<to=1>(r)
        t = Mul(s, ks)
        y = Mul(f, t) }""",
    "sums of integers": """{
        q, s, z = DynamicQuantizeLinear(x)
        r = ConvInteger(q, k, z, kz)
        u = Add(r, b)
        f = Cast<to=1>(u)
        t = Mul(s, ks)
        y = Mul(f, t) }""",
}


@pytest.mark.parametrize("name", DYNAMIC)
def test_gradient_of_dynamic_quantisation(name: str) -> None:
    """The scale that depends on the input counts as a constant."""
    text = "(float[2, 8, 6, 6] x) => (float[2, 6, 4, 4] y) " + DYNAMIC[name]
    weights = {"k": KERNEL, "ks": F(0.004), "kz": J(2), "b": BIAS.reshape(-1, 1, 1)}
    _, v, g = gradient(text, IMAGE, **{k: w for k, w in weights.items() if f" {k})" in text or f" {k}," in text})
    x = torch.from_numpy(IMAGE).requires_grad_()
    kernel = torch.from_numpy((KERNEL - F(2)) * F(0.004))
    torch.nn.functional.conv2d(x, kernel).backward(torch.from_numpy(v))
    np.testing.assert_allclose(g, x.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("MatMulNBits", few_bits(2, " groups"), {"bits": 2, "block_size": 16} | NK),
        ("MatMulNBits", few_bits(4, ""), {"bits": 4, "block_size": 16, "weight_prepacked": 1} | NK),
        ("MatMulBnb4", {"x": FEW, "B": integers(U, 120), "ABS": scales(8)}, {"block_size": 32, "quant_type": 0} | NK),
    ],
)
def test_weights_that_cannot_be_unpacked_remain_as_they_are(
    op: str, inputs: Inputs, attributes: dict[str, Any]
) -> None:
    with pytest.raises(NotExpandable):
        standard(model_of(op, inputs, F, **attributes))
