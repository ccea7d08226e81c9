"""Operators that read or write at indices: the rules of `xcam_onnx.autodiff.rules.indexing`.

Values stay away from kinks and ties, where no derivative exists.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from onnx_gradients import NEWEST, by_graph, written
from onnx_rules import Case, Cases, Draw, gradients, in_other_precisions, ints, one, rules_of

case = Cases()


@case("TopK")
def top_k(d: Draw) -> Case:
    x = d.distinct(*d.shape(1, 3))
    axis, largest = d.axis(x.ndim), d.flag()
    k = d.whole(1, x.shape[axis])
    attributes = {"axis": axis, "largest": int(largest), "sorted": 1, "outputs": 2}
    function = lambda x, k: x.topk(int(k), axis, largest).values  # noqa: E731
    return one(d, {"x": x, "k": ints(k)}, function, free="k", by="runtime", step=0.25, **attributes)


@case("Gather")
def gather(d: Draw) -> Case:
    x = d.any(*d.shape(1, 4))
    axis = d.axis(x.ndim)
    indices = d.rng.integers(-x.shape[axis], x.shape[axis], d.of((), (1,), (3,), (2, 2), (1, 1)))

    def function(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        picked = x.index_select(axis, (i % x.shape[axis]).reshape(-1))
        return picked.reshape(x.shape[: axis % x.ndim] + i.shape + x.shape[axis % x.ndim + 1 :])

    return one(d, {"x": x, "i": np.asarray(indices, d.of(np.int64, np.int32))}, function, free="i", axis=axis)


@case("GatherElements")
def gather_elements(d: Draw) -> Case:
    x = d.any(*d.shape(1, 3))
    axis = d.axis(x.ndim)
    shape = [d.whole(1, 5) if k == axis % x.ndim else d.whole(1, n) for k, n in enumerate(x.shape)]
    indices = d.rng.integers(-x.shape[axis], x.shape[axis], shape)
    function = lambda x, i: x.gather(axis, i % x.shape[axis])  # noqa: E731
    return one(d, {"x": x, "i": indices}, function, free="i", by="torch", axis=axis)


@case("GatherND")
def gather_nd(d: Draw) -> Case:
    x = d.any(*d.shape(1, 4))
    opset = d.opset(11, 12, 13, NEWEST)
    lead = d.whole(0, x.ndim - 1) if opset > 11 else 0
    depth = d.whole(1, x.ndim - lead)
    shape = (*x.shape[:lead], *d.shape(0 if lead else 1, 2, 3))
    indices = np.stack([d.rng.integers(-n, n, shape) for n in x.shape[lead : lead + depth]], -1)
    attributes = {"batch_dims": lead} if lead else {}

    def function(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        grids = np.indices(shape)[:lead]
        return x[(*(torch.from_numpy(grid) for grid in grids), *i.unbind(-1))]

    return one(d, {"x": x, "i": indices}, function, free="i", by="torch", opset=opset, **attributes)


@case("ScatterElements")
def scatter_elements(d: Draw) -> Case:
    """Without a reduction each index may be written once."""
    x = d.any(*d.shape(1, 3))
    axis, opset = d.axis(x.ndim), d.opset(11, 13, 16, 18, NEWEST)
    add = opset >= 16 and d.flag()
    n = x.shape[axis]
    shape = [d.whole(1, n + 2 * add) if k == axis % x.ndim else d.whole(1, m) for k, m in enumerate(x.shape)]
    indices = d.rng.integers(0, n, shape) if add else np.argsort(d.rng.random([n if k == axis % x.ndim else m for k, m in enumerate(shape)]), axis).take(range(shape[axis]), axis)  # fmt: skip
    indices = indices - n * d.rng.integers(0, 2, shape)
    attributes = {"reduction": "add" if add else "none"} if opset >= 16 else {}

    def function(x: torch.Tensor, i: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        i = i % n
        return x.scatter_add(axis, i, u) if add else x.scatter(axis, i, u)

    values = {"x": x, "i": indices, "u": d.any(*shape)}
    return one(d, values, function, at="xu", free="iu", by="torch", opset=opset, axis=axis, **attributes)


@case("ScatterND")
def scatter_nd(d: Draw) -> Case:
    x = d.any(*d.shape(1, 3))
    depth, opset = d.whole(1, x.ndim), d.opset(11, 13, 16, 18, NEWEST)
    add = opset >= 16 and d.flag()
    places = math.prod(x.shape[:depth])
    count = d.whole(1, places)
    picked = d.rng.integers(0, places, count) if add else d.rng.permutation(places)[:count]
    indices = np.stack(np.unravel_index(picked, x.shape[:depth]), -1).astype(np.int64)
    attributes = {"reduction": "add" if add else "none"} if opset >= 16 else {}
    function = lambda x, i, u: x.index_put(tuple(i.unbind(-1)), u, accumulate=add)  # noqa: E731
    values = {"x": x, "i": indices, "u": d.any(count, *x.shape[depth:])}
    return one(d, values, function, at="xu", free="iu", by="torch", opset=opset, **attributes)


test_gradient = gradients(case)
test_other_precisions = in_other_precisions(case)

REPEATED: dict[str, tuple[str, np.ndarray]] = {
    "Gather": ("Gather<axis=0>(a, i)", ints(1, 1, 3)),
    "GatherElements": ("GatherElements<axis=0>(a, i)", ints(1, 1, 3)),
    "GatherND": ("GatherND(a, i)", ints([1], [1], [3])),
}
"""An operator that reads the values 1, 1, 3 of `a`, and its indices."""


@pytest.mark.parametrize("narrow", ["float16", "bfloat16"])
@pytest.mark.parametrize("op", REPEATED)
def test_narrow_types_add_up_in_float32(op: str, narrow: str) -> None:
    expression, indices = REPEATED[op]
    kind = {"float16": 10, "bfloat16": 16}[narrow]
    text = f"""(float[4] x) => (float[3] y) {{
        a = Cast<to={kind}>(x)
        b = {expression}
        y = Cast<to=1>(b) }}"""
    x = np.float32([4, 2, 1, 3])
    y, _, g = by_graph(written(text, i=indices), {"x": x}, np.float32([1, 2, 3]))
    np.testing.assert_array_equal(y, x[[1, 1, 3]])
    np.testing.assert_array_equal(g, [0, 1 + 2, 0, 3])


def test_every_rule_has_cases() -> None:
    assert case.operators == rules_of("indexing")
