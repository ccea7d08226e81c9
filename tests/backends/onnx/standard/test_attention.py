"""Expansions of attention: the same values as ONNX Runtime gives for the operators themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (as everywhere)
from onnx import TensorProto, helper

import xcam
from onnx_standard import agree, both, model_of, run, standard
from xcam.contract import Array
from xcam_onnx.standard.registry import NotExpandable

HEADS = 2
MASKS: dict[str, Array | None] = {
    "none": None,
    "ends": np.array([3, 5], np.int32),
    "ends and starts": np.array([4, 5, 1, 2], np.int32),
    "keys": np.array([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1]], np.int32),
    "nothing left": np.array([[0] * 5, [0, 1, 0, 1, 1]], np.int32),
    "pairs": (np.random.default_rng(0).random((2, 5, 5)) > 0.4).astype(np.int32),
}


def values(*shape: int, seed: int = 0) -> Array:
    """Return random values."""
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("unidirectional", [0, 1])
@pytest.mark.parametrize("opset", [11, 18])
def test_attention(mask: str, unidirectional: int, opset: int) -> None:
    feeds, value = {"x": 2 * values(2, 5, 8)}, MASKS[mask]
    if value is not None:
        feeds["mask"] = value
    names = ["x", "w", "b", *(["mask"] if value is not None else [])]
    options: dict[str, Any] = {"num_heads": HEADS, "unidirectional": unidirectional}
    agree(both("Attention", feeds, {"w": values(8, 24), "b": values(24)}, inputs=names, opset=opset, **options))


def test_attention_with_other_options() -> None:
    x, w, b = {"x": values(2, 5, 8)}, {"w": values(8, 24)}, {"b": values(24)}
    agree(both("Attention", x, w, num_heads=4, scale=0.3))
    for opset in (11, 13, 18):
        sizes = {"num_heads": HEADS, "qkv_hidden_sizes": [8, 8, 4]}
        agree(both("Attention", x, {"w": values(8, 20), "b": values(20)}, opset=opset, **sizes))
    for shape in ((1, 2, 5, 5), (2, 1, 5, 5)):
        feeds = {**x, "bias": values(*shape)}
        agree(both("Attention", feeds, {**w, **b}, inputs=["x", "w", "b", "", "", "bias"], num_heads=HEADS))
    keys = MASKS["keys"]
    assert keys is not None
    feeds, names = {**x, "mask": keys}, ["x", "w", "b", "mask"]
    agree(both("Attention", feeds, {**w, **b}, inputs=names, num_heads=HEADS, mask_filter_value=-2.0))


@pytest.mark.parametrize("mask", [None, (2,), (2, 7), (2, 5, 7)])
@pytest.mark.parametrize("biased", [False, True])
def test_attention_to_other_tokens(mask: tuple[int, ...] | None, biased: bool) -> None:
    """Of another number, and with wider values."""
    feeds = {"q": values(2, 5, 8), "k": values(2, 7, 8), "v": values(2, 7, 12)}
    if mask is not None:
        drawn = np.random.default_rng(0).random(mask) > 0.4
        feeds["mask"] = np.array([3, 5], np.int32) if len(mask) == 1 else drawn.astype(np.int32)
    names = ["q", "k", "v", "b" if biased else "", *(["mask"] if mask else [])]
    agree(both("MultiHeadAttention", feeds, {"b": values(28)} if biased else {}, inputs=names, num_heads=4))
    feeds["bias"] = values(1, 4, 5, 7)
    names = [*names, *([] if mask else [""]), "bias"]
    agree(
        both("MultiHeadAttention", feeds, {"b": values(28)} if biased else {}, inputs=names, num_heads=4, scale=0.2)
    )


def test_keys_and_values_in_heads() -> None:
    feeds = {"q": values(2, 5, 8), "k": values(2, HEADS, 7, 4), "v": values(2, HEADS, 7, 4, seed=1)}
    agree(both("MultiHeadAttention", feeds, num_heads=HEADS))
    agree(both("MultiHeadAttention", feeds, {"b": values(24)}, num_heads=HEADS))


def test_stacked_values() -> None:
    """The CPU lacks these layouts: the reference is the same attention with q, k and v apart."""
    q, k, v = (values(2, 5, 8, seed=i) for i in range(3))
    bias = {"b": values(24)}

    def attended(*inputs: Array, names: list[str]) -> Array:
        feeds = dict(zip("qkv", inputs, strict=False))
        node = helper.make_node("MultiHeadAttention", names, ["y"], domain="com.microsoft", num_heads=HEADS)
        return run(standard(model_of([node], feeds, bias)), feeds)[0]

    def stacked(*parts: Array) -> Array:
        return np.stack([part.reshape(2, 5, HEADS, 4) for part in parts], 3)

    expected = attended(q, k, v, names=["q", "k", "v", "b"])
    np.testing.assert_allclose(attended(stacked(q, k, v), names=["q", "", "", "b"]), expected, atol=1e-6)
    np.testing.assert_allclose(attended(q, stacked(k, v), names=["q", "k", "", "b"]), expected, atol=1e-6)


def test_attention_to_earlier_tokens_only() -> None:
    same = {"q": values(2, 5, 8), "k": values(2, 5, 8, seed=1), "v": values(2, 5, 8, seed=2)}
    agree(both("MultiHeadAttention", same, num_heads=HEADS, unidirectional=1))
    other = {"q": values(2, 5, 8), "k": values(2, 7, 8), "v": values(2, 7, 8)}
    with pytest.raises(NotExpandable, match="lengths"):
        both("MultiHeadAttention", other, num_heads=HEADS, unidirectional=1)


def test_half_precision() -> None:
    """The CPU computes attention in float32 only: the reference is that of the same values in float32."""
    x, constants = {"x": values(2, 5, 8)}, {"w": values(8, 24), "b": values(24)}
    node = helper.make_node("Attention", ["x", "w", "b"], ["y"], domain="com.microsoft", num_heads=HEADS)
    (expected,) = run(standard(model_of([node], x, constants)), x)
    half = {name: value.astype(np.float16) for name, value in x.items()}
    model = model_of([node], half, {name: value.astype(np.float16) for name, value in constants.items()})
    (y,) = run(standard(model), half)
    assert y.dtype == np.float16
    np.testing.assert_allclose(y.astype(np.float32), expected, atol=2e-2)


@pytest.mark.parametrize("op", ["Attention", "MultiHeadAttention"])
def test_an_opened_model(op: str) -> None:
    """Its predictions are the runtime's, and its gradient that of torch."""
    image = values(2, 3, 8, 8)
    weights = {
        **{"kernel": values(8, 3, 2, 2), "shape": np.array([0, 0, -1]), "w": values(8, 24), "b": values(24)},
        **{"gamma": values(8), "beta": values(8, seed=1), "head": values(8, 5), "sizes": np.array([8, 8, 8])},
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["patch"], "patch", strides=[2, 2]),
        helper.make_node("Reshape", ["patch", "shape"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["tokens"], "tokens", perm=[0, 2, 1]),
    ]
    if op == "Attention":
        attention = helper.make_node(op, ["tokens", "w", "b"], ["y"], domain="com.microsoft", num_heads=HEADS)
    else:
        nodes += [
            helper.make_node("MatMul", ["tokens", "w"], ["all"]),
            helper.make_node("Split", ["all", "sizes"], ["q", "k", "v"], axis=-1),
        ]
        attention = helper.make_node(op, ["q", "k", "v", "b"], ["y"], domain="com.microsoft", num_heads=HEADS)
    skip = ["tokens", "y", "gamma", "beta"]
    nodes += [
        attention,
        helper.make_node("SkipLayerNormalization", skip, ["norm"], domain="com.microsoft", epsilon=1e-5),
        helper.make_node("ReduceMean", ["norm"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("Gemm", ["mean", "head"], ["scores"]),
    ]
    proto = model_of(nodes, {"image": image}, weights)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("scores", TensorProto.FLOAT, [2, 5]))
    model = xcam.load(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(model.predict(image), session.run(None, {"image": image})[0])

    trace = model.trace(image, "patch", lambda _: [np.eye(5, dtype=np.float32)[[1, 3]]])
    w = {name: torch.from_numpy(value) for name, value in weights.items()}
    patch = F.conv2d(torch.from_numpy(image), w["kernel"], stride=2).requires_grad_()
    tokens = patch.flatten(2).transpose(1, 2)
    q, k, v = ((tokens @ w["w"] + w["b"]).reshape(2, 16, 3, HEADS, 4).permute(2, 0, 3, 1, 4)).unbind(0)
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 16, 8)
    scores = F.layer_norm(tokens + y, [8], w["gamma"], w["beta"]).mean(1) @ w["head"]
    (gradient,) = torch.autograd.grad(scores[0, 1] + scores[1, 3], patch)
    np.testing.assert_allclose(trace.outputs, scores.detach(), atol=1e-5)
    np.testing.assert_allclose(trace.gradients[0], gradient, atol=1e-4 * float(gradient.abs().max()))
