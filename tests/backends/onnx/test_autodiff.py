"""The engine: paths, sums, pruning, and the operators that it refuses by name."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_gradients import NEWEST, Arrays, backward, by_differences, by_graph, error, values_of, written
from xcam.errors import ModelError
from xcam_onnx import cut
from xcam_onnx.autodiff import OPSET

ANY = [11, 13, 18, 21, NEWEST]


def some(*shape: int) -> np.ndarray:
    return np.random.default_rng(100 + sum(shape) + len(shape)).normal(size=shape).astype(np.float32)


def gradients(model: onnx.ModelProto, feeds: Arrays, cotangents: Arrays, at: str = "x") -> np.ndarray:
    """Return the gradient of several outputs."""
    forward, backward_graph = cut.gradient(model, [at], list(cotangents))
    return backward(backward_graph, values_of(forward, feeds), cotangents)


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


# Paths

PATHS = {
    "read twice by one node": "(float[3, 4] x) => (float[3, 4] y) { y = Mul(x, x) }",
    "read by two nodes": "(float[3, 4] x) => (float[3, 4] y) { a = Sin(x) b = Exp(x) y = Sub(a, b) }",
    "read by three, at different depths": """(float[3, 4] x) => (float[3, 4] y) {
        a = Sin(x) b = Mul(a, x) c = Tanh(b) d = Add(c, a) y = Mul(d, x) }""",
    "a skip connection": "(float[3, 4] x) => (float[3, 4] y) { a = Tanh(x) b = Exp(a) y = Add(b, x) }",
    "two skips in a row": """(float[3, 4] x) => (float[3, 4] y) {
        a = Sin(x) b = Add(a, x) c = Sin(b) d = Add(c, b) y = Add(d, x) }""",
    "joined with itself": "(float[3, 4] x) => (float[6, 4] y) { a = Sin(x) y = Concat<axis=0>(a, x) }",
    "both parts of a split": """(float[3, 4] x) => (float[3, 2] y) {
        a, b = Split<axis=1>(x) c = Sin(b) y = Mul(a, c) }""",
    "the last part of a split": "(float[3, 4] x) => (float[3, 2] y) { a, b = Split<axis=1>(x) y = Exp(b) }",
    "a tensor to its own power": "(float[3, 4] x) => (float[3, 4] y) { a = Exp(x) y = Pow(a, a) }",
    "a matrix times its transpose": "(float[3, 4] x) => (float[3, 3] y) { t = Transpose(x) y = MatMul(x, t) }",
    "attention to itself": """(float[3, 4] x) => (float[3, 4] y) {
        t = Transpose(x) a = MatMul(x, t) s = Softmax(a) y = MatMul(s, x) }""",
    "summed, and taken off": """(float[3, 4] x) => (float[3, 4] y) {
        m = ReduceMean<axes=[1]>(x) c = Sub(x, m) s = Mul(c, c) v = ReduceMean<axes=[1]>(s) r = Sqrt(v) y = Div(c, r) }""",
    "a branch that ends nowhere": """(float[3, 4] x) => (float[3, 4] y) {
        a = Sin(x) b = Asinh(x) c = NonZero(b) y = Exp(a) }""",
    "indices next to values": """(float[3, 4] x) => (float[3, 4] y) {
        p = ArgMax<axis=1>(x) q = Cast<to=1>(p) a = Sin(x) y = Add(a, q) }""",
    "a shape of its own": """(float[3, 4] x) => (float[3, 4] y) {
        f = Flatten<axis=0>(x) s = Shape(x) r = Reshape(f, s) y = Mul(r, x) }""",
}


@pytest.mark.parametrize("sizes", ["fixed", "named"])
@pytest.mark.parametrize("name", PATHS)
def test_gradients_add_up_along_paths(name: str, sizes: str) -> None:
    text, x = PATHS[name], some(3, 4)
    model = written(text if sizes == "fixed" else re.sub(r"\[\d, \d\] (\w)", r"[\1N, \1M] \1", text), 17)
    _, v, g = by_graph(model, {"x": x})
    assert error(g, by_differences(model, {"x": x}, v)) < 1e-4


def test_a_layer_inside_the_model() -> None:
    """Paths that pass the layer by, and those that lead to it, do not count."""
    model = written("(float[3] x) => (float[3] y) { t = Sin(x) e = Exp(t) y = Mul(e, x) }")
    x, v = some(3), some(3) + 1
    forward, backward_graph = cut.gradient(model, ["t"], ["y"])
    g = backward(backward_graph, values_of(forward, {"x": x}), {"y": v})
    np.testing.assert_allclose(g, v * x * np.exp(np.sin(x)), rtol=1e-5)
    assert operators(forward) == ["Sin", "Exp", "Mul"]


OUTPUTS = """(float[3] x) => (float[3] y, float[3] z, float[1] s, float[3] w) {
    y = Sin(x) z = Exp(y) s = ReduceSum<keepdims=1>(x) w = Neg(c) }"""


def test_outputs_with_cotangents_of_their_own() -> None:
    """One output lies on the way to another; one is a sum; one does not depend on the layer."""
    x, c = some(3), some(3)
    model = written(OUTPUTS, 13, c=c)
    v = {"y": some(3) - 1, "z": some(3) + 2, "s": np.float32([0.5]), "w": some(3)}
    expected = np.cos(x) * (v["y"] + v["z"] * np.exp(np.sin(x))) + 0.5
    np.testing.assert_allclose(gradients(model, {"x": x}, v), expected, rtol=1e-5)
    del v["y"], v["w"]
    expected = np.cos(x) * v["z"] * np.exp(np.sin(x)) + 0.5
    np.testing.assert_allclose(gradients(model, {"x": x}, v), expected, rtol=1e-5)


def test_a_layer_that_is_an_output() -> None:
    model = written("(float[3] x) => (float[3] t, float[3] y) { t = Sin(x) y = Exp(t) }")
    forward, backward_graph = cut.gradient(model, ["t"], ["t", "y"])
    x, v = some(3), {"t": some(3) + 1, "y": some(3) - 1}
    g = backward(backward_graph, values_of(forward, {"x": x}), v)
    np.testing.assert_allclose(g, v["t"] + v["y"] * np.exp(np.sin(x)), rtol=1e-5)


def test_gradients_for_several_parts_of_a_split() -> None:
    """The middle part leads nowhere."""
    model = written("(float[2, 6] x) => (float[2, 2] y) { a, b, c = Split<axis=1>(x) s = Sin(c) y = Mul(a, s) }", 13)
    x, v = some(2, 6), some(2, 2)
    a, _, c = np.split(x, 3, axis=1)
    expected = np.concatenate([v * np.sin(c), 0 * a, v * a * np.cos(c)], 1)
    np.testing.assert_allclose(by_graph(model, {"x": x}, v)[2], expected, rtol=1e-5, atol=1e-7)


# Broadcasting

SUMS = {  # operators of the backward graph except the last one, which names the result
    "the same shape": ("float[2, 3] x, float[2, 3] b", []),
    "the same names": ("float[N, M] x, float[N, M] b", []),
    "one row": ("float[1, 3] x, float[2, 3] b", ["ReduceSum"]),
    "one row and one column": ("float[1, 1] x, float[2, 3] b", ["ReduceSum"]),
    "fewer axes": ("float[3] x, float[2, 3] b", ["ReduceSum", "Squeeze"]),
    "fewer axes, and one column": ("float[3, 1] x, float[2, 3, 4] b", ["ReduceSum", "Squeeze"]),
    "a single number": ("float x, float[2, 3] b", ["ReduceSum", "Squeeze"]),
}


@pytest.mark.parametrize("name", SUMS)
def test_a_broadcast_is_summed_once(name: str) -> None:
    inputs, expected = SUMS[name]
    rank = re.search(r"float(\[[^]]*\])? b", inputs)
    assert rank is not None
    model = written(f"({inputs}) => (float{rank.group(1)} y) {{ y = Add(x, b) }}")
    _, backward_graph = cut.gradient(model, ["x"], ["y"])
    assert operators(backward_graph.model) == [*expected, "Identity"]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("columns", [1, 3])
def test_the_run_decides_whether_a_named_size_was_broadcast(rows: int, columns: int) -> None:
    model = written("(float[N, M] x, float[K, L] b) => (float[A, B] y) { y = Mul(x, b) }")
    x, b, v = some(rows, columns), some(2, 3), some(2, 3) + 1
    g = by_graph(model, {"x": x, "b": b}, v)[2]
    expected = (v * b).sum(tuple(i for i, n in enumerate((rows, columns)) if n == 1), keepdims=True)
    np.testing.assert_allclose(g, expected, rtol=1e-5)


# The written graph

HEAD = "g = GlobalAveragePool(t) f = Flatten(g) y = Gemm<transB=1>(f, w, b)"
TAILS = {
    "a linear tail behind a convolution": (
        f"(float[N, 2, 6, 6] x) => (float[N, 5] y) {{ c = Conv(x, k) t = Relu(c) {HEAD} }}",
        {"Conv", "Relu", "Where"},
        {"w"},
        [],
    ),
    "a convolution behind": (
        f"(float[N, 2, 6, 6] x) => (float[N, 5] y) {{ t0 = Relu(x) t = Conv(t0, k, e) {HEAD} }}",
        {"Relu", "Where"},
        {"w", "k"},
        [],
    ),
    "next to a dead branch": (
        f"(float[N, 2, 6, 6] x) => (float[N, 5] y) {{ t = Relu(x) d = Conv(t, k) {HEAD} }}",
        {"Conv"},
        {"w"},
        [],
    ),
}
LAYERS = {"a linear tail behind a convolution": "t", "a convolution behind": "t0", "next to a dead branch": "t"}


@pytest.mark.parametrize("name", TAILS)
def test_only_needed_nodes_and_weights_are_written(name: str) -> None:
    text, absent, weights, expected = TAILS[name]
    outer = 3 if "c = Conv" in text or "Conv(t0" in text else 2
    fixed = {"k": some(3, 2, 3, 3), "e": some(3), "w": some(5, outer), "b": some(5)}
    _, backward_graph = cut.gradient(written(text, **fixed), [LAYERS[name]], ["y"])
    assert not absent & set(operators(backward_graph.model))
    floats = {t.name for t in backward_graph.model.graph.initializer if t.name in fixed}
    assert floats == weights
    tensors = [
        name for name in backward_graph.forward_values if not name.startswith("xcam/")
    ]  # else shapes: a few numbers
    assert tensors == expected
    needed = {name for node in backward_graph.model.graph.node for name in node.input}
    assert {t.name for t in backward_graph.model.graph.initializer} <= needed


def test_a_weight_keeps_its_name_and_its_value() -> None:
    w = some(5, 4)
    _, backward_graph = cut.gradient(
        written("(float[N, 4] x) => (float[N, 5] y) { y = Gemm<transB=1>(x, w) }", w=w), ["x"], ["y"]
    )
    (tensor,) = (t for t in backward_graph.model.graph.initializer if t.name == "w")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), w)


def test_optional_outputs_are_requested() -> None:
    model = written(
        "(float[1, 1, 4, 4] x) => (float[1, 1, 2, 2] y) { y = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(x) }"
    )
    forward, backward_graph = cut.gradient(model, ["x"], ["y"])
    (node,) = forward.graph.node
    assert node.output[1] in backward_graph.forward_values
    assert node.output[1] in {v.name for v in forward.graph.output}


def test_the_same_model_gives_the_same_graph() -> None:
    texts = [cut.gradient(written(PATHS["attention to itself"], 13), ["x"], ["y"]) for _ in range(2)]
    assert texts[0][0].SerializeToString() == texts[1][0].SerializeToString()
    assert texts[0][1].model.SerializeToString() == texts[1][1].model.SerializeToString()


# Versions of the operators

NETWORK = """(float[N, 3, 7, 7] x) => (float[N, 4] y) {
    c = Conv<pads=[1, 1, 1, 1], strides=[2, 2]>(x, k) n = BatchNormalization(c, s, b, m, v) r = Relu(n)
    p = MaxPool<kernel_shape=[2, 2], strides=[1, 1]>(r) q = Conv<pads=[1, 1, 1, 1]>(p, l) h = Sigmoid(q)
    a = Mul(q, h) d = Add(a, p) g = GlobalAveragePool(d) f = Flatten(g) z = Gemm<transB=1>(f, w) y = Softmax<axis=1>(z) }"""
BLOCK = """(float[N, 5, 8] x) => (float[N, 5, 8] y) {
    n = LayerNormalization(x, s, b) q = MatMul(n, w) k = MatMul(n, l) t = Transpose<perm=[0, 2, 1]>(k) a = MatMul(q, t)
    p = Softmax<axis=-1>(a) c = MatMul(p, n) d = Add(c, x) e = Div(d, two) f = Erf(e) g = Add(f, one) h = Mul(d, g)
    y = Mul(h, half) }"""


def _network() -> dict[str, np.ndarray]:
    positive = np.abs(some(4)) + 0.5
    return {
        "k": some(4, 3, 3, 3) / 3,
        "l": some(4, 4, 3, 3) / 3,
        "w": some(4, 4),
        "s": positive,
        "b": some(4),
        "m": some(4),
        "v": positive,
    }


@pytest.mark.parametrize("opset", ANY)
def test_a_convolutional_network_of_any_version(opset: int) -> None:
    model, x = written(NETWORK, opset, **_network()), some(1, 3, 7, 7)
    _, v, g = by_graph(model, {"x": x})
    reference = written(NETWORK, max(opset, 15), **_network())  # before, the reference is wrong in BatchNormalization
    assert error(g, by_differences(reference, {"x": x}, v)) < 1e-3
    backward_graph = cut.gradient(model, ["x"], ["y"])[1].model
    assert backward_graph.opset_import[0].version == max(opset, OPSET)


@pytest.mark.parametrize("opset", [17, 21, NEWEST])
def test_a_transformer_block_of_any_version(opset: int) -> None:
    weights = {"w": some(8, 8) / 3, "l": some(8, 8) / 3, "s": some(8), "b": some(8)}
    weights |= {"two": np.float32(np.sqrt(2)), "one": np.float32(1), "half": np.float32(0.5)}
    model, x = written(BLOCK, opset, **weights), some(2, 5, 8)
    _, v, g = by_graph(model, {"x": x})
    assert error(g, by_differences(model, {"x": x}, v, step=1e-4)) < 2e-3  # the reference approximates Erf


@pytest.mark.parametrize("opset", [11, 13, 18, NEWEST])
def test_constants_made_by_nodes(opset: int) -> None:
    model = written("(float[2] x) => (float[2] y) { c = Constant<value = float[2] {2, 3}>() y = Mul(x, c) }", opset)
    np.testing.assert_array_equal(by_graph(model, {"x": some(2)}, np.ones(2, np.float32))[2], [2, 3])


def test_an_operator_that_changed_its_meaning_is_read_by_its_version() -> None:
    """Softmax up to version 11 treats all axes from the given one on as one."""
    text = "(float[2, 2, 2] x) => (float[2, 2, 2] y) { y = Softmax<axis=1>(x) }"
    x, v = some(2, 2, 2), some(2, 2, 2) + 1
    y = np.exp(x) / np.exp(x).sum((1, 2), keepdims=True)
    old = v * y - y * (v * y).sum((1, 2), keepdims=True)
    np.testing.assert_allclose(by_graph(written(text, 11), {"x": x}, v)[2], old, rtol=1e-5, atol=1e-7)
    y = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    new = v * y - y * (v * y).sum(1, keepdims=True)
    np.testing.assert_allclose(by_graph(written(text, 13), {"x": x}, v)[2], new, rtol=1e-5, atol=1e-7)


# Quantised values


@pytest.mark.parametrize("quantised", [True, False])
def test_gradients_pass_straight_through_quantised_values(quantised: bool) -> None:
    pair = "q = QuantizeLinear(a, s, z) r = DequantizeLinear(q, s, z)" if quantised else "r = Identity(a)"
    model = written(
        f"(float[2] x) => (float[2] y) {{ a = Mul(x, x) {pair} y = Sin(r) }}", s=np.float32(0.1), z=np.uint8(3)
    )
    x, v = np.float32([0.73, -1.21]), np.float32([1, 2])
    rounded = np.round(x * x / np.float32(0.1)) * 0.1 if quantised else x * x
    np.testing.assert_allclose(by_graph(model, {"x": x}, v)[2], v * np.cos(rounded) * 2 * x, rtol=1e-5)


# Refused graphs

LINE = "choose a layer behind|choose another layer"
REFUSED: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "an operator without a rule": ("{ a = Sin(x) [the_node] y = Asinh(a) }", {}, ["Asinh", "the_node"]),
    "without a name": ("{ a = Sin(x) y = Asinh(a) }", {}, [r"Asinh \(y\)"]),
    "several": (
        "{ [n0] a = Asinh(x) [n1] b = Asinh(a) [n2] c = Asinh(b) [n3] d = Asinh(c) [n4] e = Atanh(d) [n5] y = Mod<fmod=1>(e, x) }",
        {},
        [r"Asinh \(n0, n1, n2 and 1 more\)", r"Atanh \(n4\)", r"Mod \(n5\)"],
    ),
    "of another domain": ("{ [n0] y = com.acme.Twist(x) }", {}, [r"com\.acme:Twist \(n0\)"]),
    "a recurrent layer": ("{ [n0] a, h = GRU<hidden_size=3>(x, w, r) y = Squeeze(h) }", {}, [r"GRU \(n0\)"]),
    "a branch": (
        """{ [n0] y = If (c) <then_branch = p () => (float[2, 3] a) { a = Sin(x) },
        else_branch = q () => (float[2, 3] b) { b = Cos(x) }> }""",
        {"c": np.asarray(True)},
        [r"If \(n0\)"],
    ),
    "a loop": (
        """{ [n0] y = Loop (m, c, x) <body = p (int64 i, bool k, float[2, 3] a) => (bool l, float[2, 3] b)
        { l = Identity(k) b = Sin(a) }> }""",
        {"c": np.asarray(True), "m": np.asarray(2)},
        [r"Loop \(n0\)"],
    ),
    "integers": ("{ a = Cast<to=7>(x) y = Cast<to=1>(a) }", {}, ["'x'", "integers"]),
    "small integers": ("{ a = Cast<to=3>(x) y = Cast<to=1>(a) }", {}, ["'x'", "integers"]),
    "indices": ("{ a = ArgMax(x) y = Cast<to=1>(a) }", {}, ["'x'", "integers"]),
    "no path": ("{ a = Sin(x) y = Neg(c) }", {"c": some(2, 3)}, ["'x'", "no differentiable path"]),
    "steps alone": ("{ y = Floor(x) }", {}, ["'x'", "no differentiable path"]),
    "a kernel that depends on the layer": (
        "{ k = Reshape(x, s) [n0] y = Conv(c, k) }",
        {"s": np.int64([1, 1, 2, 3]), "c": some(1, 1, 4, 4)},
        ["'n0'", r"\(Conv\)", "input 1"],
    ),
    "a scale that depends on the layer": (
        "{ s = ReduceMean<keepdims=0, axes=[0]>(x) [n0] y = LayerNormalization(c, s) }",
        {"c": some(4, 3)},
        ["'n0'", r"\(LayerNormalization\)", "input 1"],
    ),
    "dropout in training": (
        "{ [n0] y = Dropout(x, r, t) }",
        {"r": np.float32(0.5), "t": np.asarray(True)},
        ["'n0'", r"\(Dropout\)", "training_mode"],
    ),
    "statistics of the batch": (
        "{ [n0] y, a, b = BatchNormalization<training_mode=1>(x, m, m, m, m) }",
        {"m": np.abs(some(3))},
        ["'n0'", r"\(BatchNormalization\)", "training_mode"],
    ),
    "axes that are not fixed": (
        "{ s = Shape(x) h = Shape(s) z = Sub(h, h) [n0] y = ReduceSum(x, z) }",
        {},
        ["'n0'", r"\(ReduceSum\)", "axes"],
    ),
    "a label twice": ('{ [n0] y = Einsum<equation="ii->i">(x) }', {}, ["'n0'", r"\(Einsum\)", "repeats"]),
    "a label broadcast": (
        '{ [n0] y = Einsum<equation="ij,ij->ij">(x, c) }',
        {"c": some(1, 3)},
        ["'n0'", r"\(Einsum\)", "broadcasts"],
    ),
    "the maximum of scattered values": (
        '{ [n0] y = ScatterElements<reduction="max">(x, i, c) }',
        {"i": np.int64([[0]]), "c": some(1, 1)},
        ["'n0'", r"\(ScatterElements\)", "max"],
    ),
    "indices in columns": (
        "{ e = Unsqueeze(x, a) [n0] y = MaxPool<kernel_shape=[1], storage_order=1>(e) }",
        {"a": np.int64([0])},
        ["'n0'", r"\(MaxPool\)", "column-major"],
    ),
    "a crop": (
        '{ [n0] y = Resize<coordinate_transformation_mode="tf_crop_and_resize", mode="linear">(x, r, s) }',
        {"r": np.float32([0, 0, 1, 1]), "s": np.float32([2, 2])},
        ["'n0'", r"\(Resize\)", "crop"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line_with_the_node_and_a_remedy(name: str) -> None:
    body, fixed, patterns = REFUSED[name]
    square = "repeats" in patterns
    text = f"(float[{'3, 3' if square else '2, 3'}] x{', float[1, 3, 1] w, float[1, 3, 1] r' if 'GRU' in body else ''}) => (float[] y) {body}"
    opset = 17 if "ReduceMean" in body else 18
    model = written(text.replace("[] y", " y"), opset, ', "com.acme": 1', **fixed)
    with pytest.raises(ModelError) as refusal:
        cut.gradient(model, ["x"], ["y"])
    message = str(refusal.value)
    assert "\n" not in message
    for pattern in [*patterns, LINE, "a method that needs no gradient: eigencam"]:
        assert re.search(pattern, message), (pattern, message)


def test_a_second_output_that_leads_to_the_score_is_refused() -> None:
    text = "(float[2, 3] x) => (float[2, 3] y) { [n0] y0, a, b = LayerNormalization(x, s) y = Mul(y0, a) }"
    with pytest.raises(ModelError, match=r"'n0' \(LayerNormalization\).*output 1"):
        cut.gradient(written(text, 17, s=some(3)), ["x"], ["y"])


FUNCTION = """<ir_version: 9, opset_import: ["": 18, "local": 1]>
g (float[2, 3] x) => (float[2, 3] y) { a = Sin(x) [call] y = local.Double(a) }
<domain: "local", opset_import: ["": 18]> Double (p) => (q) { q = Add(p, p) }"""


def test_functions_of_the_model_are_refused_by_name() -> None:
    model = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(FUNCTION))
    with pytest.raises(ModelError, match=r"local:Double \(call\)"):
        cut.gradient(model, ["x"], ["y"])
