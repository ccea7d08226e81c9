"""Expansions of operators on quantised values: dequantise the inputs, compute in float, quantise the result.

The standard form of QLinearConv is DequantizeLinear → Conv → QuantizeLinear: the same numbers, except where the float
result is so near to the middle of two steps that rounding decides.

Operators that sum integers (ConvInteger, MatMulInteger) become the same sum of the integers as floats, which a Cast
turns into the original's int32: xcam_onnx.autodiff passes gradients through it.
"""

from __future__ import annotations

import copy

import numpy as np
from onnx import TensorProto, helper

from xcam_onnx.standard.attention import attention
from xcam_onnx.standard.registry import MICROSOFT, NotExpandable, Original, Writer, expands

BNB4 = (
    [0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4, 0, -1 / 192, -2 / 3, -1, -1 / 3, -1 / 2, -1 / 6, -1 / 4],
    [
        *(-1, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0),
        *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1),
    ],
)
"""The values of bitsandbytes' types FP4 and NF4."""
CHANNEL_AXIS = 13
"""The first opset in which DequantizeLinear has scales for the channels of an axis."""


def _dequantised(n: Original, w: Writer, start: int, axis: int | None = None) -> str:
    """Dequantise the input at `start`, whose scale and zero point follow it. `axis`: that of several scales."""
    return _values(n, w, n.input(start), n.input(start + 1), n.input(start + 2), axis)


def _values(n: Original, w: Writer, x: str, scale: str, zero: str, axis: int | None = None) -> str:
    shape = n.shape(scale)
    several = axis is not None and shape != () and shape != (1,)
    if not several:
        return w.dequantize(x, scale, zero)
    if shape is not None and len(shape) > 1:  # they broadcast
        return w.Mul(_integers(n, w, x, zero), scale)
    return _with_scales(w, x, scale, _for_each(n, w, zero, scale), axis)


def _with_scales(w: Writer, x: str, scale: str, zero: str, axis: int | None) -> str:
    """Dequantise with the scales of an axis: by ONNX Runtime's operator where that of ONNX has only one scale.

    Arithmetic operators would make a float weight, which ONNX Runtime then quantises with another scale.
    """
    if w.opset >= CHANNEL_AXIS:
        return w.dequantize(x, scale, zero, axis=axis)
    return w("DequantizeLinear", x, scale, *([zero] if zero else []), axis=axis, domain=MICROSOFT)[0]


def _for_each(n: Original, w: Writer, zero: str, scale: str) -> str:
    """Return a zero point for each scale; DequantizeLinear does not broadcast one."""
    if not zero or n.shape(zero) not in ((), (1,)):
        return zero
    value, shape = n.constant(zero), n.shape(scale)
    if value is not None and shape is not None and isinstance(shape[0], int):
        return w.constant(np.full(shape, value.reshape(())))
    return w.Expand(zero, w.Shape(scale))


def _integers(n: Original, w: Writer, x: str, zero: str = "") -> str:
    """Return integers less their zero point, as floats."""
    value = w.Cast(x, to=TensorProto.FLOAT)
    known = n.constant(zero) if zero else None
    if not zero or (known is not None and not known.any()):
        return value
    return w.Sub(value, w.Cast(zero, to=TensorProto.FLOAT))


def _quantised(n: Original, w: Writer, y: str, scale: str, zero: str, like: str) -> None:
    """Quantise the result `y`. Where the zero point is omitted, it is 0 in the type of `like`."""
    w.quantize(y, scale, zero or _zero(n, w, like), out=n.outputs[0])


def _zero(n: Original, w: Writer, like: str) -> str:
    dtype = n.dtype(like)
    if dtype:
        return w.constant(np.zeros((), helper.tensor_dtype_to_np_dtype(dtype)))
    return w.CastLike(np.zeros((), np.float32), like)


def _rank(n: Original, x: str) -> int:
    shape = n.shape(x)
    if shape is None:
        raise NotExpandable(f"the rank of {x!r} is unknown")
    return len(shape)


def _channels_first(n: Original, w: Writer, value: str, rank: int) -> str:
    return w.Transpose(value, perm=[0, rank - 1, *range(1, rank - 1)]) if n.attr("channels_last", 0) else value


def _channels_back(n: Original, w: Writer, value: str, rank: int) -> str:
    return w.Transpose(value, perm=[0, *range(2, rank), 1]) if n.attr("channels_last", 0) else value


