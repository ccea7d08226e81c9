"""Operators that rearrange: the rules of `xcam_onnx.autodiff.rules.shape`.

Values stay away from kinks and ties, where no derivative exists.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (as everywhere)
from hypothesis import strategies as st

from onnx_gradients import NEWEST
from onnx_rules import Case, Cases, Draw, Values, gradients, in_other_precisions, ints, one, rules_of

case = Cases()


def _number(
    d: Draw, name: str, values: Values, attribute: str, numbers: list[int], since: int
) -> tuple[int, dict[str, Any]]:
    """Add a list of numbers: an attribute before the version `since`, an input from it on."""
    opset = d.opset(11, 13, 18, 21, NEWEST)
    if opset < since:
        return opset, {attribute: numbers}
    values[name] = ints(*numbers)
    return opset, {}


@case("Reshape")
def reshape(d: Draw) -> Case:
    x = d.any(*d.shape(1, 4))
    to = d.of([-1], [0, -1], [x.size, 1], [1, -1, 1], list(x.shape[::-1]), [*x.shape[:-1], 1, -1])
    return one(d, {"x": x, "s": ints(*to)}, fixed="s")


@case("Flatten")
def flatten(d: Draw) -> Case:
    x = d.any(*d.shape(1, 4))
    axis = d.whole(-x.ndim, x.ndim)
    cut = axis % x.ndim if axis != x.ndim else axis
    return one(d, {"x": x}, lambda x: x.reshape(math.prod(x.shape[:cut]), -1), axis=axis)


@case("Squeeze")
def squeeze(d: Draw) -> Case:
    axes = d.some(rank := d.whole(1, 4), 1)
    values = {"x": d.any(*(1 if i in [a % rank for a in axes] else d.whole(2, 3) for i in range(rank)))}
    function = lambda x, a=None: x.squeeze(tuple(i for i, n in enumerate(x.shape) if n == 1))  # noqa: E731
    if d.flag():
        return one(d, values, function, symbolic=())
    opset, attributes = _number(d, "a", values, "axes", axes, 13)
    return one(d, values, function, fixed="a", by="torch", opset=opset, **attributes)


@case("Unsqueeze")
def unsqueeze(d: Draw) -> Case:
    rank = d.whole(1, 5)
    axes = sorted(a % rank for a in d.some(rank, 1))
    values = {"x": d.any(*d.each(rank - len(axes), 1, 3))}
    opset, attributes = _number(d, "a", values, "axes", [a - rank if d.flag() else a for a in axes], 13)

    def function(x: torch.Tensor, a: Any = None) -> torch.Tensor:
        for axis in axes:
            x = x.unsqueeze(axis)
        return x

    return one(d, values, function, fixed="a", by="torch", opset=opset, **attributes)


@case("Transpose")
def transpose(d: Draw) -> Case:
    x = d.any(*d.shape(1, 5, 3))
    perm = d.data.draw(st.permutations(range(x.ndim)))
    attributes = {"perm": perm} if d.flag() else {}
    return one(d, {"x": x}, lambda x: x.permute(attributes.get("perm", list(range(x.ndim))[::-1])), **attributes)


@case("Expand")
def expand(d: Draw) -> Case:
    to = d.shape(1, 4)
    x = d.any(*d.broadcast(to))
    asked = ints(
        *(1 if i >= len(to) - x.ndim and d.flag() and n == x.shape[i - len(to)] else n for i, n in enumerate(to))
    )
    return one(d, {"x": x, "s": asked}, lambda x, s: x.expand(to), free="s")


@case("Tile")
def tile(d: Draw) -> Case:
    x = d.any(*d.shape(1, 4, 3))
    times = d.each(x.ndim, 1, 3)
    return one(d, {"x": x, "t": ints(*times)}, lambda x, t: x.tile(times), free="t")


@case("Concat")
def concat(d: Draw) -> Case:
    shape = d.shape(1, 3)
    axis, values = d.axis(len(shape)), {}
    for name in "xbcd"[: d.whole(1, 4)]:
        values[name] = d.any(*(d.whole(1, 3) if i == axis % len(shape) else n for i, n in enumerate(shape)))
    function = lambda *xs: torch.cat(xs, axis)  # noqa: E731
    return one(d, values, function, at=list(values), free="bcd", axis=axis)


@case("Split")
def split(d: Draw) -> Case:
    """Differentiate the first part; `test_autodiff` differentiates several."""
    rank, count = d.whole(1, 3), d.whole(1, 3)
    axis, sizes = d.axis(rank), d.each(count, 1, 3)
    equal = d.flag()
    sizes = sizes[:1] * count if equal else sizes
    values = {"x": d.any(*(sum(sizes) if i == axis % rank else d.whole(1, 3) for i in range(rank)))}
    if equal:
        opset = d.opset(11, 13, 18, NEWEST)
        attributes: dict[str, Any] = {"num_outputs": count} if opset >= 18 else {}
    else:
        opset, attributes = _number(d, "s", values, "split", sizes, 13)
    function = lambda x, s=None: x.split(sizes, axis)[0]  # noqa: E731
    return one(d, values, function, fixed="s", opset=opset, axis=axis, outputs=count, **attributes)


@case("Slice")
def slice_(d: Draw) -> Case:
    """Any ends, also beyond the borders, and any steps; constant or computed while the model runs."""
    x = d.any(*d.shape(1, 3, 7))
    axes = d.some(x.ndim, 1)
    steps = [d.of(1, 1, 2, 3, -1, -2) for _ in axes]
    starts, ends = [], []
    for axis, step in zip(axes, steps, strict=True):
        n = x.shape[axis]
        a, b = sorted((d.whole(0, n - 1), d.whole(0, n - 1)))
        first, last = (a, b + 1) if step > 0 else (b, a - 1)
        starts.append(first - n if d.flag() else first)
        ends.append(last - n if d.flag() or last < 0 else last if last < n else d.of(n, 2**31, n + 5))
    values = {"x": x, "s": ints(*starts), "e": ints(*ends), "a": ints(*axes), "t": ints(*steps)}
    if set(steps) == {1} and d.flag():
        del values["t"]
    if max(ends) < 2**31 and d.flag():
        values |= {name: v.astype(np.int32) for name, v in values.items() if name != "x"}
    where = tuple(slice(None) for _ in x.shape)

    def function(x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        for s, e, axis, step in zip(starts, ends, axes, steps, strict=True):
            picked = np.arange(x.shape[axis])[slice(s, e if e >= -x.shape[axis] else None, step)]
            x = x.index_select(axis, torch.from_numpy(picked.copy()))
        return x[where]

    return one(d, values, function, fixed="at", free="se")


@case("Pad")
def pad(d: Draw) -> Case:
    """Negative widths crop. Wrapping exists since version 19."""
    opset = d.opset(11, 13, 18, 19, NEWEST)
    mode = d.of("constant", "reflect", "edge", *["wrap"] * (opset >= 19))
    x = d.any(*d.shape(1, 4))
    axes = d.some(x.ndim, 1) if opset >= 18 and d.flag() else list(range(x.ndim))
    low = (lambda n: -(n // 3)) if mode == "constant" else lambda n: 0
    high = {"reflect": lambda n: n - 1, "wrap": lambda n: n}.get(mode, lambda n: 3)
    widths = [[d.whole(low(x.shape[a]), high(x.shape[a])) for a in axes] for _ in range(2)]
    values: Values = {"x": x, "p": ints(*widths[0], *widths[1])}
    if len(axes) < x.ndim or (axes != list(range(x.ndim))):
        values |= {"_": 0, "a": ints(*axes)}
    elif d.flag():
        values["c"] = np.float32(1.5)
    return one(d, values, fixed="ac", free="p", by="runtime", step=1, opset=opset, mode=mode)


@case("Pad", kind="torch")
def pad_image(d: Draw) -> Case:
    mode, named = d.of(("constant", "constant"), ("reflect", "reflect"), ("edge", "replicate"), ("wrap", "circular"))
    x = d.any(d.whole(1, 2), d.whole(1, 2), *d.each(2, 2, 4))
    top, left, bottom, right = (d.whole(0, x.shape[2 + i % 2] - 1) for i in range(4))
    values = {"x": x, "p": ints(0, 0, top, left, 0, 0, bottom, right)}
    function = lambda x, p: F.pad(x, (left, right, top, bottom), mode=named)  # noqa: E731
    return one(d, values, function, free="p", by="torch", opset=d.opset(19, NEWEST), mode=mode)


@case("DepthToSpace", "SpaceToDepth")
def depth(d: Draw) -> Case:
    block, channels, height, width = d.whole(1, 3), d.whole(1, 2), d.whole(1, 3), d.whole(1, 3)
    if d.op == "SpaceToDepth":
        return one(d, {"x": d.any(2, channels, height * block, width * block)}, blocksize=block)
    mode = d.of("DCR", "CRD")
    x = d.any(2, channels * block**2, height, width)
    function = (lambda x: F.pixel_shuffle(x, block)) if mode == "CRD" else None
    return one(d, {"x": x}, function, opset=d.opset(11, 13, 21, NEWEST), blocksize=block, mode=mode)


@case("Trilu")
def trilu(d: Draw) -> Case:
    x, upper, k = d.any(*d.shape(2, 4)), d.whole(0, 1), d.of(None, -2, -1, 0, 1, 2)
    function = lambda x, k=0: (torch.triu if upper else torch.tril)(x, int(k))  # noqa: E731
    values = {"x": x} | ({} if k is None else {"k": np.array(k, np.int64)})
    return one(d, values, function, free="k", upper=upper)


test_gradient = gradients(case)
test_other_precisions = in_other_precisions(case)


def test_every_rule_has_cases() -> None:
    assert case.operators == rules_of("shape")
