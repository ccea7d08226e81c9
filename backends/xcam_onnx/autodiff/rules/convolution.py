"""Convolutions.

The gradient with respect to the input is itself a convolution of stride 1 with flipped kernels, which runtimes compute
fast. A transposed convolution is many times slower for depthwise kernels. The kernel is flipped by operators on a
constant, which a runtime folds when it opens the graph.

Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning (2016), section 4.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from onnx import TensorProto

from xcam_onnx.autodiff.registry import Node, vjp
from xcam_onnx.autodiff.values import Ops, Unsupported, Value


@vjp("Conv")
def conv(n: Node, g: Value) -> tuple[Value]:
    o, x, w = n.ops, n.x, n.inputs[1]
    kernel, strides, dilations, begins, ends = windows(n, w.dims[2:])
    sizes, groups = x.dims[2:], n.attr("group", 1)
    reach = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
    if all(s == 1 for s in strides):
        dx = _conv(o, g, flipped(o, w, groups), reach, begins, ends, dilations, groups)
    elif all(k == 1 for k in kernel):  # at low resolution first, where it is cheaper
        dx = o.Conv(g, flipped(o, w, groups), group=groups)
        dx = crop_or_pad(
            o, spread(o, dx, n.y.dims, strides, channels=x.dims[1]), begins, sizes, stretched(n, strides)
        )
    elif any(d > 1 for d in dilations) or w.shape[1] == 1 or any(k < s for k, s in zip(kernel, strides, strict=True)):
        wide = spread(o, g, n.y.dims, strides)
        dx = o.Conv(wide, flipped(o, w, groups), pads=[*reach, *reach], dilations=dilations, group=groups)
        lengths = [m + r for m, r in zip(stretched(n, strides), reach, strict=True)]
        dx = crop_or_pad(o, dx, begins, sizes, lengths)
    else:
        dx = _by_phases(n, g, w, kernel, strides, begins, groups)
    return (dx,)


@vjp("ConvTranspose")
def conv_transpose(n: Node, g: Value) -> tuple[Value]:
    """Return a convolution with the same kernel, strides and padding: the adjoint of the adjoint."""
    o, x, w = n.ops, n.x, n.inputs[1]
    space = x.rank - 2
    kernel = [int(k) for k in n.attr("kernel_shape", w.dims[2:])]
    strides, dilations = n.attr("strides", [1] * space), n.attr("dilations", [1] * space)
    extra, target, auto = n.attr("output_padding", [0] * space), n.attr("output_shape"), n.attr("auto_pad", "NOTSET")
    pads = n.attr("pads", [0] * 2 * space)
    if target or auto.startswith("SAME"):
        if not all(isinstance(m, int) for m in x.dims[2:]):
            raise Unsupported("its padding depends on an image size that is not fixed")
        out = target[-space:] if target else [m * s for m, s in zip(x.dims[2:], strides, strict=True)]
        total = [
            max(s * (m - 1) + e + d * (k - 1) + 1 - size, 0)
            for s, m, e, d, k, size in zip(strides, x.dims[2:], extra, dilations, kernel, out, strict=True)
        ]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = [*small, *large] if auto == "SAME_UPPER" else [*large, *small]
    dx = o.Conv(g, w, pads=pads, strides=strides, dilations=dilations, group=n.attr("group", 1))
    if any(extra) or target or any(p < 0 for p in pads):  # rows beyond the last window may give one more
        dx = o.Slice(dx, [0] * space, o.dims(x.dims[2:]), list(range(2, x.rank)))
    return (dx,)


def windows(n: Node, kernel: list[Any]) -> tuple[list[int], list[int], list[int], list[Any], list[Any]]:
    """Return kernel, strides, dilations, and the padding before and behind, of a convolution or a pooling."""
    if not all(isinstance(k, int) for k in kernel):
        raise Unsupported("the size of its kernel is not fixed")
    space = len(kernel)
    strides, dilations = n.attr("strides", [1] * space), n.attr("dilations", [1] * space)
    pads = n.attr("pads", [0] * 2 * space)
    auto = n.attr("auto_pad", "NOTSET")
    begins, ends = list(pads[:space]), list(pads[space:])
    if auto == "VALID":
        begins, ends = [0] * space, [0] * space
    elif auto.startswith("SAME"):
        begins, ends = [], []
        for size, k, s, d in zip(n.x.dims[2:], kernel, strides, dilations, strict=True):
            reach = d * (k - 1)
            if s == 1:
                total: Any = reach
            elif isinstance(size, int):
                total = max((math.ceil(size / s) - 1) * s + reach + 1 - size, 0)
            else:
                total = n.ops.Max((((size + (s - 1)) // s) - 1) * s + (reach + 1) - size, [0])
            low = total // 2
            high = total - low
            begins.append(low if auto == "SAME_UPPER" else high)
            ends.append(high if auto == "SAME_UPPER" else low)
    return kernel, strides, dilations, begins, ends


def flipped(o: Ops, w: Value, groups: int) -> Value:
    """Flip the kernels and exchange the channels: [Cout, Cin/g, *k] → [Cin, Cout/g, *k]."""
    space = w.rank - 2
    out, into, *rest = w.dims
    if groups == 1:
        w = o.Transpose(w, perm=[1, 0, *range(2, 2 + space)])
    elif into != 1 or out != groups:
        w = o.Reshape(w, [groups, out // groups, into, *rest])
        w = o.Transpose(w, perm=[0, 2, 1, *range(3, 3 + space)])
        w = o.Reshape(w, [groups * into, out // groups, *rest])
    axes = [i for i in range(2, 2 + space) if rest[i - 2] > 1]
    if not axes:
        return w
    return o.Slice(w, [-1] * len(axes), [-(2**31)] * len(axes), axes, [-1] * len(axes))


def _conv(
    o: Ops,
    g: Value,
    w: Value,
    reach: list[int],
    begins: list[int],
    ends: list[int],
    dilations: list[int],
    groups: int,
) -> Value:
    """Convolve with stride 1, padded by `reach` minus the forward padding."""
    pads = [r - p for r, p in zip(reach * 2, [*begins, *ends], strict=True)]
    dx = o.Conv(g, w, pads=[max(p, 0) for p in pads], dilations=dilations, group=groups)
    if any(p < 0 for p in pads):
        space = len(reach)
        over = [min(p, 0) for p in pads]
        dx = o.Pad(dx, [0, 0, *over[:space], 0, 0, *over[space:]])
    return dx


def stretched(n: Node, strides: list[int]) -> list[Any]:
    """Return the lengths of the output after `spread`."""
    return [m * s for m, s in zip(n.y.dims[2:], strides, strict=True)]


def spread(o: Ops, g: Value, dims: list[Any], strides: list[int], channels: Any = None) -> Value:
    """Insert s − 1 zeros behind each value of `g` [N, C, *space], whose shape is `dims`."""
    dims = [dims[0], dims[1] if channels is None else channels, *dims[2:]]
    lengths = [m * s for m, s in zip(dims[2:], strides, strict=True)]
    if all(s == 1 for s in strides):
        return g
    if len(strides) == 2 and g.dtype == TensorProto.FLOAT:  # repeated, then masked: a fifth of the time of Pad
        wide = o.Resize(
            g,
            None,
            np.array([1, 1, *strides], np.float32),
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        rows, columns = (o.Equal(o.Mod(o.range(n), s), 0) for n, s in zip(lengths, strides, strict=True))
        return o.masked(wide, o.And(o.Unsqueeze(rows, [1]), o.Unsqueeze(columns, [0])))
    g = o.Unsqueeze(g, [3 + 2 * i for i in range(len(strides))])
    behind = [0, 0] + [n for s in strides for n in (0, s - 1)]
    g = o.Pad(g, [0] * len(behind) + behind)
    return o.reshape(g, [*dims[:2], *lengths])


def crop_or_pad(o: Ops, dx: Value, begins: list[Any], sizes: list[Any], lengths: list[Any]) -> Value:
    """Remove the forward padding: crop `begins` at the front, then crop or pad to `sizes`."""
    ends = [size + begin - length for size, begin, length in zip(sizes, begins, lengths, strict=True)]
    fixed = all(isinstance(v, int) for v in (*begins, *ends))
    if fixed and not any(begins) and not any(ends):
        return dx
    if fixed:
        return o.Pad(dx, [0, 0, *(-b for b in begins), 0, 0, *ends])
    return o.Pad(dx, o.dims([0, 0, *(0 - b for b in begins), 0, 0, *ends]))


def _by_phases(
    n: Node, g: Value, w: Value, kernel: list[int], strides: list[int], begins: list[Any], groups: int
) -> Value:
    """Differentiate a strided convolution without the zeros that `spread` inserts.

    A position q·s + r of the padded input meets only the taps r, r + s, … of the kernel: for each phase r, an ordinary
    convolution of the low-resolution gradient with these. The phases are interleaved.
    """
    o, space = n.ops, len(kernel)
    taps = [math.ceil(k / s) for k, s in zip(kernel, strides, strict=True)]
    channels = groups * w.dims[1]
    w, axes = flipped(o, w, groups), list(range(2, 2 + space))
    parts = []
    for phase in itertools.product(*(range(s) for s in strides)):
        # In the flipped kernel the taps r, r + s, … are at k − 1 − r, k − 1 − r − s, …; the slice reads from the front.
        counts = [len(range(r, k, s)) for r, k, s in zip(phase, kernel, strides, strict=True)]
        first = [k - 1 - r - (t - 1) * s for r, k, s, t in zip(phase, kernel, strides, counts, strict=True)]
        last = [k - r for k, r in zip(kernel, phase, strict=True)]
        pads = [*(t - 1 for t in counts), *(t - 1 for t in taps)]
        parts.append(o.Conv(g, o.Slice(w, first, last, axes, strides), pads=pads, group=groups))
    lengths = [m + (t - 1) for m, t in zip(n.y.dims[2:], taps, strict=True)]
    whole = [m * s for m, s in zip(lengths, strides, strict=True)]
    if space == 2 and strides[0] == strides[1]:
        dx = o.DepthToSpace(o.Concat(*parts, axis=1), blocksize=strides[0], mode="DCR")
    else:
        batch = n.y.dims[0]
        dx = o.reshape(o.Concat(*parts, axis=1), [batch, *strides, channels, *lengths])
        pairs = [axis for i in range(space) for axis in (2 + space + i, 1 + i)]
        dx = o.reshape(o.Transpose(dx, perm=[0, 1 + space, *pairs]), [batch, channels, *whole])
    return crop_or_pad(o, dx, begins, n.x.dims[2:], whole)
