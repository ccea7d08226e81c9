"""ROAD: the imputation, compared with values computed by hand and with properties of means of neighbours; the measure."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from xcam.errors import BackendError
from xcam.evaluation.registry import get
from xcam.evaluation.road import imputed, least_relevant_first, most_relevant_first, road

SQUARE = np.float32([[[1, 2, 3], [4, 0, 6], [7, 8, 9]]])


def mask(*pixels: tuple[int, int], size: tuple[int, int] = (3, 3)) -> np.ndarray:
    result = np.zeros(size, bool)
    result[tuple(np.transpose(pixels))] = True
    return result


def test_one_pixel_in_the_middle_and_one_in_a_corner() -> None:
    """Direct neighbours weigh 1/6, diagonal ones 1/12; in a corner there are three."""
    middle = (2 + 4 + 6 + 8) / 6 + (1 + 3 + 7 + 9) / 12
    assert imputed(SQUARE, mask((1, 1)))[0, 1, 1] == pytest.approx(middle)
    corner = (2 / 6 + 4 / 6 + 0 / 12) / (5 / 12)
    assert imputed(SQUARE, mask((0, 0)))[0, 0, 0] == pytest.approx(corner)


def test_two_neighbours_are_solved_together() -> None:
    """Two equations with two unknowns, solved by hand in a strip of four pixels."""
    x = np.float32([[[1, 0, 0, 4]]])
    result = imputed(x, mask((0, 1), (0, 2), size=(1, 4)))
    np.testing.assert_allclose(result, [[[1, 2, 3, 4]]], atol=1e-6)


masks = arrays(bool, (7, 8))
colours = arrays(np.float32, (2, 7, 8), elements=st.floats(-4, 4, width=16))


@given(colours, masks)
def test_every_filled_pixel_is_the_mean_of_its_neighbours_and_others_stay(x: Any, gone: Any) -> None:
    result = imputed(x, gone)
    np.testing.assert_array_equal(result[:, ~gone], x[:, ~gone])
    if gone.all():
        return
    wide = np.pad(result.astype(float), ((0, 0), (1, 1), (1, 1)))
    inside = np.pad(np.ones((7, 8)), 1)
    above, below = np.zeros_like(result, dtype=float), np.zeros((7, 8))
    for dy in range(3):
        for dx in range(3):
            weight = {0: 0.0, 1: 1 / 6, 2: 1 / 12}[abs(dy - 1) + abs(dx - 1)]
            above += weight * wide[:, dy : dy + 7, dx : dx + 8]
            below += weight * inside[dy : dy + 7, dx : dx + 8]
    np.testing.assert_allclose(result[:, gone], (above / below)[:, gone], atol=1e-3)


@given(st.tuples(*[st.floats(-2, 2, width=16)] * 3), arrays(bool, (5, 6)))
def test_a_linear_ramp_is_restored(plane: Any, gone: Any) -> None:
    y, x = np.mgrid[:7, :8]
    slope = np.float32(plane[0] + plane[1] * y + plane[2] * x)[None]
    np.testing.assert_allclose(imputed(slope, np.pad(gone, 1)), slope, atol=1e-3)


def test_without_remaining_pixels_all_become_the_mean() -> None:
    np.testing.assert_allclose(imputed(SQUARE, np.ones((3, 3), bool)), np.full((1, 3, 3), 40 / 9), rtol=1e-6)


def bright(x: Any, rows: Any) -> np.ndarray:
    """The value of a spot: the mean over the four pixels in the middle."""
    return x[:, 0, 4:6, 4:6].mean(axis=(1, 2), dtype=float)


def spot() -> np.ndarray:
    x = np.zeros((1, 1, 10, 10), np.float32)
    x[:, :, 4:6, 4:6] = 1
    return x


def test_a_map_that_points_at_the_spot_removes_it_first() -> None:
    """Without noise: the spot is removed with the first tenth, 10 of 100 pixels, or with the last one."""
    x, far = spot(), np.hypot(*(np.mgrid[:10, :10] - 4.5))
    right = (1 - far / far.max())[None]
    assert most_relevant_first(right, x, bright, noise=0.0) == pytest.approx(0, abs=1e-6)
    assert least_relevant_first(right, x, bright, noise=0.0) == pytest.approx(1, abs=1e-6)
    assert road(right, x, bright, noise=0.0) == pytest.approx(0.5, abs=1e-6)
    assert road(1 - right, x, bright, noise=0.0) == pytest.approx(-0.5, abs=1e-6)


def test_noise_is_a_share_of_the_range_of_the_image_and_depends_on_the_seed() -> None:
    heat = np.random.default_rng(0).random((1, 10, 10))

    def moved(x: np.ndarray, seed: int) -> float:
        plain, noisy = (most_relevant_first(heat, x, bright, noise=noise, seed=seed)[0] for noise in (0.0, 0.01))
        return float(noisy - plain)

    assert moved(spot(), 3) == moved(spot(), 3) != moved(spot(), 4)
    assert 1e-4 < abs(moved(spot(), 3)) < 0.02
    assert moved(200 * spot(), 3) == pytest.approx(200 * moved(spot(), 3), rel=1e-3)


def test_without_scipy_the_error_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    for name in ("road", "road-morf", "road-lerf"):
        with pytest.raises(BackendError, match=r"needs scipy, .*pip install \"xcam-explain\[batch\]\""):
            get(name).require()
