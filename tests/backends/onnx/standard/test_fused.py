"""Expansions of fused operators: the same values as ONNX Runtime gives for the operators themselves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_standard import agree, both, model_of, run, standard
from xcam.contract import Array
from xcam_onnx.graph import Graph
from xcam_onnx.standard.form import StandardForm
from xcam_onnx.standard.registry import NotExpandable

OPSETS = (11, 13, 17, 20, 23)


def values(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    """Return random values."""
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("opset", [11, 14, 17])
@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("", []),
        ("Relu", []),
        ("Sigmoid", []),
        ("Tanh", []),
        ("LeakyRelu", [0.3]),
        ("Clip", [-0.5, 0.75]),
        ("HardSigmoid", [0.3, 0.4]),
        ("HardSwish", []),
    ],
)
@pytest.mark.parametrize("added", [False, True])
def test_convolutions(kind: str, parameters: list[float], added: bool, opset: int) -> None:
    constants = {"kernel": values(4, 2, 3, 3), "bias": values(4)}
    feeds = {"x": values(2, 4, 6, 5), "z": values(2, 4, 3, 3)} if added else {"x": values(2, 4, 6, 5)}
    names = ["x", "kernel", "bias", "z"][: 3 + added]
    options: dict[str, Any] = {"activation": kind} if kind else {}
    options |= {"activation_params": parameters} if parameters else {}
    agree(
        both(
            "FusedConv", feeds, constants, inputs=names, opset=opset, group=2, strides=[2, 2], pads=[1] * 4, **options
        )
    )


def test_a_convolution_without_bias_may_have_an_added_input() -> None:
    feeds = {"x": values(1, 3, 4, 4), "z": values(1, 2, 4, 4)}
    kernel = {"kernel": values(2, 3, 1, 1)}
    agree(both("FusedConv", feeds, kernel, inputs=["x", "kernel", "", "z"], activation="Relu"))


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("Relu", {"alpha": 0.5}),
        ("Elu", {"alpha": 0.7}),
        ("LeakyRelu", {"alpha": 0.3}),
        ("Sigmoid", {}),
        ("Tanh", {}),
        ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}),
        ("Softplus", {}),
        ("Softsign", {}),
        ("ThresholdedRelu", {"alpha": 0.4}),
        ("Selu", {"alpha": 0.7, "gamma": 0.4}),
        ("Celu", {"alpha": 0.7}),
        ("ScaledTanh", {"alpha": 0.7, "beta": 0.4}),
        ("ParametricSoftplus", {"alpha": 0.7, "beta": 0.4}),
    ],
)
def test_gemms(kind: str, parameters: dict[str, float]) -> None:
    options: dict[str, Any] = {f"activation_{key}": value for key, value in parameters.items()}
    for transposed in (0, 1):
        weights = {"b": values(5, 4) if transposed else values(4, 5), "c": values(5)}
        for alpha, beta in ((1.0, 1.0), (0.5, 2.0)):
            agree(
                both(
                    "FusedGemm",
                    {"a": values(3, 4)},
                    weights,
                    activation=kind,
                    transB=transposed,
                    alpha=alpha,
                    beta=beta,
                    **options,
                )
            )
    agree(both("FusedGemm", {"a": values(3, 4)}, {"b": values(4, 5)}, activation=kind, **options))


@settings(max_examples=60, deadline=None)
@given(
    batch=st.lists(st.integers(1, 3), max_size=2),
    alpha=st.sampled_from([1.0, 0.25]),
    flags=st.tuples(*[st.booleans()] * 4),
    opset=st.sampled_from([11, 17]),
)
def test_products(batch: list[int], alpha: float, flags: tuple[bool, ...], opset: int) -> None:
    """`transBatch` needs batch axes, and takes rows from the first axis."""
    trans_a, trans_b, batch_a, batch_b = (flag and (i < 2 or bool(batch)) for i, flag in enumerate(flags))
    rows, inner, columns = 2, 3, 4

    def arranged(x: Array, transposed: bool, moved: bool) -> Array:
        x = x.swapaxes(-1, -2) if transposed else x
        return np.ascontiguousarray(np.moveaxis(x, -2, 0) if moved else x)

    a = arranged(values(*batch, rows, inner), trans_a, batch_a)
    b = arranged(values(*batch, inner, columns, seed=1), trans_b, batch_b)
    pair = both(
        "FusedMatMul",
        {"a": a, "b": b},
        opset=opset,
        alpha=alpha,
        transA=int(trans_a),
        transB=int(trans_b),
        transBatchA=int(batch_a),
        transBatchB=int(batch_b),
    )
    agree(pair)
    assert pair[0][0].shape == (*batch, rows, columns)


def test_products_of_unknown_rank() -> None:
    nodes = [
        onnx.helper.make_node("QuickGelu", ["a"], ["c"], domain="com.microsoft"),
        onnx.helper.make_node("FusedMatMul", ["c", "b"], ["y"], domain="com.microsoft", transA=1),
    ]
    model = model_of(nodes, {"a": values(2, 3, 4)}, {"b": values(3, 5)})
    assert "Einsum" in {node.op_type for node in standard(model).graph.node}
    nodes[1].attribute.append(onnx.helper.make_attribute("transBatchA", 1))
    with pytest.raises(NotExpandable, match="rank"):
        standard(model_of(nodes, {"a": values(2, 3, 4)}, {"b": values(3, 5)}))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("bias", [False, True])
def test_gelus(bias: bool, opset: int) -> None:
    feeds, constants = {"x": 3 * values(2, 5, 6)}, {"b": values(6)}
    agree(both("BiasGelu", feeds, constants, opset=opset) if bias else both("Gelu", feeds, opset=opset))
    agree(both("FastGelu", feeds, constants if bias else None, opset=opset))
    agree(both("QuickGelu", feeds, opset=opset, **({"alpha": 1.0} if bias else {})))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_normalisations_of_skip_connections(rms: bool, bias: bool, opset: int) -> None:
    feeds = {"x": values(2, 5, 6), "skip": values(2, 5, 6, seed=1)}
    constants = {"gamma": values(6), "beta": values(6, seed=1), "bias": values(6, seed=2)}
    names = ["x", "skip", "gamma", *([] if rms else ["beta"]), *(["bias"] if bias else [])]
    op = "SkipSimplifiedLayerNormalization" if rms else "SkipLayerNormalization"
    outputs = ["y", "", "", "sum"] if bias else ["y"]
    agree(both(op, feeds, constants, inputs=names, outputs=outputs, opset=opset, epsilon=1e-3))
    no_beta = ["x", "skip", "gamma"]
    agree(both(op, feeds, constants, inputs=no_beta, outputs=["y", "", "", "sum"], opset=opset))
    agree(both(op, {"x": feeds["x"], "skip": values(1, 5, 6)}, constants, inputs=names, opset=opset))


@pytest.mark.parametrize("opset", [11, 16])
@pytest.mark.parametrize("axis", [-1, 1, -2, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_layer_norms_of_older_operator_sets(axis: int, bias: bool, opset: int) -> None:
    shape = (3, 4, 5)[axis:]
    constants = {"scale": values(*shape), "bias": values(*shape, seed=1)}
    names = ["x", "scale", *(["bias"] if bias else [])]
    feeds = {"x": values(3, 4, 5)}
    agree(both("LayerNormalization", feeds, constants, inputs=names, domain="", opset=opset, axis=axis, epsilon=1e-2))
    agree(both("SimplifiedLayerNormalization", feeds, constants, inputs=names[:2], domain="", opset=opset, axis=axis))


def test_standard_layer_norms_remain() -> None:
    node = onnx.helper.make_node("LayerNormalization", ["x", "scale"], ["y"])
    model = model_of([node], {"x": values(3, 4)}, {"scale": values(4)}, opset=17)
    assert list(standard(model).graph.node) == [node]


@pytest.mark.parametrize("opset", [11, 17, 20])
def test_half_precision(opset: int) -> None:
    """Normalisations compute in float32, activations in float16."""
    x, skip = values(2, 5, 6, dtype=np.float16), values(2, 5, 6, seed=1, dtype=np.float16)
    gamma, beta = values(6, dtype=np.float16), values(6, seed=1, dtype=np.float16)
    constants = {"gamma": gamma, "beta": beta}
    agree(both("SkipLayerNormalization", {"x": x, "skip": skip}, constants, opset=opset), 4e-3)
    agree(both("FastGelu", {"x": x}, {"bias": beta}, opset=opset), 4e-3)
    agree(both("QuickGelu", {"x": x}, opset=opset), 4e-3)
    agree(both("FusedMatMul", {"x": x}, {"w": values(6, 4, dtype=np.float16)}, opset=opset, alpha=0.3), 4e-3)


def test_operators_of_other_devices() -> None:
    """The CPU lacks them: their definitions are the reference."""
    x, skip = values(2, 3, 4, 8), values(2, 3, 4, 8, seed=1)
    gamma, beta, bias = values(8), values(8, seed=1), values(8, seed=2)

    def only_standard(op: str, feeds: dict[str, Array], constants: dict[str, Array], **options: Any) -> list[Array]:
        node = onnx.helper.make_node(op, [*feeds, *constants], ["y"], domain="com.microsoft", **options)
        return run(standard(model_of([node], feeds, constants)), feeds)

    def grouped(x: Array) -> Array:
        groups = x.reshape(2, 12, 2, 4)
        centred = groups - groups.mean((1, 3), keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + 1e-5)
        return scaled.reshape(x.shape) * gamma + beta

    norm = {"gamma": gamma, "beta": beta}
    (y,) = only_standard("GroupNorm", {"x": x}, norm, groups=2, activation=0)
    np.testing.assert_allclose(y, grouped(x), atol=1e-5)
    (y,) = only_standard("GroupNorm", {"x": x}, norm, groups=2, activation=1)
    np.testing.assert_allclose(y, grouped(x) / (1 + np.exp(-grouped(x))), atol=1e-5)
    (y,) = only_standard(
        "GroupNorm", {"x": x.transpose(0, 3, 1, 2).copy()}, norm, groups=2, activation=0, channels_last=0
    )
    np.testing.assert_allclose(y, grouped(x).transpose(0, 3, 1, 2), atol=1e-5)
    (y,) = only_standard("SkipGroupNorm", {"x": x}, {**norm, "skip": skip, "bias": bias}, groups=2, activation=0)
    np.testing.assert_allclose(y, grouped(x + skip + bias), atol=1e-5)
    (y,) = only_standard("BiasAdd", {"x": x}, {"bias": bias, "skip": skip})
    np.testing.assert_allclose(y, x + bias + skip, atol=1e-6)
    a, b = np.split(x + bias, 2, -1)
    (y,) = only_standard("BiasSplitGelu", {"x": x}, {"bias": bias})
    erf = np.vectorize(math.erf)
    np.testing.assert_allclose(y, a * b * (1 + erf(b / np.sqrt(2))) / 2, atol=1e-5)
    kernel = values(5, 2, 2, 8)  # channels last
    (y,) = only_standard("NhwcConv", {"x": x}, {"kernel": kernel, "bias": values(5)}, kernel_shape=[2, 2])
    patches = np.lib.stride_tricks.sliding_window_view(x, (2, 2), (1, 2))
    np.testing.assert_allclose(y, np.einsum("nhwcij,oijc->nhwo", patches, kernel) + values(5), atol=1e-4)
    kernel = kernel.transpose(0, 3, 1, 2).copy()
    z = values(2, 2, 3, 5)
    options = {"activation": "LeakyRelu", "activation_params": [0.1]}
    (fused,) = only_standard("NhwcFusedConv", {"x": x}, {"kernel": kernel, "bias": values(5), "z": z}, **options)
    np.testing.assert_allclose(fused, np.where(y + z > 0, y + z, 0.1 * (y + z)), atol=1e-4)


def test_channels_last_pooling() -> None:
    x = np.random.default_rng(0).integers(-128, 127, (2, 6, 6, 3), np.int8)
    agree(both("NhwcMaxPool", {"x": x}, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4))
    agree(both("NhwcMaxPool", {"x": x.view(np.uint8)}, kernel_shape=[2, 2], strides=[2, 2]))


def test_types_that_only_other_expansions_tell() -> None:
    """Without CastLike, the type of each input follows from the expansion in front of it."""
    nodes = [
        onnx.helper.make_node("QuickGelu", [f"x{k}"], [f"x{k + 1}"], domain="com.microsoft", alpha=0.5 + k)
        for k in range(5)
    ]
    feeds = {"x0": values(2, 3)}
    model = model_of(nodes, feeds, opset=13)
    form = StandardForm(Graph(model)).model
    assert {node.domain for node in form.graph.node} == {""}
    np.testing.assert_allclose(run(form, feeds)[0], run(model, feeds)[0], atol=1e-6)
