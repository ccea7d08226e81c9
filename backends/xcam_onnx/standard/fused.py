"""Expansions of operators that optimisers write in place of several others: activations, products, normalisations.

Source of the definitions: ONNX Runtime, docs/ContribOperators.md, and its graph optimisations, which these undo.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

from xcam_onnx.graph import FLOATS
from xcam_onnx.standard.registry import MICROSOFT, NotExpandable, Original, Writer, expands

NORMALISED = 1e-5
"""The epsilon of normalisations that do not state one, but for those of skip connections: 1e-12."""
CHANNELS_FIRST, CHANNELS_LAST = [0, 3, 1, 2], [0, 2, 3, 1]
"""Permutations of the axes to NCHW, and back."""
PARAMETERS = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Clip": ("min", "max")}
"""The order of a fused convolution's `activation_params`."""


def number(n: Original, w: Writer, value: float, like: str) -> str:
    """Write a constant with the type of a tensor; for a tensor that was just written, with that of the node's inputs."""
    dtype = next((t for t in map(n.dtype, (like, *n.inputs)) if t in FLOATS), 0)
    if dtype:
        return w.constant(helper.tensor_dtype_to_np_dtype(dtype).type(value))
    if w.opset < 15:
        raise NotExpandable("the type of its input is not known")
    return w.CastLike(value, like)


def wide(n: Original, w: Writer, x: str) -> tuple[str, int]:
    """Convert half precision to float32, in which normalisations compute; return the type to convert back to, or 0."""
    dtype = next((t for t in map(n.dtype, (x, *n.inputs)) if t in FLOATS), 0)
    if dtype in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        return w.Cast(x, to=TensorProto.FLOAT), dtype
    return x, 0


def mean(w: Writer, x: str, axes: Sequence[int]) -> str:
    """Write a mean over axes, which remain."""
    return w.ReduceMean(x, axes=list(axes)) if w.opset < 18 else w.ReduceMean(x, list(axes))


def activation(n: Original, w: Writer, x: str, kind: str, out: str = "", **parameters: Any) -> str:
    """Write an activation function."""
    if kind == "Clip":
        bounds = (number(n, w, parameters[key], x) for key in ("min", "max"))
        return w.Clip(x, *bounds, out=out)
    if kind == "HardSwish" and w.opset < 14:
        return w.Mul(x, w.HardSigmoid(x, alpha=1 / 6, beta=0.5), out=out)
    if kind == "ScaledTanh":  # dropped from ONNX
        inner = w.Tanh(w.Mul(x, number(n, w, parameters["beta"], x)))
        return w.Mul(inner, number(n, w, parameters["alpha"], x), out=out)
    if kind == "ParametricSoftplus":
        inner = w.Softplus(w.Mul(x, number(n, w, parameters["beta"], x)))
        return w.Mul(inner, number(n, w, parameters["alpha"], x), out=out)
    return w(kind, x, out=out, **parameters)[0]


@expands("FusedConv", domain=MICROSOFT)
def fused_conv(n: Original, w: Writer) -> None:
    _conv(n, w, [n.input(k) for k in range(4)], n.outputs[0])


def _conv(n: Original, w: Writer, inputs: Sequence[str], out: str) -> None:
    """act(x ∗ kernel + bias + z)."""
    x, kernel, bias, z = inputs
    kind, options = n.attr("activation"), n.attributes("activation", "activation_params")
    y = w.Conv(x, kernel, *([bias] if bias else []), out="" if kind or z else out, **options)
    if z:
        y = w.Add(y, z, out="" if kind else out)
    if kind:
        values = zip(PARAMETERS.get(kind, ()), n.attr("activation_params", []), strict=False)
        activation(n, w, y, kind, out, **dict(values))


@expands("FusedGemm", domain=MICROSOFT)
def fused_gemm(n: Original, w: Writer) -> None:
    """act(α·A·B + β·C)."""
    options, kind = n.attributes(), n.attr("activation")
    parameters = {key: options.pop(key) for key in list(options) if key.startswith("activation")}
    y = w.Gemm(*n.inputs, out="" if kind else n.outputs[0], **options)
    if kind:
        taken = set(onnx.defs.get_schema(kind).attributes) if onnx.defs.has(kind) else {"alpha", "beta"}
        values = {key.removeprefix("activation_"): value for key, value in parameters.items()}
        activation(n, w, y, kind, n.outputs[0], **{key: values[key] for key in taken & set(values)})


@expands("FusedMatMul", "TransposeMatMul", domain=MICROSOFT)
def fused_matmul(n: Original, w: Writer) -> None:
    """α·A·B; `transBatch` moves a matrix's first axis, its rows, behind the batch axes."""
    a, b = (
        _transposed(n, w, name, bool(n.attr(f"trans{side}", 0)), bool(n.attr(f"transBatch{side}", 0)))
        for name, side in zip(n.inputs, "AB", strict=True)
    )
    alpha = n.attr("alpha", 1.0)
    y = w.MatMul(a, b, out=n.outputs[0] if alpha == 1 else "")
    if alpha != 1:
        w.Mul(y, number(n, w, alpha, y), out=n.outputs[0])


