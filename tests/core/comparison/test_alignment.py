"""Corresponding layers of two models: matches determined by hand."""

from __future__ import annotations

import dataclasses
import time
import types
from typing import Any

import numpy as np
import pytest

from xcam import Layer
from xcam.comparison.alignment import (
    LayerSample,
    align,
    inner_integers,
    innermost,
    names,
    nearest,
    permutation,
    positions,
    sample,
)


def layers(*names: str, values: Any) -> list[Any]:
    return [sample(Layer(n, "Conv", v.shape[1:]), v) for n, v in zip(names, values, strict=True)]


def test_layers_out_of_order_are_not_matched_to_others() -> None:
    """conv, block, norm against norm, block: where `block` is matched, `conv` must not be matched to `norm`."""
    conv, block, norm = np.random.default_rng(0).normal(size=(3, 1, 5, 6, 7)).astype(np.float32)
    result = align(layers(*"abc", values=(conv, block, norm)), layers(*"vw", values=(norm, block)))
    assert [(m.first, m.second, m.error) for m in result] == [(1, 1, 0.0), (2, 0, 0.0)]


def test_a_layer_that_differs_keeps_its_match() -> None:
    values = np.random.default_rng(1).normal(size=(3, 1, 5, 6, 7)).astype(np.float32)
    other = values.copy()
    other[1] = 1.5 * other[1] + 0.2
    assert [(m.first, m.second) for m in align(layers(*"abc", values=values), layers(*"abc", values=other))] == [
        (0, 0),
        (1, 1),
        (2, 2),
    ]


@pytest.mark.parametrize("space", [(6, 7), ()])
def test_permuted_channels(space: tuple[int, ...]) -> None:
    values = np.random.default_rng(2).normal(size=(2, 9, *space)).astype(np.float32).reshape(2, 9, -1)
    order = np.random.default_rng(3).permutation(9)
    result = permutation(values, values[:, order])
    assert result is not None
    np.testing.assert_array_equal(values[:, order][:, result], values)
    assert permutation(values, values) is None
    assert permutation(values, values[:, order] + 1) is None


def test_where_values_do_not_decide_names_do() -> None:
    """One model has conv and norm, the other only norm (folded). All later values differ, so the names decide."""
    conv, norm, spoilt = np.random.default_rng(4).normal(size=(3, 1, 5, 6, 7)).astype(np.float32)
    spoilt += 0.6 * conv
    first, second = layers("block.conv", "block.norm", values=(conv, norm)), layers("block.norm", values=(spoilt,))
    assert [(m.first, m.second) for m in align(first, second)] == [(1, 0)]


def test_the_innermost_part_that_returns_a_value() -> None:
    value, other = np.random.default_rng(5).normal(size=(2, 1, 5, 6, 7)).astype(np.float32)
    result = layers("f.7", "f.7.conv", "f.7.conv.3", "f.8", values=(value, value, value, other))
    assert [innermost(result, k) for k in range(4)] == ["f.7.conv.3", "f.7.conv.3", "f.7.conv.3", "f.8"]
    alias = sample(Layer("f.7", "Add", value.shape[1:], aliases=("f.7.add", "add_3")), value)
    assert innermost([alias], 0) == "f.7.add"


def test_a_sample_has_the_same_positions_of_all_channels() -> None:
    values = np.arange(2 * 3 * 20 * 30, dtype=np.float32).reshape(2, 3, 20, 30)
    result = sample(Layer("a", "Conv", (3, 20, 30)), np.moveaxis(np.moveaxis(values, 1, -1).copy(), -1, 1))
    assert (result.shape, result.values.shape) == ((3, 20, 30), (2, 3, 196))
    picked = values[0, 0].ravel().searchsorted(result.values[0, 0])
    assert (picked[0], picked[-1]) == (0, 599)
    np.testing.assert_array_equal(result.values, values.reshape(2, 3, -1)[..., picked])
    for vector in (np.float32([[1, 2, 3]]), np.float32([[[1], [2], [3]]])):
        assert sample(Layer("b", "Dense", (3,)), vector).values.tolist() == [[[1], [2], [3]]]
    assert sample(Layer("c", "Dense", ()), np.float32([7, 8])).values.tolist() == [[[7]], [[8]]]


def rounded(name: str, values: np.ndarray, kind: str = "Conv") -> LayerSample:
    """Return a sample of a layer in integers: an error of about a percent."""
    noise = np.random.default_rng(len(name)).normal(size=values.shape)
    changed = values + 0.03 * np.abs(values).max() * noise * (values != 0)
    return LayerSample(Layer(name, kind, (6, 49)), changed.astype(np.float32), (6, 49))


