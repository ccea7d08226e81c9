"""Matrix products: the rules of `xcam_onnx.autodiff.rules.linear`.

Values stay away from kinks and ties, where no derivative exists.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  (as everywhere)

from onnx_rules import Case, Cases, Draw, Half, gradients, in_float16, in_other_precisions, one, rules_of

case = Cases()


@case("Gemm")
def gemm(d: Draw) -> Case:
    m, k, n = d.whole(1, 4), d.whole(1, 4), d.whole(1, 4)
    ta, tb, alpha, beta = d.whole(0, 1), d.whole(0, 1), d.of(1.0, 0.5), d.of(1.0, 2.0)
    values = {"x": d.any(*((k, m) if ta else (m, k))), "b": d.any(*((n, k) if tb else (k, n)))}
    values |= {"c": d.any(*shape)} if (shape := d.of(None, (), (n,), (1, n), (m, 1), (m, n))) is not None else {}

    def product(x: torch.Tensor, b: torch.Tensor, c: torch.Tensor | float = 0.0) -> torch.Tensor:
        return alpha * (x.T if ta else x) @ (b.T if tb else b) + beta * c

    attributes = {"transA": ta, "transB": tb, "alpha": alpha, "beta": beta}
    return one(d, values, product, at=list(values), free="bc", **attributes)


@case("MatMul")
def matmul(d: Draw) -> Case:
    m, k, n, lead = d.whole(1, 4), d.whole(1, 4), d.whole(1, 4), d.shape(0, 2, 3)
    left = (k,) if (flat := d.of(0, 0, 0, 1)) else (*d.broadcast(lead), m, k)
    right = (k,) if d.of(0, 0, 0, 1) else (*(lead if flat or d.flag() else d.broadcast(lead)), k, n)
    return one(d, {"x": d.any(*left), "b": d.any(*right)}, torch.matmul, at="xb", free="b")


@case("MatMul", kind="weight")
def matmul_weight(d: Draw) -> Case:
    x, n = d.any(*d.shape(2, 4)), d.whole(1, 4)
    return one(d, {"x": x, "b": d.any(x.shape[-1], n)}, torch.matmul, fixed="b")


EQUATIONS = {
    "ij,jk->ik": ("ij", "jk"),
    "bhwc,hkc->bhwk": ("bhwc", "hkc"),
    "bij,bjk": ("bij", "bjk"),
    "ij,kl->ik": ("ij", "kl"),
    "nctkv,kvw->nctw": ("nctkv", "kvw"),
    "...ij,jk->...ik": ("abij", "jk"),
    "...ij,...jk->...ik": ("abij", "abjk"),
    "bi, bj -> bij": ("bi", "bj"),
    "ij->ji": ("ij",),
    "ij->": ("ij",),
    "i,i": ("i", "i"),
    "ab,bc,cd->ad": ("ab", "bc", "cd"),
}


@case("Einsum")
def einsum(d: Draw) -> Case:
    equation = d.of(*EQUATIONS)
    sizes = {label: d.whole(1, 3) + 1 for label in "".join(EQUATIONS[equation])}
    sizes = {label: n if d.of(1, 1, 0) else 2 for label, n in sizes.items()}
    shapes = [[sizes[label] for label in term] for term in EQUATIONS[equation]]
    values = {name: d.any(*shape) for name, shape in zip("xbc", shapes, strict=False)}
    function = lambda *xs: torch.einsum(equation, *xs)  # noqa: E731
    return one(d, values, function, at=list(values), free="bc", equation=equation)


test_gradient = gradients(case)
test_other_precisions = in_other_precisions(case)


def test_every_rule_has_cases() -> None:
    assert case.operators == rules_of("linear")


HALF: Half = {
    "Gemm": ([(3, 5), (4, 5), (4,)], {"transB": 1}, F.linear),
}

test_float16 = in_float16(HALF)
