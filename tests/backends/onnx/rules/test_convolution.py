"""Convolutions: the rules of `xcam_onnx.autodiff.rules.convolution`.

Values stay away from kinks and ties, where no derivative exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (as everywhere)

from onnx_rules import Case, Cases, Draw, Half, Values, gradients, in_float16, in_other_precisions, one, rules_of

case = Cases()


def _conv(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, pads: list[int], **options: Any) -> torch.Tensor:
    space = x.ndim - 2
    sides = [v for i in reversed(range(space)) for v in (pads[i], pads[space + i])]
    return (F.conv1d, F.conv2d, F.conv3d)[space - 1](F.pad(x, sides), w, b, **options)


def _convolution(
    d: Draw, space: int, kernel: list[int], strides: list[int], dilations: list[int], groups: int, width: int
) -> tuple[Values, dict[str, Any]]:
    reach = [t * (k - 1) + 1 for k, t in zip(kernel, dilations, strict=True)]
    sizes = [r + d.whole(0, 4) for r in reach]
    x = d.any(d.whole(1, 2), groups * d.whole(1, 2), *sizes)
    values = {"x": x, "w": d.any(groups * width, x.shape[1] // groups, *kernel)}
    if d.flag():
        values["b"] = d.any(groups * width)
    return values, {"strides": strides, "dilations": dilations, "group": groups}


KINDS: dict[str, Callable[[Draw, int], tuple[list[int], list[int], list[int], int, int]]] = {
    "stride1": lambda d, n: (d.each(n, 1, 3), [1] * n, d.each(n, 1, 2), d.of(1, 2), d.whole(1, 3)),
    "pointwise": lambda d, n: ([1] * n, d.each(n, 1, 3), [1] * n, d.of(1, 2), d.whole(1, 3)),
    "dilated": lambda d, n: (d.each(n, 1, 3), d.each(n, 1, 3), d.each(n, 1, 2), d.of(1, 2), d.whole(1, 3)),
    "phases": lambda d, n: (d.each(n, 2, 4), d.each(n, 1, 3), [1] * n, d.of(1, 2), d.whole(1, 2)),
    "square": lambda d, n: (d.each(n, 2, 4), [d.of(2, 3)] * n, [1] * n, d.of(1, 2), d.whole(1, 2)),
}


def _convolutions(kind: str) -> None:
    @case("Conv", kind=kind)
    def conv(d: Draw) -> Case:
        space = d.of(2, 2, 1, 3)
        kernel, strides, dilations, groups, width = KINDS[kind](d, space)
        values, attributes = _convolution(d, space, kernel, strides, dilations, groups, width)
        pads = d.each(2 * space, 0, 3)
        function = lambda x, w, b=None: _conv(  # noqa: E731
            x, w, b, pads, stride=strides, dilation=dilations, groups=groups
        )
        return one(d, values, function, free="wb", by="runtime", step=1, pads=pads, **attributes)


for _kind in KINDS:
    _convolutions(_kind)


@case("Conv", kind="depthwise")
def depthwise(d: Draw) -> Case:
    space, channels, times = d.of(1, 2), d.whole(2, 4), d.whole(1, 2)
    kernel, strides, pads = d.each(space, 1, 4), d.each(space, 1, 3), d.each(2 * space, 0, 2)
    values = {"x": d.any(1, channels, *(k + d.whole(0, 4) for k in kernel)), "w": d.any(channels * times, 1, *kernel)}
    function = lambda x, w: _conv(x, w, None, pads, stride=strides, groups=channels)  # noqa: E731
    return one(d, values, function, free="w", by="runtime", step=1, pads=pads, strides=strides, group=channels)


def _auto(sizes: Sequence[int], kernel: list[int], strides: list[int], mode: str) -> tuple[str, list[int]]:
    """Return the mode and the padding that follows from it."""
    total = [max((math.ceil(n / s) - 1) * s + k - n, 0) for n, k, s in zip(sizes, kernel, strides, strict=True)]
    total = [0 for _ in total] if mode == "VALID" else total
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return mode, [*small, *large] if mode == "SAME_UPPER" else [*large, *small]


@case("Conv", kind="auto_pad")
def conv_auto(d: Draw) -> Case:
    space = d.of(1, 2)
    kernel, strides = d.each(space, 1, 4), d.each(space, 1, 3)
    values, attributes = _convolution(d, space, kernel, strides, [1] * space, 1, 2)
    mode, pads = _auto(values["x"].shape[2:], kernel, strides, d.of("SAME_UPPER", "SAME_LOWER", "VALID"))
    function = lambda x, w, b=None: _conv(x, w, b, pads, stride=strides)  # noqa: E731
    return one(d, values, function, free="wb", by="runtime", step=1, auto_pad=mode, **attributes)


def _transposed(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, pads: list[int], extra: list[int], **options: Any
) -> torch.Tensor:
    """Crop the unpadded result: torch pads both sides alike."""
    space = x.ndim - 2
    y = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[space - 1](x, w, **options)
    y = F.pad(y, [v for e in reversed(extra) for v in (0, e)])
    for i in range(space):
        y = y.narrow(2 + i, pads[i], y.shape[2 + i] - pads[i] - pads[space + i])
    return y if b is None else y + b.reshape(-1, *[1] * space)


@case("ConvTranspose")
def conv_transpose(d: Draw) -> Case:
    space, groups = d.of(1, 2, 2, 3), d.of(1, 2)
    kernel, strides, dilations = d.each(space, 1, 3), d.each(space, 1, 3), d.each(space, 1, 2)
    x = d.any(d.whole(1, 2), 2 * groups, *d.each(space, 2, 4))
    values = {"x": x, "w": d.any(2 * groups, d.whole(1, 2), *kernel)}
    values |= {"b": d.any(groups * values["w"].shape[1])} if d.flag() else {}
    reach = [t * (k - 1) for k, t in zip(kernel, dilations, strict=True)]
    pads = [d.whole(0, min(r, 2)) for r in reach * 2]
    longest = [s * (n - 1) + r for s, n, r in zip(strides, x.shape[2:], reach, strict=True)]
    if any(a + b > n for a, b, n in zip(pads[:space], pads[space:], longest, strict=True)):
        pads = [0] * 2 * space
    extra = [d.whole(0, s - 1) for s in strides]
    attributes = {"strides": strides, "dilations": dilations, "group": groups}
    function = lambda x, w, b=None: _transposed(  # noqa: E731
        x, w, b, pads, extra, stride=strides, dilation=dilations, groups=groups
    )
    return one(d, values, function, free="wb", by="runtime", step=1, pads=pads, output_padding=extra, **attributes)


@case("ConvTranspose", kind="size")
def conv_transpose_size(d: Draw) -> Case:
    """Padding follows from the output's size."""
    kernel, strides = d.each(2, 2, 4), d.each(2, 1, 3)
    x = d.any(1, 2, *d.each(2, 2, 4))
    largest = [s * (n - 1) + k for s, n, k in zip(strides, x.shape[2:], kernel, strict=True)]
    attributes: dict[str, Any] = {"auto_pad": d.of("SAME_UPPER", "SAME_LOWER")}
    if d.flag():
        attributes |= {"output_shape": [max(m, n - d.whole(0, 2)) for m, n in zip(x.shape[2:], largest, strict=True)]}
        attributes |= {"auto_pad": d.of("NOTSET", "SAME_UPPER", "SAME_LOWER")}
    values = {"x": x, "w": d.any(2, 3, *kernel)}
    return one(d, values, free="w", by="runtime", step=1, symbolic=(), strides=strides, **attributes)


test_gradient = gradients(case)
test_other_precisions = in_other_precisions(case)


def test_every_rule_has_cases() -> None:
    assert case.operators == rules_of("convolution")


HALF: Half = {
    "Conv": (
        [(1, 2, 7, 6), (4, 2, 3, 3), (4,)],
        {"pads": [1, 1, 1, 1], "strides": [2, 2]},
        lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1),
    ),
}

test_float16 = in_float16(HALF)