def _transposed(n: Original, w: Writer, x: str, matrix: bool, batch: bool) -> str:
    shape = n.shape(x)
    if not (matrix or batch) or (shape is not None and len(shape) < 2):
        return x
    if shape is None:
        if batch:
            raise NotExpandable("the rank of its input is not known")
        return w.Einsum(x, equation="...ij->...ji")
    order = list(range(len(shape)))
    if batch:
        order = [*order[1:-1], 0, order[-1]]
    if matrix:
        order[-2:] = order[:-3:-1]
    return w.Transpose(x, perm=order)


def gelu(n: Original, w: Writer, x: str, out: str, tanh: bool = False) -> None:
    """x·Φ(x), or its approximation ½x(1 + tanh(√(2/π)·(x + 0.044715·x³))) (Hendrycks and Gimpel 2016)."""
    if w.opset >= 20:
        w.Gelu(x, approximate="tanh" if tanh else None, out=out)
        return
    if tanh:
        cubic = w.Mul(w.Mul(w.Mul(x, x), x), number(n, w, 0.044715, x))
        step = w.Tanh(w.Mul(w.Add(x, cubic), number(n, w, math.sqrt(2 / math.pi), x)))
    else:
        step = w.Erf(w.Mul(x, number(n, w, math.sqrt(0.5), x)))
    w.Mul(w.Mul(x, w.Add(step, number(n, w, 1, x))), number(n, w, 0.5, x), out=out)


@expands("Gelu", "BiasGelu", domain=MICROSOFT)
def bias_gelu(n: Original, w: Writer) -> None:
    gelu(n, w, w.Add(*n.inputs) if n.input(1) else n.inputs[0], n.outputs[0])


@expands("FastGelu", domain=MICROSOFT)
def fast_gelu(n: Original, w: Writer) -> None:
    gelu(n, w, w.Add(*n.inputs) if n.input(1) else n.inputs[0], n.outputs[0], tanh=True)


@expands("QuickGelu", domain=MICROSOFT)
def quick_gelu(n: Original, w: Writer) -> None:
    """x·σ(α·x)."""
    x, alpha = n.inputs[0], n.attr("alpha", 1.702)
    w.Mul(x, w.Sigmoid(x if alpha == 1 else w.Mul(x, number(n, w, alpha, x))), out=n.outputs[0])


@expands("BiasSplitGelu", domain=MICROSOFT)
def bias_split_gelu(n: Original, w: Writer) -> None:
    """a·gelu(b) for the halves a and b of x + bias (GEGLU)."""
    sum_ = w.Add(*n.inputs)
    first, second = w("Split", sum_, outputs=2, axis=-1, num_outputs=2 if w.opset >= 18 else None)
    activated = w.fresh("Gelu")
    gelu(n, w, second, activated)
    w.Mul(first, activated, out=n.outputs[0])


@expands("BiasAdd", domain=MICROSOFT)
def bias_add(n: Original, w: Writer) -> None:
    w.Add(w.Add(n.inputs[0], n.inputs[1]), n.inputs[2], out=n.outputs[0])