# Convolutions and matrix products


@expands("QLinearConv")
@expands("QLinearConv", domain=MICROSOFT)
def qlinear_conv(n: Original, w: Writer) -> None:
    """Source: ONNX, QLinearConv: the scale of the bias is x_scale · w_scale, its zero point 0.

    ONNX Runtime's version has channels_last, which moves the channels of input and output, not those of the kernel.
    """
    x_scale, k_scale, bias = n.input(1), n.input(4), n.input(8)
    rank = _rank(n, n.input(3)) if n.attr("channels_last", 0) else 0
    inputs = [_channels_first(n, w, _dequantised(n, w, 0), rank), _dequantised(n, w, 3, axis=0)]
    if bias:
        scale = w.Mul(x_scale, k_scale)
        inputs.append(_with_scales(w, bias, scale, "", 0))
    y = w.Conv(*inputs, **n.attributes("channels_last"))
    _quantised(n, w, _channels_back(n, w, y, rank), n.input(6), n.input(7), n.input(0))


@expands("QLinearMatMul")
def qlinear_matmul(n: Original, w: Writer) -> None:
    """Source: ONNX, QLinearMatMul: scales for the rows of the first matrix, and for the columns of the second."""
    y = w.MatMul(_dequantised(n, w, 0, axis=-2), _dequantised(n, w, 3, axis=-1))
    _quantised(n, w, y, n.input(6), n.input(7), n.input(0))


@expands("QGemm", domain=MICROSOFT)
def qgemm(n: Original, w: Writer) -> None:
    """Source: ONNX Runtime, QGemm: the scale of C is alpha · a_scale · b_scale; without y_scale the output is float."""
    alpha, transposed = float(n.attr("alpha", 1.0)), n.attr("transB", 0)
    inputs = [_dequantised(n, w, 0), _dequantised(n, w, 3, axis=0 if transposed else 1)]
    if n.input(6):
        inputs.append(w.Mul(_integers(n, w, n.input(6)), w.Mul(n.input(1), n.input(4))))
    options = {"transA": n.attr("transA", 0), "transB": transposed}
    if not n.input(7):
        w.Gemm(*inputs, alpha=alpha, beta=alpha, out=n.outputs[0], **options)
    else:
        _quantised(n, w, w.Gemm(*inputs, alpha=alpha, beta=alpha, **options), n.input(7), n.input(8), n.input(0))


@expands("ConvInteger")
def conv_integer(n: Original, w: Writer) -> None:
    """Source: ONNX, ConvInteger: zero points of the kernel are one or one for each output channel."""
    zero = n.input(3)
    if zero and n.shape(zero) not in ((), (1,)):
        zero = w.Reshape(zero, [-1, *[1] * (_rank(n, n.input(1)) - 1)])
    x, kernel = _integers(n, w, n.input(0), n.input(2)), _integers(n, w, n.input(1), zero)
    w.Cast(w.Conv(x, kernel, **n.attributes()), to=TensorProto.INT32, out=n.outputs[0])


@expands("MatMulInteger")
def matmul_integer(n: Original, w: Writer) -> None:
    """Source: ONNX, MatMulInteger: zero points for the rows of the first matrix, and for the columns of the second."""
    zero, shape = n.input(2), n.shape(n.input(2))
    if zero and shape is not None and len(shape) == 1 and shape != (1,):
        zero = w.Reshape(zero, [-1, 1])
    a, b = _integers(n, w, n.input(0), zero), _integers(n, w, n.input(1), n.input(3))
    w.Cast(w.MatMul(a, b), to=TensorProto.INT32, out=n.outputs[0])


