"""Operators without a rule that the standard defines by others: their definitions are differentiated."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (as everywhere)

from onnx_gradients import NEWEST
from onnx_rules import Case, Cases, Draw, gradients, in_other_precisions, one
from xcam_onnx.autodiff import RULES

case = Cases()


@case("Attention")
def attention(d: Draw) -> Case:
    """Heads on a separate axis; a mask, added or boolean; fewer key heads; the causal mask."""
    n, heads, share, q, k, size = (
        d.whole(1, 2),
        d.whole(1, 2),
        d.of(1, 2),
        d.whole(1, 3),
        d.whole(1, 4),
        d.whole(1, 4),
    )
    values = {"x": d.any(n, heads * share, q, size)}
    values |= {"k": d.any(n, heads, k, size), "v": d.any(n, heads, k, d.whole(1, 4))}
    scale, causal = d.of(None, 0.3), d.flag()
    attributes = {"is_causal": int(causal)} | ({} if scale is None else {"scale": scale})
    at = ["x", "k", "v"]
    if not causal and (kind := d.of("", "truth", "added")):
        mask = d.any(q, k)
        values["m"] = mask if kind == "added" else (mask > 0) | (np.arange(k) == 0)
        at += ["m"] * (kind == "added")

    def function(x: torch.Tensor, k: torch.Tensor, v: torch.Tensor, m: torch.Tensor | None = None) -> torch.Tensor:
        more = {"attn_mask": m, "is_causal": causal, "scale": scale, "enable_gqa": share > 1}
        return F.scaled_dot_product_attention(x, k, v, **more)

    return one(d, values, function, at=at, free="m", by="torch", opset=d.opset(23, 24, NEWEST), **attributes)


@case("Attention", kind="packed")
def packed(d: Draw) -> Case:
    """Heads that are concatenated along the last axis."""
    n, heads, q, k, size = d.whole(1, 2), d.whole(1, 3), d.whole(1, 3), d.whole(1, 4), d.whole(1, 3)
    values = {"x": d.any(n, q, heads * size), "k": d.any(n, k, heads * size), "v": d.any(n, k, heads * size)}

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        apart = (t.reshape(n, -1, heads, size).transpose(1, 2) for t in tensors)
        return F.scaled_dot_product_attention(*apart).transpose(1, 2).flatten(2)

    opset = d.opset(23, 24, NEWEST)
    return one(
        d, values, function, at="xkv", by="torch", opset=opset, symbolic=(), q_num_heads=heads, kv_num_heads=heads
    )


@case("Shrink")
def shrink(d: Draw) -> Case:
    lambd, bias = d.of(0.5, 0.3), d.of(0.0, 0.2)
    attributes = {"lambd": lambd} if d.flag() or lambd != 0.5 else {}
    attributes |= {"bias": bias} if bias else {}
    return one(d, {"x": d.off(-lambd, lambd)(*d.shape(1, 3))}, opset=d.opset(18, 21, NEWEST), **attributes)


test_gradient = gradients(case)
test_other_precisions = in_other_precisions(case)


def test_they_have_no_rule() -> None:
    assert case.operators == {("", "Attention"), ("", "Shrink")}
    assert not case.operators & set(RULES)