def exact(name: str, values: np.ndarray, kind: str = "Conv") -> LayerSample:
    return LayerSample(Layer(name, kind, (6, 49)), values, (6, 49))


def test_a_quantisation_that_absorbed_an_activation() -> None:
    """The quantiser keeps the name of the value before the ReLU."""
    before = np.random.default_rng(0).normal(size=(2, 6, 49)).astype(np.float32)
    after = np.maximum(before, 0)
    first = [exact("block.bn", before), exact("block.relu", after, "Relu")]
    second = [rounded("block.bn", after)]
    second[0].values[:] = np.abs(second[0].values)
    (pair,) = align(first, second, reduced=1)
    assert (pair.first, pair.second) == (1, 0)
    assert align(first[:1], second, reduced=1) == []  # they are before and behind the ReLU
    (pair,) = align(second, first, reduced=0)
    assert (pair.first, pair.second) == (0, 1)


def test_names_of_one_value_share_a_partner_of_reduced_precision() -> None:
    values = np.random.default_rng(0).normal(size=(2, 6, 49)).astype(np.float32)
    first = [exact("features", values), exact("features.7", values), exact("features.7.add", values)]
    second = [rounded("features.7", values)]
    assert [(m.firsts, m.seconds) for m in align(first, second, reduced=1)] == [((0, 1, 2), (0,))]
    assert names(first, (0, 1, 2)) == ("features.7.add", "features", "features.7")


def test_branches_in_another_order() -> None:
    one, two = np.random.default_rng(0).normal(size=(2, 2, 6, 49)).astype(np.float32)
    first = [exact("shortcut", one), exact("conv", two)]
    second = [rounded("conv", two), rounded("shortcut", one)]
    assert [(m.first, m.second) for m in align(first, second, reduced=1)] == [(0, 1), (1, 0)]


def values(count: int, seed: int = 0, shape: tuple[int, ...] = (2, 6, 7, 7)) -> Any:
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def pairs(first: Any, second: Any) -> list[tuple[str, str]]:
    """Return the pairs of all names, in order."""
    return [
        (" ".join(first[i].layer.name for i in m.firsts), " ".join(second[j].layer.name for j in m.seconds))
        for m in align(first, second)
    ]


@pytest.mark.parametrize("scale", [1.0, 1.05, 1.4])
def test_a_batch_normalisation_that_was_folded(scale: float) -> None:
    """The folded convolution has the value behind the normalisation, though its kind and name are those of the convolution."""
    x, (y,) = values(1)[0], values(1, seed=1)
    gain, offset = np.linspace(0.5, 1.5, 6).reshape(6, 1, 1), np.linspace(-0.3, 0.3, 6).reshape(6, 1, 1)
    folded = np.float32(scale * (x + 0.4 * y) * gain + offset)
    norm = np.float32((x + 0.4 * y) * gain + offset)
    first = layers("conv", "norm", "relu", values=(x + 0.4 * y, norm, np.maximum(norm, 0)))
    second = layers("conv", "relu", values=(folded, np.maximum(folded, 0)))
    assert pairs(first, second) == [("norm", "conv"), ("relu", "relu")]
    assert pairs(second, first) == [("conv", "norm"), ("relu", "relu")]


def test_a_folded_convolution_whose_value_is_wrong_corresponds_to_the_normalisation() -> None:
    """Its value is that of neither layer: the sum behind it must not be paired with the normalisation."""
    conv, norm, skip, wrong = (value.reshape(2, 6, 49) for value in values(4))
    first = [
        rounded("c", conv, "Conv2d"),
        rounded("b", norm, "BatchNorm2d"),
        exact("r", np.maximum(norm + skip, 0), "ReLU"),
    ]
    second = [
        rounded("c/Conv", wrong, "Conv"),
        rounded("Add", wrong + 0.5 * norm, "Add"),
        exact("r/Relu", np.maximum(wrong + skip, 0), "Relu"),
    ]
    assert [(m.first, m.second) for m in align(first, second)] == [(1, 0), (2, 2)]


def test_names_of_one_value_share_their_partner() -> None:
    """Parts that return the value of the part before: right behind it, and behind a branch."""
    a, b, c = values(3)
    first = layers("relu", "drop", "block", "branch", "later", "next", values=(a, a, a, b, a, c))
    second = layers("relu", "branch", "next", values=(a, b, c))
    assert pairs(first, second) == [("relu drop block later", "relu"), ("branch", "branch"), ("next", "next")]
    assert pairs(second, first) == [("relu", "relu drop block later"), ("branch", "branch"), ("next", "next")]
    near = a * np.float32(1 + 5e-6)  # a batch normalisation with ε = 1e-5 that does nothing else
    assert pairs(layers("conv", "norm", values=(a, near)), layers("conv", values=(near,))) == [("norm conv", "conv")]


