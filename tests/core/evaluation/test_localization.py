"""Pointing game, energy and rank, compared with values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from xcam.errors import InputError
from xcam.evaluation.localization import energy, pointing_game, relevance_rank


def peaked(y: int, x: int, size: tuple[int, int] = (6, 10)) -> np.ndarray:
    heatmap = np.zeros(size, np.float32)
    heatmap[y, x] = 1
    return heatmap


def box(x0: int, y0: int, x1: int, y1: int, size: tuple[int, int] = (6, 10)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_pointing_with_a_tolerance() -> None:
    """The peak is three pixels to the right of the box, in an image whose longer side is 10."""
    on, outside = peaked(2, 3), peaked(2, 6)
    where = box(1, 1, 4, 4)
    assert pointing_game([on, outside], [where, where], tolerance=0.0).tolist() == [1, 0]
    assert pointing_game([outside], [where], tolerance=0.3).tolist() == [1]
    assert pointing_game([outside], [where], tolerance=0.29).tolist() == [0]
    assert pointing_game([peaked(5, 5)], [where], tolerance=0.28).tolist() == [0], "√8 pixels, on a diagonal"
    assert pointing_game([peaked(5, 5)], [where], tolerance=0.29).tolist() == [1]


def test_energy_is_the_share_on_the_object() -> None:
    heatmap = np.full((6, 10), 0.5, np.float32)
    heatmap[1:4, 1:4] = 1
    assert energy([heatmap], [box(1, 1, 4, 4)]) == pytest.approx(9 / (9 + 51 * 0.5))
    assert energy([heatmap], [box(0, 0, 10, 6)]) == 1


def test_the_highest_pixels_up_to_the_size_of_the_object() -> None:
    heatmap = np.float32([[9, 8, 7], [6, 5, 4]])
    where = np.array([[1, 0, 1], [1, 0, 0]], bool)
    assert relevance_rank([heatmap], [where]) == pytest.approx(2 / 3)


def test_images_of_several_sizes_and_unknown_masks() -> None:
    maps = [peaked(0, 0), peaked(1, 1, (3, 3)), np.zeros((4, 4), np.float32), peaked(0, 0)]
    where = [box(0, 0, 2, 2), None, np.ones((4, 4), bool), box(0, 0, 0, 0)]
    for function in (pointing_game, energy, relevance_rank):
        np.testing.assert_array_equal(function(maps, where)[[1, 2, 3]], [np.nan, 0, np.nan])
        assert function(maps, where)[0] > 0


@given(arrays(np.float32, (5, 6), elements=st.floats(0, 1, width=16)), arrays(bool, (5, 6)))
def test_the_shares_of_object_and_background_add_up_to_one(heatmap: np.ndarray, where: np.ndarray) -> None:
    if heatmap.max() > 0 and where.any() and not where.all():
        both = energy([heatmap, heatmap], [where, ~where])
        assert both.sum() == pytest.approx(1, abs=1e-6)
        assert 0 <= relevance_rank([heatmap], [where])[0] <= 1


def test_a_tolerance_is_a_share() -> None:
    with pytest.raises(InputError, match=r"cannot use tolerance=15\.0: it is a share .* give a number from 0 to 1"):
        pointing_game([peaked(0, 0)], [box(0, 0, 1, 1)], tolerance=15.0)


def test_equal_values_favour_no_corner() -> None:
    """A square of ones in zeros; a peak as wide as a cell of the layer; a constant map."""
    heatmap = np.zeros((10, 10), np.float32)
    heatmap[4:6, 4:6] = 1
    upper, lower = box(0, 0, 10, 4, (10, 10)), box(0, 6, 10, 10, (10, 10))
    assert relevance_rank([heatmap, heatmap], [upper, lower]) == pytest.approx([36 / 96 * 40 / 40, 36 / 96])
    corner = np.zeros((24, 24), np.float32)
    corner[:8, :8] = 1
    middle = box(3, 3, 5, 5, (24, 24))
    for turns in range(4):
        turned, where = np.rot90(corner, turns), np.rot90(middle, turns)
        assert pointing_game([turned], [where], tolerance=0.0) == 1
    flat = np.ones((10, 10), np.float32)
    assert pointing_game([flat, flat], [upper, lower], tolerance=0.0).tolist() == [0, 0]
    assert relevance_rank([flat, flat], [upper, lower]) == pytest.approx([0.4, 0.4])