@expands("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer_to_float(n: Original, w: Writer) -> None:
    a, b, a_scale, b_scale, a_zero, b_zero, bias = (n.input(index) for index in range(7))
    y = w.MatMul(
        _values(n, w, a, a_scale, a_zero, axis=-1),
        _values(n, w, b, b_scale, b_zero, axis=-1),
    )
    _with_bias(w, y, bias, n.outputs[0])


@expands("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_matmul(n: Original, w: Writer) -> None:
    a, b, b_scale, b_zero, bias = (n.input(index) for index in range(5))
    quantised, scale, zero = w("DynamicQuantizeLinear", a, outputs=3)
    y = w.MatMul(w.dequantize(quantised, scale, zero), _values(n, w, b, b_scale, b_zero, axis=-1))
    _with_bias(w, y, bias, n.outputs[0])


@expands("QAttention", domain=MICROSOFT)
def qattention(n: Original, w: Writer) -> None:
    """Source: ONNX Runtime, QAttention: Attention with a quantised input and a quantised matrix."""
    x, kernel, bias, x_scale, k_scale, mask, x_zero, k_zero, past = (n.input(index) for index in range(9))
    if past:
        raise NotExpandable("it keeps past states")
    floats = copy.copy(n)
    floats.inputs = [
        *(_values(n, w, x, x_scale, x_zero), _values(n, w, kernel, k_scale, k_zero, axis=1)),
        *(bias, mask),
    ]
    attention(floats, w)


def _with_bias(w: Writer, y: str, bias: str, out: str) -> None:
    if bias:
        w.Add(y, bias, out=out)
    else:
        w.Identity(y, out=out)


# Elementwise operators, pools, and operators that move values


@expands("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def qlinear_binary(n: Original, w: Writer) -> None:
    y = w(n.proto.op_type.removeprefix("QLinear"), _dequantised(n, w, 0), _dequantised(n, w, 3))[0]
    _quantised(n, w, y, n.input(6), n.input(7), n.input(0))


@expands("QLinearSigmoid", "QLinearLeakyRelu", domain=MICROSOFT)
def qlinear_unary(n: Original, w: Writer) -> None:
    y = w(n.proto.op_type.removeprefix("QLinear"), _dequantised(n, w, 0), **n.attributes())[0]
    _quantised(n, w, y, n.input(3), n.input(4), n.input(0))


@expands("QLinearSoftmax", domain=MICROSOFT)
def qlinear_softmax(n: Original, w: Writer) -> None:
    """Source: ONNX Runtime, QLinearSoftmax: before opset 13 it treats all axes from `axis` on as one."""
    x, axis, joins = _dequantised(n, w, 0), n.attr("axis", -1), n.attr("opset") < CHANNEL_AXIS
    rank = _rank(n, n.input(0)) if axis != -1 else 0
    axis = axis % rank if rank else axis
    if axis == rank - 1 or joins == (w.opset < CHANNEL_AXIS):
        y = w.Softmax(x, axis=axis)
    elif joins:
        y = w.Reshape(w.Softmax(w.Reshape(x, [0] * axis + [-1]), axis=axis), w.Shape(n.input(0)))
    else:
        order = [k for k in range(rank) if k != axis] + [axis]
        y = w.Transpose(w.Softmax(w.Transpose(x, perm=order), axis=rank - 1), perm=np.argsort(order).tolist())
    _quantised(n, w, y, n.input(3), n.input(4), n.input(0))


@expands("QLinearAveragePool", "QLinearGlobalAveragePool", domain=MICROSOFT)
def qlinear_pool(n: Original, w: Writer) -> None:
    rank = _rank(n, n.input(0)) if n.attr("channels_last", 0) else 0
    x = _channels_first(n, w, _dequantised(n, w, 0), rank)
    y = w(n.proto.op_type.removeprefix("QLinear"), x, **n.attributes("channels_last"))[0]
    _quantised(n, w, _channels_back(n, w, y, rank), n.input(3), n.input(4), n.input(0))


@expands("QLinearConcat", domain=MICROSOFT)
def qlinear_concat(n: Original, w: Writer) -> None:
    """Source: ONNX Runtime, QLinearConcat: scale and zero point of the output, then three inputs for each part."""
    parts = [_dequantised(n, w, start) for start in range(2, len(n.inputs), 3)]
    _quantised(n, w, w.Concat(*parts, axis=n.attr("axis")), n.input(0), n.input(1), n.input(2))


@expands("QLinearWhere", domain=MICROSOFT)
def qlinear_where(n: Original, w: Writer) -> None:
    y = w.Where(n.input(0), _dequantised(n, w, 1), _dequantised(n, w, 4))
    _quantised(n, w, y, n.input(7), n.input(8), n.input(1))


# Weights of a few bits, several in a byte


@expands("MatMulNBits", domain=MICROSOFT)
def matmul_n_bits(n: Original, w: Writer) -> None:
    """Source: ONNX Runtime, MatMulNBits: weights [N, blocks, bytes], a scale and a zero point for each block of K.

    `accuracy_level` 4 also rounds the first matrix to 8 bits where the processor is faster with these; this does not.
    """
    x, packed, scale, zero, groups, bias = (n.input(index) for index in range(6))
    bits, size, rows, columns = (int(n.attr(name, 4)) for name in ("bits", "block_size", "N", "K"))
    if 8 % bits or n.attr("weight_prepacked", 0):
        raise NotExpandable("its weights are packed for another device")
    if groups and bits != 4:
        raise NotExpandable("ONNX Runtime reorders the columns of 4-bit weights only")
    blocks, dtype = -(-columns // size), n.dtype(scale) or TensorProto.FLOAT
    values = w.Reshape(_unpacked(w, packed, bits, dtype), [rows, blocks, size])
    if groups and n.dtype(zero) == TensorProto.UINT8:  # the runtime ignores packed zero points then
        zero = ""
    if not zero:
        zeros = w.Cast(w.constant(2 ** (bits - 1)), to=dtype)
    elif n.dtype(zero) == TensorProto.UINT8:
        zeros = _unpacked(w, w.Reshape(zero, [rows, -1]), bits, dtype)
        zeros = w.Slice(w.Reshape(zeros, [rows, -1]), [0], [blocks], [1])
    else:
        zeros = w.Reshape(zero, [rows, blocks])
    scales = w.Reshape(scale, [rows, blocks])
    if groups:  # the block of each column
        flat = w.Slice(w.Reshape(values, [rows, -1]), [0], [columns], [1])
        zeros = w.Gather(zeros, groups, axis=1) if zero else zeros
        kernel = w.Mul(w.Sub(flat, zeros), w.Gather(scales, groups, axis=1))
    else:
        zeros = w.Reshape(zeros, [rows, blocks, 1]) if zero else zeros
        wide = w.Mul(w.Sub(values, zeros), w.Reshape(scales, [rows, blocks, 1]))
        kernel = w.Slice(w.Reshape(wide, [rows, -1]), [0], [columns], [1])
    _with_bias(w, w.MatMul(x, w.Transpose(kernel, perm=[1, 0])), bias, n.outputs[0])


@expands("MatMulBnb4", domain=MICROSOFT)
def matmul_bnb4(n: Original, w: Writer) -> None:
    """Source: ONNX Runtime, MatMulBnb4: bitsandbytes' values of 4 bits, the first of a byte in its upper half."""
    x, packed, largest = (n.input(index) for index in range(3))
    size, rows, columns, dtype = (*(int(n.attr(name)) for name in ("block_size", "N", "K")), n.dtype(n.input(2)))
    table = w.Cast(np.asarray(BNB4[int(n.attr("quant_type"))], np.float32), to=dtype or TensorProto.FLOAT)
    halves = [_shifted(w, packed, 4, "RIGHT"), _shifted(w, _shifted(w, packed, 4, "LEFT"), 4, "RIGHT")]
    indices = w.Concat(*(w.Reshape(w.Cast(half, to=TensorProto.INT64), [-1, 1]) for half in halves), axis=1)
    if rows * columns % size:
        raise NotExpandable("its last block is smaller than the others")
    values = w.Mul(w.Reshape(w.Gather(table, indices), [-1, size]), w.Reshape(largest, [-1, 1]))
    kernel = w.Reshape(values, [rows, columns])
    w.MatMul(x, w.Transpose(kernel, perm=[1, 0]) if n.attr("transB", 1) else kernel, out=n.outputs[0])


def _unpacked(w: Writer, packed: str, bits: int, dtype: int) -> str:
    """Unpack bytes [..., n] to numbers [..., n, 8 / bits]; the first number is in the lowest bits."""
    if bits == 8:
        return w.Cast(packed, to=dtype)
    parts = [_shifted(w, _shifted(w, packed, 8 - bits - low, "LEFT"), 8 - bits, "RIGHT") for low in range(0, 8, bits)]
    columns = [w.Reshape(w.Cast(part, to=dtype), [-1, 1]) for part in parts]
    return w.Concat(*columns, axis=1)


def _shifted(w: Writer, x: str, bits: int, direction: str) -> str:
    return w.BitShift(x, w.constant(np.uint8(bits)), direction=direction) if bits else x