def test_dropout_in_training_mode_has_another_value_than_the_part_before() -> None:
    a, b = values(2)
    kinds = ("ReLU", "Dropout", "Sequential", "Conv2d")
    first, second = (
        layers("relu", "drop", "block", "next", values=v) for v in ((a, a, a, b), (a, a * (b > 0), a * (b > 0), b))
    )
    for samples in (first, second):
        samples[:] = [
            LayerSample(Layer(s.layer.name, kind, s.layer.shape), s.values, s.shape)
            for s, kind in zip(samples, kinds, strict=True)
        ]
    expected = [("relu", "relu"), ("drop block", "drop block"), ("next", "next")]
    assert pairs(first, second) == expected
    assert pairs(second, first) == expected


def test_equal_branches_are_matched_by_their_order() -> None:
    """Two branches with the same input and weights. In the second model, the second branch has a mistake."""
    a, b, c, d = values(4)
    first = layers("a1", "b1", "a2", "b2", "sum", values=(a, b, a, b, c))
    assert pairs(first, layers("x1", "y1", "x2", "y2", "z", values=(a, b, a, b, c))) == [
        ("a1", "x1"), ("b1", "y1"), ("a2", "x2"), ("b2", "y2"), ("sum", "z"),
    ]  # fmt: skip
    second = layers("x1", "y1", "x2", "y2", "z", values=(a, b, a + 0.5 * d, b + 0.5 * d, c + d))
    assert pairs(first, second) == [("a1", "x1"), ("b1", "y1"), ("a2", "x2"), ("b2", "y2"), ("sum", "z")]
    assert pairs(second, first) == [("x1", "a1"), ("y1", "b1"), ("x2", "a2"), ("y2", "b2"), ("z", "sum")]
    assert pairs(layers("a", "b", "c", values=(a, b, c)), layers("x1", "x2", "y1", "y2", "z", values=(a, a, b, b, c))) == [
        ("a", "x1 x2"), ("b", "y1 y2"), ("c", "z"),
    ]  # fmt: skip


def test_zero_maps_are_matched_in_order() -> None:
    a, b = values(2)
    zero = np.zeros_like(a)
    first = layers("a", "relu1", "relu2", "drop", "b", values=(a, zero, zero, zero, b))
    assert pairs(first, layers("a", "relu1", "relu2", "b", values=(a, zero, zero, b))) == [
        ("a", "a"), ("relu1", "relu1"), ("relu2 drop", "relu2"), ("b", "b"),
    ]  # fmt: skip
    apart = layers("a", "relu1", "b", "dead", values=(a, zero, b, zero))
    assert pairs(apart, layers("a", "relu1", "b", values=(a, zero, b))) == [
        ("a", "a"),
        ("relu1", "relu1"),
        ("b", "b"),
    ]
    mistake = layers("a", "relu1", "relu2", "b", values=(a, zero, zero + 1, b + 1))
    (_, _, match, _) = align(first, mistake)
    assert (match.first, match.second, match.error) == (2, 2, 1.0), "the layer that is not zero is seen"


def test_reordered_channels_of_a_folded_layer() -> None:
    """No pair of values correlates, but one has the same numbers in another order."""
    conv, norm, order = *values(2), np.random.default_rng(2).permutation(6)
    first = layers("conv", "norm", values=(conv, 1.3 * norm))
    (match,) = align(first, layers("conv", values=(1.3 * norm[:, order],)))
    assert (match.first, match.order) == (1, tuple(np.argsort(order)))


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.03])
@pytest.mark.parametrize("seed", range(6))
def test_random_conversions(noise: float, seed: int) -> None:
    """Layers return earlier values, some values are folded away, neighbours are similar: all pairs are known."""
    random = np.random.default_rng(seed)
    state = values(1, seed)[0]
    first, second, expected = [], [], []
    for k in range(40):
        state = np.float32(0.9 * state + 0.45 * random.normal(size=state.shape))
        names_ = [f"layer{k}" + "abc"[i] for i in range(random.integers(1, 4))]
        first += layers(*names_, values=[state] * len(names_))
        if random.random() < 0.6:
            names_ = [f"node{k}" + "abc"[i] for i in range(random.integers(1, 4))]
            other = np.float32(state + noise * random.normal(size=state.shape))
            second += layers(*names_, values=[other] * len(names_))
            expected.append((k, k))
    matched = align(first, second)
    assert [
        (int(first[m.first].layer.name[5:-1]), int(second[m.second].layer.name[4:-1])) for m in matched
    ] == expected
    assert sum(len(m.firsts) for m in matched) == sum(int(s.layer.name[5:-1]) in dict(expected) for s in first)
    assert sum(len(m.seconds) for m in matched) == len(second)


