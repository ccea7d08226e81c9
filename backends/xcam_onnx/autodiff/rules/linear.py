"""Matrix products. The operator that reads a weight transposes it, so that no weight is stored twice."""

from __future__ import annotations

import string

from xcam_onnx.autodiff.registry import Node, vjp
from xcam_onnx.autodiff.values import Unsupported, Value


@vjp("Gemm")
def gemm(n: Node, g: Value) -> tuple[Value | None, ...]:
    o, a, b, c = n.ops, n.x, n.inputs[1], n.input(2)
    alpha, ta, tb = n.attr("alpha", 1.0), n.attr("transA", 0), n.attr("transB", 0)
    da = o.Gemm(b, g, alpha=alpha, transA=tb, transB=1) if ta else o.Gemm(g, b, alpha=alpha, transB=1 - tb)
    db = o.Gemm(g, a, alpha=alpha, transA=1, transB=ta) if tb else o.Gemm(a, g, alpha=alpha, transA=1 - ta)
    return da, db, c and o.undo_broadcast(g * n.attr("beta", 1.0), n.y, c)


@vjp("MatMul")
def matmul(n: Node, g: Value) -> tuple[Value, ...]:
    """Treat vectors as matrices of one row or column, and broadcast leading axes, as numpy.matmul does."""
    o, a, b = n.ops, n.x, n.inputs[1]
    if b.rank == 2 and a.rank >= 2 and b.name not in o.graph.live:
        return (o.reshape_like(o.Gemm(o.Reshape(g, o.dims([-1, b.dims[1]])), b, transB=1), a),)
    wide_a, wide_b = (o.Unsqueeze(a, [0]) if a.rank == 1 else a), (o.Unsqueeze(b, [1]) if b.rank == 1 else b)
    if b.rank == 1:
        g = o.Unsqueeze(g, [-1])
    if a.rank == 1:
        g = o.Unsqueeze(g, [-2])
    da = o.MatMul(g, o.transpose_matrices(wide_b, max(b.rank, 2)))
    db = o.MatMul(o.transpose_matrices(wide_a, max(a.rank, 2)), g)
    return _undo_leading(n, da, a), _undo_leading(n, db, b)


def _undo_leading(n: Node, g: Value, x: Value) -> Value:
    """Sum over the leading axes along which `x` was broadcast, and restore its shape."""
    o, rank = n.ops, max(n.x.rank, n.inputs[1].rank)
    if x.rank <= 2:
        g = o.ReduceSum(g, list(range(rank - 2)), keepdims=0) if rank > 2 else g
    elif min(n.x.rank, n.inputs[1].rank) > 1:
        return o.undo_broadcast(g, n.y, x, matrix_axes=2)
    return o.reshape_like(g, x)


@vjp("Einsum")
def einsum(n: Node, g: Value) -> list[Value]:
    """Exchange each operand with the output: its labels remain, the others are contracted."""
    o, equation = n.ops, n.attr("equation")
    terms, right = _terms(equation, [x.rank for x in n.inputs])
    if any(len(set(term)) != len(term) for term in terms):
        raise Unsupported(f"its equation {equation!r} repeats a label in one operand")
    sizes: dict[str, set[object]] = {}
    for term, x in zip(terms, n.inputs, strict=True):
        for label, size in zip(term, x.shape, strict=True):
            sizes.setdefault(label, set()).add(size)
    if any(1 in lengths and len(lengths) > 1 for lengths in sizes.values()):
        raise Unsupported(f"its equation {equation!r} broadcasts an operand")
    products = []
    for k, term in enumerate(terms):
        others = [t for i, t in enumerate(terms) if i != k]
        kept = "".join(c for c in term if c in right or any(c in t for t in others))
        operands = [g, *(x for i, x in enumerate(n.inputs) if i != k)]
        d = o.Einsum(*operands, equation=f"{','.join([right, *others])}->{kept}")
        if kept != term:  # an axis that was summed over alone: the gradient is constant along it
            d = o.expand_like(o.Unsqueeze(d, [i for i, c in enumerate(term) if c not in kept]), n.inputs[k])
        products.append(d)
    return products


def _terms(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """Return the labels of the operands and of the output, with letters for the axes of an ellipsis."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        flat = left.replace(",", "").replace("...", "")
        right = ("..." if "..." in left else "") + "".join(sorted(c for c in set(flat) if flat.count(c) == 1))
    spare = [c for c in string.ascii_letters if c not in equation]
    widths = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    widest = max(widths)

    def expanded(term: str, width: int) -> str:
        return term.replace("...", "".join(spare[widest - width : widest]))

    return [expanded(term, width) for term, width in zip(terms, widths, strict=True)], expanded(right, widest)
