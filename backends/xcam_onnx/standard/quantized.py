"""Expansions of operators on quantised values: dequantise the inputs, compute in float, quantise the result.

The standard form of QLinearConv is DequantizeLinear → Conv → QuantizeLinear: the same numbers, except where the float
result is so near to the middle of two steps that rounding decides.
"""

from __future__ import annotations

from xcam_onnx.standard.registry import Original, Writer, expands


@expands("QLinearConv")
def qlinear_conv(n: Original, w: Writer) -> None:
    """Source: ONNX, QLinearConv: the scale of the bias is x_scale · w_scale, its zero point 0."""
    x, x_scale, x_zero, kernel, k_scale, k_zero, y_scale, y_zero = n.inputs[:8]
    bias = n.input(8)
    inputs = [w.dequantize(x, x_scale, x_zero), w.dequantize(kernel, k_scale, k_zero, axis=0)]
    if bias:
        inputs.append(w.dequantize(bias, w.Mul(x_scale, k_scale), axis=0))
    w.quantize(w.Conv(*inputs, **n.attributes()), y_scale, y_zero, out=n.outputs[0])