def test_the_nearest_value() -> None:
    a, b, c = values(3)
    others = layers("b", "near", "nearer", values=(b, 1.02 * a, 1.01 * a))
    assert nearest(*layers("a", values=(a,)), others) == others[2].layer
    assert nearest(*layers("c", values=(c,)), others) is None
    assert nearest(*layers("c", values=(c[:, :3],)), others) is None


def test_many_layers_take_little_time() -> None:
    """400 layers of one shape: 0.3 seconds; comparing all pairs one by one takes 20."""
    first, second = (
        layers(*(f"{n}{k}" for k in range(400)), values=values(400, 0) + s * values(400, 1))
        for n, s in (("a", 0), ("b", 0.5))
    )
    start = time.process_time()
    result = align(first, second)
    assert time.process_time() - start < 3
    assert [(m.first, m.second) for m in result] == [(k, k) for k in range(400)]


def test_the_samples_of_many_layers_are_smaller() -> None:
    from fake import FakeModel

    model: Any = FakeModel()
    assert positions([model, model], 3) == 196
    layer = Layer("wide", "Conv", (2000, 28, 28))
    model.layers = [dataclasses.replace(layer, name=f"{k}") for k in range(1000)]
    assert positions([model, FakeModel()], 3) == 32
    model.layers = [dataclasses.replace(layer, name=f"{k}") for k in range(10_000)]
    assert positions([model], 3) == 16
    assert sample(layer, np.zeros((2, 5, 28, 28), np.float32), 32).values.shape == (2, 5, 32)


def inside(name: str, value: np.ndarray) -> LayerSample:
    return sample(Layer(name, "Concat", value.shape[1:], inner=True), value)


def test_a_value_inside_a_layer_is_matched_by_name_alone() -> None:
    """conv, cat (inside a block), norm: `cat` is matched where it is free and lies between the same layers."""
    conv, cat, norm = np.random.default_rng(6).normal(size=(3, 1, 5, 6, 7)).astype(np.float32)
    listed = layers("conv", "norm", values=(conv, norm))
    first = [listed[0], inside("cat", cat), listed[1]]
    rounded = np.round(cat * 50) / 50
    for second in (
        [listed[0], inside("cat", rounded), listed[1]],
        layers("conv", "cat", "norm", values=(conv, rounded, norm)),
    ):
        assert [(m.first, m.second, m.firsts) for m in align(first, second)] == [
            (0, 0, (0,)),
            (1, 1, (1,)),
            (2, 2, (2,)),
        ]
    other = inside("other", rounded)
    before = [inside("cat", rounded), *listed]
    for second in ([listed[0], other, listed[1]], before, listed):
        assert len(align(first, second)) == 2


def test_integers_that_another_model_has_inside_a_layer() -> None:
    """A Concat with a range; a sum whose range is behind the ReLU that the other model lists is not such a value."""
    floats = [
        Layer("cat", "Concat", (8, 4, 4), inner=True),
        Layer("add", "Add", (8, 4, 4), inner=True),
        Layer("block", "Block", (8, 4, 4), aliases=("relu",)),
    ]
    integers = [
        Layer("cat", "Concat", (8, 4, 4), dtype="int8", inner=True),
        Layer("block", "Block", (8, 4, 4), aliases=("add", "relu"), dtype="uint8"),
        Layer("norm", "Norm", (8, 4, 4), inner=True),
    ]
    chains: list[Any] = [types.SimpleNamespace(layers=each, backend="numpy") for each in (floats, integers)]
    assert inner_integers(chains) == {"cat"}


def test_the_value_ahead_of_an_absorbed_activation_has_no_counterpart() -> None:
    """norm1, relu1, norm2, relu2; the file in integers has only the values of the two ReLUs, under both names."""
    norms = np.random.default_rng(7).normal(size=(2, 1, 5, 6, 7)).astype(np.float32)
    relus = np.maximum(norms, 0)
    rounded = np.round(relus * 50) / 50
    kinds = ("BatchNorm2d", "ReLU") * 2
    first = [
        sample(Layer(name, kind, (5, 6, 7)), value)
        for name, kind, value in zip("abcd", kinds, (norms[0], relus[0], norms[1], relus[1]), strict=True)
    ]
    second = [
        sample(Layer(name, kind, (5, 6, 7)), value)
        for name, kind, value in zip("badc", kinds[::-1], np.repeat(rounded, 2, axis=0), strict=True)
    ]
    assert [(m.firsts, m.seconds) for m in align(first, second, 1)] == [((1,), (0, 1)), ((3,), (2, 3))]
