"""Sequences of tensors: their members replace them; values and gradients against plain operators."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import xcam
from onnx_gradients import by_graph, written

X = np.random.default_rng(0).normal(size=(2, 6, 4, 4)).astype(np.float32)
HEAD = """
    mean = GlobalAveragePool(q)
    y = Flatten(mean) }"""


def assert_same(text: str, plain: str, opset: int = 18, **weights: np.ndarray) -> onnx.ModelProto:
    """Compare two graphs that begin with the layer `a`: values by ONNX Runtime, gradients by the plain graph."""
    start = "(float[N, 6, 4, 4] x) => (float[N, m] y) { a = Tanh(x)"
    model, reference = (written(start + nodes + HEAD, opset, **weights) for nodes in (text, plain))
    opened = xcam.load(model, layout="channels_first")
    expected = ort.InferenceSession(model.SerializeToString()).run(None, {"x": X})[0]
    v = np.random.default_rng(1).normal(size=expected.shape).astype(np.float32)
    trace = opened.trace(X, "a", lambda y: [v])
    np.testing.assert_allclose(trace.outputs, expected, atol=1e-6)
    np.testing.assert_allclose(opened.predict(X), expected, atol=1e-6)
    y, _, g = by_graph(reference, {"x": X}, v)
    np.testing.assert_allclose(y, expected, atol=1e-6)
    np.testing.assert_allclose(trace.gradients[0] * (1 - np.tanh(X) ** 2), g, atol=1e-6)
    return opened._recording(X).form.original  # type: ignore[no-any-return]


def test_a_list_that_a_loop_fills() -> None:
    text = """
        empty = SequenceEmpty()
        list = Loop (n, , empty) <body = rounds (int64 i, bool go, seq(float[N, 6, 4, 4]) before)
            => (bool on, seq(float[N, 6, 4, 4]) after) {
            on = Identity(go)
            k = Cast<to = 1>(i)
            b = Mul(a, k)
            c = Sin(b)
            after = SequenceInsert(before, c)
        }>
        q = ConcatFromSequence<axis = 1>(list)"""
    plain = """
        b = Add(a, a)
        c0 = Sub(a, a)
        c1 = Sin(a)
        c2 = Sin(b)
        q = Concat<axis = 1>(c0, c1, c2)"""
    model = assert_same(text, plain, n=np.array(3))
    assert not any("Sequence" in node.op_type for node in model.graph.node)


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_parts_of_a_tensor(opset: int) -> None:
    text = """
        parts = SplitToSequence<axis = 1>(a, sizes)
        count = SequenceLength(parts)
        last = Sub(count, one)
        p = SequenceAt(parts, last)
        r = SequenceAt(parts, zero)
        q = Mul(p, r)"""
    plain = """
        r, unused, p = Split<axis = 1>(a, sizes)
        q = Mul(p, r)"""
    if opset < 13:
        plain = plain.replace("axis = 1>(a, sizes)", "axis = 1, split = [2, 2, 2]>(a)")
    integers = {"one": np.array(1), "zero": np.array(0), "sizes": np.array([2, 2, 2])}
    assert_same(text, plain, opset, **integers)


@pytest.mark.parametrize("opset", [11, 18])
def test_rows_without_their_axis(opset: int) -> None:
    text = """
        parts = SplitToSequence<axis = 1, keepdims = 0>(a)
        fewer = SequenceErase(parts, two)
        b = SequenceAt(fewer, minus)
        c = SequenceAt(fewer, two)
        pair = SequenceConstruct(b, c)
        more = SequenceInsert(pair, b, zero)
        q = ConcatFromSequence<axis = 1, new_axis = 1>(more)"""
    plain = "q = Gather<axis = 1>(a, i)"
    integers = {"two": np.array(2), "minus": np.array(-1), "zero": np.array(0), "i": np.array([5, 5, 3])}
    assert_same(text, plain, opset, **integers)


def test_equal_parts() -> None:
    text = """
        parts = SplitToSequence<axis = 1>(a, four)
        q = SequenceAt(parts, one)"""
    assert_same(
        text,
        "q = Slice(a, f, s, o)",
        four=np.array(4),
        one=np.array(1),
        f=np.array([4]),
        s=np.array([6]),
        o=np.array([1]),
    )
