"""Expansions of attention: softmax(q·kᵀ·scale + mask)·v for each head (Vaswani et al. 2017).

Source of the layouts and masks: ONNX Runtime, docs/ContribOperators.md. Values between operators here are [batch, head,
token, value].
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from xcam_onnx.standard.fused import number
from xcam_onnx.standard.registry import MICROSOFT, NotExpandable, Original, Writer, expands

IN_HEADS, STACKED = 4, 5
"""Ranks of [batch, head, token, value], and of [batch, token, head, 2 or 3, value]."""
MASKED = -10000.0
"""The value that is added to masked scores by default."""


@expands("Attention", domain=MICROSOFT)
def attention(n: Original, w: Writer) -> None:
    """Project the tokens to q, k and v by one matrix, then attend."""
    if n.input(4) or n.input(6) or any(n.outputs[1:]) or n.attr("do_rotary", 0):
        raise NotExpandable("it keeps past states, or turns its values")
    merged = w.MatMul(n.inputs[0], n.inputs[1])
    merged = w.Add(merged, n.input(2)) if n.input(2) else merged
    parts = _split(w, merged, n.attr("qkv_hidden_sizes"))
    heads = [_heads(n, w, x) for x in parts]
    _attend(n, w, heads, _mask(n, w, n.input(3), heads), n.input(5))


@expands("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(n: Original, w: Writer) -> None:
    """Attend: q, k and v are apart, or stacked on the fourth axis, or k and v are in heads already."""
    if any(n.input(k) for k in range(6, 10)) or any(n.outputs[1:]):
        raise NotExpandable("it keeps past states")
    query, key, value, bias = (n.input(k) for k in range(4))
    of_query, of_key = (_rank(n, name) if name else 0 for name in (query, key))
    if n.attr("unidirectional", 0) and key and _length(n, query) != _length(n, key):
        raise NotExpandable("it is unidirectional, and q and k may have different lengths")
    if of_query == STACKED:
        parts = _stacked(w, query, 3)
    elif of_key == STACKED:
        parts = [query, *_stacked(w, key, 2)]
    else:
        parts = [query, key, value]
    if bias:
        biases = _biases(n, w, bias, query)
        count = 1 if of_key == IN_HEADS else 3  # k and v in heads have theirs
        parts = [*(w.Add(x, b) for x, b in zip(parts[:count], biases[:count], strict=True)), *parts[count:]]
    heads = [x if of_key == IN_HEADS and k else _heads(n, w, x) for k, x in enumerate(parts)]
    _attend(n, w, heads, _mask(n, w, n.input(4), heads), n.input(5))


def _length(n: Original, name: str) -> int | str | None:
    """Return the number of tokens, as far as it is known."""
    shape = n.shape(name) or ()
    return shape[-2] if len(shape) in (3, IN_HEADS) else None


def _stacked(w: Writer, x: str, count: int) -> list[str]:
    """Take [batch, token, head, count, value] apart; the results have heads and values on one axis."""
    return [w.Reshape(w.Gather(x, np.int64(k), axis=3), [0, 0, -1]) for k in range(count)]


def _rank(n: Original, name: str) -> int:
    shape = n.shape(name)
    if shape is None:
        raise NotExpandable("the rank of its input is not known")
    return len(shape)


def _biases(n: Original, w: Writer, bias: str, query: str) -> list[str]:
    """Split the biases of q, k and v; v may be wider than the others."""
    total, shape = (n.shape(bias) or (None,))[0], n.shape(query) or ()
    width = shape[-1] if len(shape) == 3 else None
    if not isinstance(total, int) or (len(shape) == 3 and not isinstance(width, int)):
        raise NotExpandable("the shape of its input is not known")
    width = width if isinstance(width, int) else total // 3
    return _split(w, bias, [width, width, total - 2 * width])


def _split(w: Writer, x: str, sizes: list[int] | None) -> list[str]:
    """Split the last axis in three, equally by default."""
    if sizes is None:
        return w("Split", x, outputs=3, axis=-1, num_outputs=3 if w.opset >= 18 else None)
    return w(
        "Split", x, *([sizes] if w.opset >= 13 else []), outputs=3, axis=-1, split=sizes if w.opset < 13 else None
    )


def _heads(n: Original, w: Writer, x: str) -> str:
    """Reshape [batch, token, head · value] to [batch, head, token, value]."""
    return w.Transpose(w.Reshape(x, [0, 0, n.attr("num_heads"), -1]), perm=[0, 2, 1, 3])


def _size(w: Writer, x: str, axis: int) -> str:
    return w.Gather(w.Shape(x), np.int64(axis))


def _attend(n: Original, w: Writer, heads: list[str], mask: str, bias: str) -> None:
    q, k, v = heads
    scale = n.attr("scale", 0.0)
    products = w.MatMul(q, w.Transpose(k, perm=[0, 1, 3, 2]))
    if scale:
        scores = w.Mul(products, number(n, w, scale, products))
    else:
        root = w.Sqrt(w.Cast(_size(w, q, 3), to=TensorProto.FLOAT))
        scores = w.Div(products, w.Cast(root, to=_dtype(n)))
    for added in (mask, bias, _causal(n, w, heads)):
        scores = w.Add(scores, added) if added else scores
    context = w.MatMul(w.Softmax(scores, axis=-1), v)
    w.Reshape(w.Transpose(context, perm=[0, 2, 1, 3]), [0, 0, -1], out=n.outputs[0])


def _dtype(n: Original) -> int:
    return next((t for t in map(n.dtype, n.inputs) if t in (TensorProto.FLOAT16, TensorProto.FLOAT)), 1)


def _positions(w: Writer, x: str) -> str:
    """Return 0, 1, … for the tokens of x, as int64."""
    return w.Range(np.int64(0), _size(w, x, 2), np.int64(1))


def _additive(n: Original, w: Writer, kept: str, like: str, filled: float) -> str:
    return w.Where(kept, number(n, w, 0, like), number(n, w, filled, like))


def _causal(n: Original, w: Writer, heads: list[str]) -> str:
    """Mask the tokens behind each token, where the operator is unidirectional."""
    if not n.attr("unidirectional", 0):
        return ""
    columns, rows = _positions(w, heads[1]), w.Reshape(_positions(w, heads[0]), [-1, 1])
    return _additive(n, w, w.Not(w.Greater(columns, rows)), heads[0], float(np.finfo(np.float32).min))


def _mask(n: Original, w: Writer, mask: str, heads: list[str]) -> str:
    """Return values to add to the scores, from one of the forms of a mask; "" where there is none.

    [batch, key] and [batch, query, key] are 0 where a token is masked; [batch] and [2 · batch] hold the ends, and the
    starts, of the tokens that are not.
    """
    if not mask:
        return ""
    rank, batch = _rank(n, mask), (n.shape(n.inputs[0]) or (None,))[0]
    if rank in (2, 3):
        axes = [1, 2][: 4 - rank]
        wide = w.Unsqueeze(mask, axes) if w.opset >= 13 else w.Unsqueeze(mask, axes=axes)
        kept = w.Greater(wide, np.int32(0))
    elif rank == 1:
        (length,) = n.shape(mask) or (None,)
        positions, limits = _positions(w, heads[1]), w.Cast(mask, to=TensorProto.INT64)
        if length == batch and length is not None:
            kept = w.Less(positions, w.Reshape(limits, [-1, 1, 1, 1]))
        elif isinstance(length, int) and isinstance(batch, int) and length == 2 * batch:
            limits = w.Reshape(limits, [2, -1, 1, 1, 1])
            ends, starts = (w.Gather(limits, np.int64(k)) for k in range(2))
            kept = w.And(w.Less(positions, ends), w.Not(w.Less(positions, starts)))
        else:
            raise NotExpandable("the form of its mask is not known")
    else:
        raise NotExpandable("the form of its mask is not known")
    return _additive(n, w, kept, heads[0], n.attr("mask_filter_value", MASKED))
