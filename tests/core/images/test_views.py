"""Drawings of arrays, and how maps lie on them."""

from __future__ import annotations

import numpy as np
import pytest

from xcam.images import views


def test_channels_become_colours_or_grey() -> None:
    grey = views.coloured(np.array([[[0.0, 5.0], [10.0, 10.0]]]))
    np.testing.assert_array_equal(grey[..., 0], [[0, 128], [255, 255]])
    assert (grey == grey[..., :1]).all()
    colours = views.coloured(np.arange(6.0).reshape(3, 1, 2))
    np.testing.assert_array_equal(colours[0], [[0, 102, 204], [51, 153, 255]])
    several = views.coloured(np.stack([[[0.0, 1.0]], [[0.0, 1000.0]], [[4.0, 4.0]], [[-1.0, 0.0]]]))
    np.testing.assert_array_equal(several[0, :, 0], [0, 191])  # a constant channel is 0
    pixels = np.arange(6, dtype=np.uint8).reshape(3, 1, 2)
    np.testing.assert_array_equal(views.coloured(pixels), np.moveaxis(pixels, 0, -1))


def test_the_curve_of_a_signal_is_at_its_values_and_positions() -> None:
    signal = np.zeros((1, 96))
    signal[0, 40] = 1
    view = views.view(signal)
    height, width = view.image.shape[:2]
    rows, columns = np.nonzero(view.image[: height - views.LINE].min(axis=2) < 100)
    assert columns[rows.argmin()] == pytest.approx(40.5 / 96 * width, abs=1)
    assert np.ptp(rows) == pytest.approx(0.8 * views.STRIP[1], abs=2)


@pytest.mark.parametrize("length", [10, 96, 20_000])
def test_the_map_of_a_signal_lies_behind_the_curves(length: int) -> None:
    heatmap = np.zeros(length, np.float32)
    heatmap[length // 2] = 1
    view = views.view(np.random.default_rng(0).normal(size=(2, length)), heatmap)
    spread = view.spread(heatmap)
    assert spread.shape == view.image.shape[:2] == view.mask.shape
    assert (spread == spread[0]).all()
    assert spread[0].max() == pytest.approx(1, abs=0.06)
    assert abs(spread[0].argmax() - (length // 2 + 0.5) / length * views.WIDTH) <= 1 + views.WIDTH / length / 2
    assert not view.mask[view.image.max(axis=2) < 100].any()  # curves and text keep their colour
    assert not view.mask[-views.LINE :].any()
    assert view.mask.mean() > 0.5


def test_a_signed_peak_of_a_long_signal_is_kept() -> None:
    heatmap = np.zeros(50_000, np.float32)
    heatmap[[70, 30_000]] = -1, 1
    spread = views.view(np.zeros((1, 50_000))).spread(heatmap)
    assert (spread.min(), spread.max()) == (-1, 1)


def test_a_long_curve_keeps_its_extremes() -> None:
    signal = np.zeros((1, 100_000))
    signal[0, 70_001] = 1
    image = views.view(signal).image
    rows, columns = np.nonzero(image[: -views.LINE].min(axis=2) < 128)
    assert columns[rows.argmin()] == pytest.approx(0.70001 * views.WIDTH, abs=1)


def test_many_channels() -> None:
    image = views.view(np.zeros((12, 50))).image
    assert image.shape[0] == 12 * views.STRIP[0] + views.LINE
    many = views.view(np.zeros((100, 50))).image
    assert many.shape[0] == views.MOST_CURVES * views.STRIP[0] + 2 * views.LINE


def test_the_slices_of_a_volume() -> None:
    volume = np.zeros((1, 5, 4, 6))
    volume[0, 3] = 1
    view = views.view(volume)
    heatmap = np.zeros((5, 4, 6), np.float32)
    heatmap[3, 0, 0] = 1
    spread = view.spread(heatmap)
    assert spread.shape == view.image.shape[:2]
    white = (view.image == 255).all(axis=2) & view.mask
    assert white.sum() * 5 == view.mask.sum()  # one slice of five
    peak = np.unravel_index(int(spread.argmax()), spread.shape)
    assert spread[peak] == 1
    assert white[peak]
    rows, columns = np.nonzero(white)
    assert peak == (rows.min(), columns.min())


@pytest.mark.parametrize("peak", [0, 5, 37, 99])
def test_the_slice_of_the_largest_value_is_drawn(peak: int) -> None:
    shown = views.slices(100, peak)
    assert peak in shown
    assert len(set(shown)) == views.SLICES
    assert shown == sorted(shown)
    assert max(np.diff(shown)) <= 12
    heatmap = np.zeros((100, 2, 2), np.float32)
    heatmap[peak, 1, 0] = 1
    volume = np.random.default_rng(0).random((1, 100, 2, 2))
    assert views.view(volume, heatmap).spread(heatmap).max() == 1
    assert not np.array_equal(views.view(volume, heatmap).image, views.view(volume).image)  # its caption marks it


def test_few_slices_are_all_drawn() -> None:
    assert views.slices(7) == list(range(7))
    assert views.slices(16, 3) == list(range(16))
