"""Corresponding layers of two models: matches determined by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from xcam import Layer
from xcam.comparison.alignment import LayerSample, align, innermost, names, permutation, sample


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
