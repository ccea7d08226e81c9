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
    return g, None, None


@vjp("QuantizeLinear")
@vjp("QuantizeLinear", domain=MICROSOFT)
def quantize(n: Node, g: Value) -> tuple[Value, None, None]:
    """Pass the gradient straight through the rounding (Bengio et al. 2013); it is zero where the value is clipped.

    A value is clipped if it is outside the type's range after rounding, as in torch.fake_quantize. A ReLU that was merged
    into the quantisation is such a clip.
    """
    scale, zero = _spread(n, 1), _spread(n, 2)
    assert scale is not None
    steps = n.x / scale
    dtype = n.y.dtype or TensorProto.UINT8
    if dtype in INTEGERS:
        steps = n.ops.Round(steps)
    low, high = (limit if zero is None else limit - zero for limit in _limits(dtype))
    return n.ops.masked(g, (steps >= low) & (steps <= high)), None, None


def _limits(dtype: int) -> tuple[int, int]:
    """Return the smallest and the largest value of a quantised type."""
    return INTEGERS[dtype] if dtype in INTEGERS else (-FLOAT8[dtype], FLOAT8[dtype])


def _spread(n: Node, index: int) -> Value | None:
    """Return a scale or zero point with the type of the input, in a shape that broadcasts to it; None where it is omitted."""
    o, x, value = n.ops, n.x, n.input(index)
    if value is None:
        return None
    axis, block = n.axis(1), n.attr("block_size", 0)
    constant = value.const
    if constant is not None:
        value = o.value(constant.astype(helper.tensor_dtype_to_np_dtype(x.dtype)), x.dtype)
    elif value.dtype != x.dtype:
        value = o.Cast(value, to=x.dtype)
    if block:  # one value for each block of the axis
        wide = o.Expand(o.Unsqueeze(value, [axis + 1]), [block if k == axis + 1 else 1 for k in range(x.rank + 1)])
        wide = o.Reshape(wide, o.dims([*x.dims[:axis], -1, *x.dims[axis + 1 :]]))
        return o.Slice(wide, [0], o.dims([x.dims[axis]]), [axis])
    if n.inputs[index].rank != 1 or x.rank == axis + 1:
        return value
    return o.Reshape(value, [-1, *[1] * (x.rank - axis - 1)])
