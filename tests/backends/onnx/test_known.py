"""Values that follow from the shape of the input, against ONNX Runtime; unknown ones differ between batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnx_gradients import session, written
from xcam_onnx.graph import Graph, inferred
from xcam_onnx.known import LIMIT, Known

MOVES = """{
    s = Shape(x)
    one = Constant<value = int64[1] {1}>()
    two = Constant<value = int64[1] {2}>()
    zero = Constant<value = int64 {0}>()
    three = Constant<value = int64 {3}>()
    minus = Constant<value = int64[1] {-1}>()
    height = Gather(s, two)
    batch = Gather<axis = 0>(s, zero)
    width = Gather(s, three)
    wide = Unsqueeze@(width)
    both = Concat<axis = 0>(height, wide)
    mixed = Concat<axis = -1>(minus, s, both)
    tail = Slice(mixed, one, minus)
    behind = Slice(mixed, minus, minus, zero1, minus)
    narrow = Cast<to = 6>(tail)
    real = Cast<to = 1>(tail)
    square = Reshape(both, pair)
    turned = Transpose(square)
    flat = Squeeze@(square)
    grown = Expand(two, pair)
    n, rest = Split@(s)
    same = Identity(rest)
    y = Relu(x)
}"""
ARITHMETIC = """{
    s = Shape(x)
    one = Constant<value = int64[1] {1}>()
    minus = Constant<value = int64[1] {-7}>()
    t = Add(s, one)
    u = Sub(one, s)
    v = Mul(t, u)
    w = Div(v, minus)
    a = Abs(v)
    b = Neg(a)
    r = Mod(s, t)
    mf = Mod<fmod = 1>(one, minus)
    f = Cast<to = 1>(s)
    h = Div(f, half)
    fl = Floor(h)
    ce = Ceil(h)
    q = Sqrt(f)
    m = Max(f, h, fl)
    l = Min(f, h)
    e = Equal(s, one)
    g = Greater(s, t)
    k = Less(s, t)
    no = Not(e)
    and = And(e, g)
    or = Or(no, k)
    xor = Xor(e, k)
    where = Where(k, s, t)
    where2 = Where(e, s, minus)
    y = Relu(x)
}"""
COMPUTED = """{
    s = Shape(x)
    one = Constant<value = int64[1] {1}>()
    two = Constant<value = int64[1] {2}>()
    four = Constant<value = int64[1] {4}>()
    space = Slice(s, two, four)
    p = ReduceProd<keepdims = 0>(space)
    m = ReduceMax(space)
    l = ReduceMin<keepdims = 0>(space)
    size = Size(x)
    start = Constant<value = int64 {0}>()
    step = Constant<value = int64 {3}>()
    range = Range(start, p, step)
    full = ConstantOfShape<value = int64[1] {5}>(space)
    zeros = ConstantOfShape(two)
    y = Relu(x)
}"""


def by_runtime(model: onnx.ModelProto, names: list[str], rows: int) -> dict[str, np.ndarray]:
    """Return tensors of a run on a batch of some rows."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    listed = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in listed)
    x = np.zeros((rows, 3, 6, 5), np.float32)
    return dict(zip(names, session(copy).run(names, {"x": x}), strict=True))


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("text", [MOVES, ARITHMETIC, COMPUTED])
def test_values_that_follow_from_the_shape(text: str, opset: int) -> None:
    old = opset < 13
    forms = {
        "Unsqueeze@(width)": "Unsqueeze<axes = [0]>(width)" if old else "Unsqueeze(width, zero1)",
        "Squeeze@(square)": "Squeeze<axes = [0]>(square)" if old else "Squeeze(square, zero1)",
        "Split@(s)": "Split<split = [1, 3]>(s)" if old else "Split(s, parts)",
    }
    for sign, form in forms.items():
        text = text.replace(sign, form)
    used: dict[str, Any] = {"zero1": np.array([0]), "pair": np.array([1, 2]), "parts": np.array([1, 3])}
    used["half"] = np.float32(0.7)
    weights = {name: value for name, value in used.items() if name in text}
    model = written(f"(float[N, 3, 6, 5] x) => (float[N, 3, 6, 5] y) {text}", opset, **weights)
    known = Known(Graph(inferred(model)), {})
    names = [name for node in model.graph.node for name in node.output if name != "y"]
    first, second, third = (by_runtime(model, names, rows) for rows in (2, 13, 1))
    for name in names:
        value = known.get(name)
        differs = any((first[name] != other[name]).any() for other in (second, third))
        if name in ("size", "mf"):  # the remainder with the sign of the dividend is not computed
            assert value is None
            continue
        assert value is not None, name
        assert value.array.shape == first[name].shape
        assert value.array.dtype == first[name].dtype or value.array.dtype.kind == "b"
        np.testing.assert_array_equal(value.array[~value.unknown], first[name][~value.unknown], err_msg=name)
        assert not differs or value.unknown.any(), name
        fixed = np.array([first[name] == second[name], first[name] == third[name]]).all(0)
        assert not (~fixed & ~value.unknown).any(), name


def test_one_operand_may_decide() -> None:
    text = """(float[N, 3] x) => (float[N, 3] y) {
        s = Shape(x)
        one = Constant<value = int64[1] {1}>()
        zero = Constant<value = int64[1] {0}>()
        n = Gather(s, zero)
        c = Gather(s, one)
        first = Equal(n, one)
        second = Equal(c, one)
        third = Greater(c, one)
        and = And(first, second)
        or = Or(first, third)
        open = And(first, third)
        either = Or(first, second)
        chosen = Where(third, c, n)
        unchosen = Where(second, c, n)
        y = Relu(x) }"""
    known = Known(Graph(written(text)), {})
    assert [known.complete(name) for name in ("and", "or", "chosen")] == [[False], [True], [3]]
    assert [known.complete(name) for name in ("open", "either", "unchosen")] == [None] * 3


def test_values_of_the_image_and_large_ones_are_unknown() -> None:
    text = """(float[2, 3] x) => (float[2, 3] y) {
        largest = ReduceMax(x)
        random = RandomNormal<shape = [2]>()
        many = ConstantOfShape(n)
        wide = Expand(one, n)
        y = Relu(x) }"""
    known = Known(Graph(written(text, 17, n=np.array([LIMIT + 1]), one=np.array([1]))), {})
    assert [known.get(name) for name in ("x", "largest", "random", "many", "wide")] == [None] * 5
