"""The arithmetic, compared with values computed by hand, and properties that hold for any input."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from xcam import InputError
from xcam.methods import maps

A = np.array([[[[1.0, 2.0], [3.0, 4.0]], [[-1.0, 0.0], [2.0, 1.0]]]])  # [1, 2, 2, 2]
G = np.array([[[[1.0, -1.0], [2.0, 2.0]], [[0.0, 4.0], [-2.0, -4.0]]]])

finite = st.floats(-1e3, 1e3, width=32)


def stacks() -> st.SearchStrategy[np.ndarray]:
    """Return a strategy for [N, C, *space] with one to three spatial axes."""
    return array_shapes(min_dims=3, max_dims=5, max_side=5).flatmap(
        lambda shape: arrays(np.float32, shape, elements=finite)
    )


def test_pool_is_the_mean_over_space() -> None:
    np.testing.assert_array_equal(maps.pool(G), [[1.0, -0.5]])


def test_weigh_sums_over_channels() -> None:
    np.testing.assert_array_equal(maps.weigh(np.array([[1.0, -0.5]]), A), [[[1.5, 2.0], [2.0, 3.5]]])


def test_relu() -> None:
    np.testing.assert_array_equal(maps.relu(np.array([[-1.0, 0.0, 2.0]])), [[0.0, 0.0, 2.0]])


@given(stacks())
def test_normalised_maps_lie_in_0_to_1(a: np.ndarray) -> None:
    for mode in ("max", "minmax"):
        heat = maps.normalize(maps.relu(a[:, 0]), mode)
        assert heat.shape == a[:, 0].shape
        assert np.isfinite(heat).all()
        assert ((heat >= 0) & (heat <= 1)).all()
        for one, raw in zip(heat, maps.relu(a[:, 0]), strict=True):
            moved = raw.max() > (raw.min() if mode == "minmax" else 0)
            assert one.max() == (1 if moved else 0)


def test_max_keeps_zero_where_it_was_and_minmax_does_not() -> None:
    cam = np.array([[1.0, 2.0, 5.0]])
    np.testing.assert_allclose(maps.normalize(cam, "max"), [[0.2, 0.4, 1.0]])
    np.testing.assert_allclose(maps.normalize(cam, "minmax"), [[0.0, 0.25, 1.0]])
    assert maps.normalize(cam, "none") is cam


def test_each_map_of_a_batch_is_normalised_separately() -> None:
    cam = np.array([[1.0, 2.0], [0.0, 0.0], [10.0, 40.0]])
    np.testing.assert_allclose(maps.normalize(cam), [[0.5, 1.0], [0.0, 0.0], [0.25, 1.0]])


def test_an_unknown_normalisation() -> None:
    with pytest.raises(InputError, match=r"unknown normalisation 'l2'; known: max, minmax, none"):
        maps.normalize(np.ones((1, 2)), "l2")  # type: ignore[arg-type]


def test_resize_is_bilinear_with_half_pixel_centres() -> None:
    cam = np.array([[0.0, 1.0]], np.float32)
    np.testing.assert_allclose(maps.resize(cam, (1, 4)), [[0.0, 0.25, 0.75, 1.0]])
    assert maps.resize(cam, (5, 7)).shape == (5, 7)
    np.testing.assert_array_equal(maps.resize(cam, (2, 3)), cv2.resize(cam, (3, 2)))


@pytest.mark.parametrize(
    ("extent", "mode", "expected"),
    [
        ((-3.0, 4.0), "max", [0, 0.5, 1]),
        ((1.0, 3.0), "minmax", [0, 0.5, 1]),
        ((-3.0, 8.0), "minmax", [0, 0.25, 0.75]),
        ((-3.0, -1.0), "max", [0, 0, 0]),
        ((2.0, 2.0), "minmax", [0, 0, 0]),
        ((-3.0, 4.0), "none", [0, 2, 6]),
    ],
)
def test_several_maps_share_a_scale(extent: tuple[float, float], mode: maps.Normalize, expected: list[float]) -> None:
    cam = np.float32([0, 2, 6] if mode != "minmax" or extent[0] < 0 else [1, 2, 3])
    np.testing.assert_allclose(maps.scaled(cam, extent, mode), expected)