@expands("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(n: Original, w: Writer) -> None:
    """Normalise the sum of a block and its bypass."""
    x = _skipped(n, w, n.input(4))
    normalise(n, w, x, [-1], n.attr("epsilon", 1e-12), n.inputs[2], n.input(3), n.outputs[0])


@expands("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_rms_normalization(n: Original, w: Writer) -> None:
    x = _skipped(n, w, n.input(3))
    normalise(n, w, x, [-1], n.attr("epsilon", 1e-12), n.inputs[2], "", n.outputs[0], centred=False)


def _skipped(n: Original, w: Writer, bias: str) -> str:
    """Write input + skip + bias, which the fourth output may name."""
    if any(n.outputs[1:3]):
        raise NotExpandable("it returns its statistics")
    out = n.outputs[3] if len(n.outputs) > 3 else ""
    total = w.Add(n.inputs[0], n.inputs[1], out="" if bias else out)
    return w.Add(total, bias, out=out) if bias else total


@expands("SimplifiedLayerNormalization")
def simplified_layer_normalization(n: Original, w: Writer) -> None:
    _layer_normalization(n, w, centred=False)


@expands("LayerNormalization", newer=True)
def layer_normalization(n: Original, w: Writer) -> None:
    """LayerNormalization in a model whose operator set lacks it."""
    _layer_normalization(n, w)


def _layer_normalization(n: Original, w: Writer, centred: bool = True) -> None:
    axis, shape = n.attr("axis", -1), n.shape(n.inputs[0]) or n.shape(n.inputs[1])
    if axis != -1 and shape is None:
        raise NotExpandable("the rank of its input is not known")
    if any(n.outputs[1:]):
        raise NotExpandable("it returns its statistics")
    rank = len(shape or ())
    axes = list(range(axis if axis < 0 else axis - rank, 0))
    normalise(n, w, n.inputs[0], axes, n.attr("epsilon", NORMALISED), n.inputs[1], n.input(2), n.outputs[0], centred)


def normalise(
    n: Original,
    w: Writer,
    x: str,
    axes: list[int],
    epsilon: float,
    scale: str,
    bias: str,
    out: str,
    centred: bool = True,
) -> None:
    """Write (x − mean)/√(variance + ε)·scale + bias over the last axes; not centred: x/√(mean(x²) + ε)·scale.

    Source: Ba et al. 2016; Zhang and Sennrich 2019.
    """
    if centred and w.opset >= 17:
        w.LayerNormalization(x, scale, *([bias] if bias else []), axis=axes[0], epsilon=epsilon, out=out)
        return
    if not centred and w.opset >= 23:
        w.RMSNormalization(x, scale, axis=axes[0], epsilon=epsilon, out=out)
        return
    x, half = wide(n, w, x)
    like = w.constant(0.0) if half else x
    x = w.Sub(x, mean(w, x, axes)) if centred else x
    variance = w.Add(mean(w, w.Mul(x, x), axes), w.constant(epsilon) if half else number(n, w, epsilon, like))
    y = w.Div(x, w.Sqrt(variance))
    y = w.Cast(y, to=half) if half else y
    y = w.Mul(y, scale, out="" if bias else out)
    if bias:
        w.Add(y, bias, out=out)


@expands("GroupNorm", domain=MICROSOFT)
def group_norm(n: Original, w: Writer) -> None:
    _group_norm(n, w, n.inputs[0])


@expands("SkipGroupNorm", domain=MICROSOFT)
def skip_group_norm(n: Original, w: Writer) -> None:
    total = n.outputs[1] if len(n.outputs) > 1 else ""
    bias = n.input(4)
    x = w.Add(n.inputs[0], n.inputs[3], out="" if bias else total)
    _group_norm(n, w, w.Add(x, bias, out=total) if bias else x)


def _group_norm(n: Original, w: Writer, x: str) -> None:
    """Normalise groups of channels (Wu and He 2018), here the last axis; then perhaps x·σ(x)."""
    last = bool(n.attr("channels_last", 1))
    x, half = wide(n, w, x)
    x = w.Transpose(x, perm=CHANNELS_FIRST) if last else x
    groups = n.attr("groups")
    flat = w.Reshape(x, [0, groups, -1])
    centred = w.Sub(flat, mean(w, flat, [-1]))
    deviation = w.Sqrt(w.Add(mean(w, w.Mul(centred, centred), [-1]), w.constant(n.attr("epsilon", NORMALISED))))
    y = w.Reshape(w.Div(centred, deviation), w.Shape(x))
    scale, bias = (w.Reshape(name, [1, -1, 1, 1]) for name in n.inputs[1:3])
    y = w.Add(w.Mul(y, scale), bias)
    y = w.Mul(y, w.Sigmoid(y)) if n.attr("activation") else y
    y = w.Transpose(y, perm=CHANNELS_LAST) if last else y
    _renamed(w, w.Cast(y, to=half) if half else y, n.outputs[0])


@expands("NhwcConv", "NhwcFusedConv", domain=MICROSOFT)
def nhwc_conv(n: Original, w: Writer) -> None:
    """Compute a convolution of channels-last values; the kernel of NhwcConv is channels-last too."""
    last = n.proto.op_type == "NhwcConv"
    x, z = (w.Transpose(name, perm=CHANNELS_FIRST) if name else "" for name in (n.inputs[0], n.input(3)))
    kernel = w.Transpose(n.inputs[1], perm=CHANNELS_FIRST) if last else n.inputs[1]
    _conv(n, w, [x, kernel, n.input(2), z], out := w.fresh("Conv"))
    w.Transpose(out, perm=CHANNELS_LAST, out=n.outputs[0])


@expands("NhwcMaxPool", domain=MICROSOFT)
def nhwc_max_pool(n: Original, w: Writer) -> None:
    y = w.MaxPool(w.Transpose(n.inputs[0], perm=CHANNELS_FIRST), **n.attributes())
    w.Transpose(y, perm=CHANNELS_LAST, out=n.outputs[0])


def _renamed(w: Writer, written: str, out: str) -> None:
    """Give the last written tensor its final name."""
    outputs: Any = w.nodes[-1].output
    assert list(outputs) == [written]
    outputs[0] = out
