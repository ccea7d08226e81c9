"""Quantisation. Scales and zero points count as constants."""

from __future__ import annotations

from onnx import TensorProto, helper

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
    o, x = n.ops, n.x
    scale, zero = _spread(n, 1, x, x.dtype), _spread(n, 2, x, x.dtype)
    divisor = _spread(n, 1, x, TensorProto.FLOAT)
    assert scale is not None
    assert divisor is not None
    steps = x / scale
    dtype = n.y.dtype or TensorProto.UINT8
    if dtype in INTEGERS:
        steps = o.Round(steps)
    low, high = (limit if zero is None else limit - zero for limit in _limits(dtype))
    return o.masked(o.adjoint(o.unscaled(g, divisor), x), (steps >= low) & (steps <= high)), None, None


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
