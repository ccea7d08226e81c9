"""Shares of the energy of maps."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from batch_tables import CORNER, FRAME, SPOT, SPREAD
from xcam.dataset import energy


def test_shares_of_energy_are_those_computed_by_hand() -> None:
    cams = np.stack([SPREAD, SPOT, CORNER, FRAME, np.zeros((10, 10), np.float32)])
    assert energy.share(cams, energy.ring((10, 10))).tolist() == pytest.approx([0.36, 0, 0.75, 1, 0])
    assert energy.ring((10, 10)).sum() == 36
    assert energy.ring((7, 20)).sum() == 140 - 5 * 16  # one cell, and two columns on each side
    assert energy.ring((2, 2)).all()
    assert [energy.share(cams, c).tolist()[2] for c in energy.corners((10, 10))] == [0, 1, 0, 0]
    assert [energy.share(cams, c).tolist()[3] for c in energy.corners((10, 10))] == pytest.approx([0.1] * 4)
    assert energy.corners((16, 16)).sum(axis=(1, 2)).tolist() == [16] * 4
    shares, expected = energy.concentration(cams)
    assert (shares.tolist(), expected) == (pytest.approx([0.2, 1, 1, 1, 0]), 0.2)
    ramp = np.arange(1, 11, dtype=np.float32).reshape(1, 2, 5)
    assert energy.concentration(ramp)[0].tolist() == pytest.approx([19 / 55])


def test_the_excess_of_regions_of_any_size() -> None:
    shares = np.array([0.2, 0.6, 1.0, 0.0], np.float32)
    assert energy.excess(shares, 0.2).tolist() == pytest.approx([0, 0.5, 1, -0.25])
    assert energy.excess(shares, 1.0).tolist() == [0, 0, 0, 0]


def test_a_coarser_grid_keeps_means_and_a_finer_one_is_bilinear() -> None:
    cams = np.random.default_rng(0).random((3, 28, 20)).astype(np.float32)
    small = energy.grid(cams, (14, 10))
    assert np.allclose(small, cams.reshape(3, 14, 2, 10, 2).mean(axis=(2, 4)), atol=1e-6)
    assert np.allclose(
        energy.grid(cams, (28, 50))[1], cv2.resize(cams[1], (50, 28), interpolation=cv2.INTER_LINEAR), atol=1e-6
    )
    assert energy.grid(cams, (28, 20)) is cams
