"""Normalisations. Those that compute their statistics from the tensor share one formula, `through_statistics`."""

from __future__ import annotations

from onnx import TensorProto

from xcam_onnx.autodiff.registry import Node, vjp
from xcam_onnx.autodiff.values import Ops, Unsupported, Value


def through_statistics(
    o: Ops, g: Value, normal: Value, inverse: Value, axes: list[int], centred: bool = True
) -> Value:
    """Return dx for y = (x − mean)/σ: (g − mean(g) − y·mean(g·y))/σ (Ioffe and Szegedy 2015, section 3).

    Args:
        o: Writes the nodes.
        g: The gradient at y.
        normal: y.
        inverse: 1/σ.
        axes: The axes of the means.
        centred: False where y = x/σ (RMS): mean(g) is left out.
    """
    along = normal * o.ReduceMean(g * normal, axes, keepdims=1)
    g = g - o.ReduceMean(g, axes, keepdims=1) if centred else g
    return (g - along) * inverse


def normalised(o: Ops, x: Value, axes: list[int], epsilon: float) -> tuple[Value, Value]:
    """Return (x − mean)/σ and 1/σ over `axes`."""
    centred = x - o.ReduceMean(x, axes, keepdims=1)
    inverse = 1 / o.Sqrt(o.ReduceMean(centred * centred, axes, keepdims=1) + epsilon)
    return centred * inverse, inverse


def per_channel(o: Ops, value: Value, rank: int) -> Value:
    """Reshape [C] to [C, 1, 1, …], to be broadcast along [N, C, *space]."""
    return o.Unsqueeze(value, list(range(1, rank - 1))) if rank > 2 else value


@vjp("BatchNormalization")
def batch_normalization(n: Node, g: Value) -> tuple[Value, ...]:
    if n.attr("training_mode", 0):
        raise Unsupported("it computes its statistics from the batch (training_mode)")
    o = n.ops
    scale, variance = _cast(n.inputs[1], g.dtype), _cast(n.inputs[4], g.dtype)
    return (g * per_channel(o, scale / o.Sqrt(variance + n.attr("epsilon", 1e-5)), n.x.rank),)


@vjp("InstanceNormalization")
def instance_normalization(n: Node, g: Value) -> tuple[Value, ...]:
    o, axes = n.ops, list(range(2, n.x.rank))
    normal, inverse = normalised(o, n.x, axes, n.attr("epsilon", 1e-5))
    return (through_statistics(o, g * per_channel(o, n.inputs[1], n.x.rank), normal, inverse, axes),)


@vjp("GroupNormalization")
def group_normalization(n: Node, g: Value) -> tuple[Value, ...]:
    o, groups, scale = n.ops, n.attr("num_groups"), n.inputs[1]
    if n.version < 21:  # the scale belongs to a whole group
        split = o.Reshape(g, [0, groups, -1]) * o.Unsqueeze(scale, [1])
    else:
        split = o.Reshape(g * per_channel(o, scale, n.x.rank), [0, groups, -1])
    normal, inverse = normalised(o, _wide(n, o.Reshape(n.x, [0, groups, -1])), [2], n.attr("epsilon", 1e-5))
    dx = through_statistics(o, _wide(n, split), normal, inverse, [2])
    return (o.reshape_like(_cast(dx, g.dtype), n.x),)


@vjp("LayerNormalization")
def layer_normalization(n: Node, g: Value) -> tuple[Value, ...]:
    o, axes = n.ops, list(range(n.axis(-1), n.x.rank))
    normal, inverse = normalised(o, _wide(n, n.x), axes, n.attr("epsilon", 1e-5))
    return (_cast(through_statistics(o, _wide(n, g * n.inputs[1]), normal, inverse, axes), n.x.dtype),)


@vjp("RMSNormalization", "SimplifiedLayerNormalization")
def rms_normalization(n: Node, g: Value) -> tuple[Value, ...]:
    """RMSNorm (Zhang and Sennrich 2019)."""
    o, axes, x = n.ops, list(range(n.axis(-1), n.x.rank)), _wide(n, n.x)
    inverse = 1 / o.Sqrt(o.ReduceMean(x * x, axes, keepdims=1) + n.attr("epsilon", 1e-5))
    g = _wide(n, g * n.inputs[1])
    return (_cast(through_statistics(o, g, x * inverse, inverse, axes, centred=False), n.x.dtype),)


@vjp("MeanVarianceNormalization")
def mean_variance_normalization(n: Node, g: Value) -> Value:
    """Differentiate (x − mean)/σ; its definition by other operators is invalid in half precision."""
    axes = [axis % n.x.rank for axis in n.attr("axes", [0, 2, 3])]
    normal, inverse = normalised(n.ops, _wide(n, n.x), axes, 1e-18)  # the standard adds 1e-9 to the deviation
    return _cast(through_statistics(n.ops, _wide(n, g), normal, inverse, axes), g.dtype)


def _wide(n: Node, x: Value) -> Value:
    """Convert half precision to the type in which the operator computes its statistics."""
    stash = n.attr("stash_type", 1)
    return n.ops.Cast(x, to=stash) if x.dtype in (TensorProto.FLOAT16, TensorProto.BFLOAT16) else x


def _cast(x: Value, dtype: int) -> Value:
    return x if x.dtype == dtype else x.ops.Cast(x, to=dtype)


@vjp("LpNormalization")
def lp_normalization(n: Node, g: Value) -> Value:
    o, x, axis = n.ops, n.x, [n.axis(-1)]
    along = o.ReduceSum(g * n.y, axis, keepdims=1)
    if n.attr("p", 2) == 1:
        norm, direction = o.ReduceSum(o.Abs(x), axis, keepdims=1), o.Sign(x)
    else:
        norm, direction = o.Sqrt(o.ReduceSum(x * x, axis, keepdims=1)), n.y
    return o.Where(norm > 0, (g - direction * along) / norm, 0)


@vjp("LRN")
def lrn(n: Node, g: Value) -> Value:
    """Local response normalisation (Krizhevsky 2012): y = x·d^−β, d = bias + α/size · Σ x² over neighbouring channels."""
    x, size = n.x, n.attr("size")
    alpha, beta, bias = n.attr("alpha", 1e-4), n.attr("beta", 0.75), n.attr("bias", 1.0)
    before, behind = (size - 1) // 2, size - 1 - (size - 1) // 2
    d = bias + (alpha / size) * _over_channels(n, x * x, before, behind)
    back = _over_channels(n, g * n.y / d, behind, before)
    return g * d ** (-beta) - (2 * alpha * beta / size) * x * back


def _over_channels(n: Node, x: Value, before: int, behind: int) -> Value:
    """Sum over `before` channels before and `behind` channels behind each."""
    o = n.ops
    x = o.Reshape(x, o.dims([n.x.dims[0], 1, n.x.dims[1], -1]))
    kernel = o.full([1, 1, before + behind + 1, 1], 1, x.dtype)
    return o.reshape_like(o.Conv(x, kernel, pads=[before, 0, behind, 0]), n.x)
