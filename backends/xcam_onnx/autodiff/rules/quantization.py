"""Quantisation. Scales and zero points count as constants."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from xcam.contract import Array
from xcam_onnx.autodiff.registry import Node, vjp
from xcam_onnx.autodiff.values import Value
from xcam_onnx.graph import FLOAT8, INTEGERS

MICROSOFT = "com.microsoft"
"""The domain in which ONNX Runtime's quantiser writes 16-bit types for older operator sets."""


@vjp("DequantizeLinear")
@vjp("DequantizeLinear", domain=MICROSOFT)
def dequantize(n: Node, g: Value) -> tuple[Value, None, None]:
    scale = _spread(n, 1, n.x, TensorProto.FLOAT)
    assert scale is not None
    return n.ops.scaled(g, scale), None, None


@vjp("QuantizeLinear")
@vjp("QuantizeLinear", domain=MICROSOFT)
def quantize(n: Node, g: Value) -> tuple[Value, None, None]:
    """Pass the gradient straight through the rounding (Bengio et al. 2013); it is zero where the value is clipped.

    A value is clipped if it is outside the type's range after rounding, as in torch.fake_quantize. A ReLU that was merged
    into the quantisation is such a clip.
    """
    o, x, divisor = n.ops, n.x, _spread(n, 1, n.x, TensorProto.FLOAT)
    assert divisor is not None
    return o.masked(o.adjoint(o.unscaled(g, divisor), x), _inside(n)), None, None


def _inside(n: Node) -> Value:
    """Return which values of the input of a QuantizeLinear are not clipped."""
    o, x, dtype = n.ops, n.x, n.y.dtype or TensorProto.UINT8
    bounds = _bounds(n, dtype)
    if bounds is not None:
        low, high = bounds
        return o.Equal(o.Clip(x, low, high), x) if low.ndim == 0 else (x >= low) & (x <= high)
    scale, zero = _spread(n, 1, x, x.dtype), _spread(n, 2, x, x.dtype)
    assert scale is not None
    steps = x / scale
    if dtype in INTEGERS:
        steps = o.Round(steps)
    least, most = (limit if zero is None else limit - zero for limit in _limits(dtype))
    return (steps >= least) & (steps <= most)


def _bounds(n: Node, dtype: int) -> tuple[Array, Array] | None:
    """Return the smallest and the largest input that is not clipped, where scale and zero point are constants.

    This takes half the time of rounding the input again. A value in the middle of two steps is rounded to the even one.
    """
    scale, zero, x = n.inputs[1].const, n.input(2), n.x
    shift = None if zero is None else zero.const
    if scale is None or (zero is not None and shift is None) or n.attr("block_size", 0):
        return None
    kind = helper.tensor_dtype_to_np_dtype(x.dtype)
    if kind.kind != "f":
        return None
    bounds = []
    for limit, away in zip(_limits(dtype), (-1, 1), strict=True):
        step = limit - (np.zeros(()) if shift is None else shift.astype(np.float64))
        bound = np.asarray((step + (away / 2 if dtype in INTEGERS else 0)) * scale.astype(np.float64), kind)
        is_out = (step % 2 == 1) & (dtype in INTEGERS)
        bound = np.where(is_out, np.nextafter(bound, kind.type(-away * np.inf)), bound)
        axes = x.rank - n.axis(1) - 1
        bounds.append(bound.reshape(()) if bound.size == 1 else bound.reshape(-1, *[1] * axes))
    return bounds[0], bounds[1]


@vjp("DynamicQuantizeLinear")
def dynamic_quantize(n: Node, g: Value | None, *constants: Value | None) -> Value | None:
    """Pass the gradient straight through the rounding. The scale is chosen so that no value is clipped."""
    return None if g is None else n.ops.unscaled(g, n.outputs[1])


def _limits(dtype: int) -> tuple[int, int]:
    """Return the smallest and the largest value of a quantised type."""
    return INTEGERS[dtype] if dtype in INTEGERS else (-FLOAT8[dtype], FLOAT8[dtype])


def _spread(n: Node, index: int, x: Value, dtype: int) -> Value | None:
    """Return a scale or zero point in a type, in a shape that broadcasts to `x`; None where it is omitted."""
    o, value = n.ops, n.input(index)
    if value is None:
        return None
    axis, block = n.axis(1), n.attr("block_size", 0)
    constant = value.const
    several = not block and (value.rank if constant is None else constant.ndim) == 1
    shape = [-1, *[1] * (x.rank - axis - 1)] if several and x.rank > axis + 1 else None
    sizes = (x.shape if all(isinstance(size, int) for size in x.shape) else x.name) if block else str(shape)

    def write() -> Value:
        spread = value
        if constant is not None:
            spread = o.value(constant.astype(helper.tensor_dtype_to_np_dtype(dtype)), dtype)
        elif value.dtype != dtype:
            spread = o.Cast(value, to=dtype)
        if block:  # one value for each block of the axis
            ones = [block if k == axis + 1 else 1 for k in range(x.rank + 1)]
            wide = o.Reshape(
                o.Expand(o.Unsqueeze(spread, [axis + 1]), ones), o.dims([*x.dims[:axis], -1, *x.dims[axis + 1 :]])
            )
            return o.Slice(wide, [0], o.dims([x.dims[axis]]), [axis])
        return spread if shape is None else o.Reshape(spread, shape)

    return o.once(("spread", value.name, dtype, axis, sizes), write)
