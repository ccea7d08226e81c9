"""Means, bootstrap intervals and ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from xcam.evaluation import ranking

VALUES = np.random.default_rng(3).normal(2, 1, 60)


def test_the_interval_is_the_percentile_bootstrap_of_scipy() -> None:
    low, high = ranking.interval(VALUES, 0.95, resamples=20_000)
    expected = stats.bootstrap((VALUES,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.02)
    assert low < VALUES.mean() < high
    wide = ranking.interval(VALUES, 0.99)
    assert wide[0] < low
    assert wide[1] > high


def test_the_same_seed_gives_the_same_interval_however_many_are_drawn_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = ranking.interval(VALUES, seed=7)
    assert whole != ranking.interval(VALUES, seed=8)
    monkeypatch.setattr(ranking, "CELLS", 1000)
    assert ranking.interval(VALUES, seed=7) == whole


def test_unknown_values_are_left_out() -> None:
    with_gaps = np.concatenate([VALUES, [np.nan] * 5])
    assert ranking.interval(with_gaps) == ranking.interval(VALUES)
    assert ranking.mean(with_gaps) == pytest.approx(VALUES.mean())
    assert all(math.isnan(v) for v in (*ranking.interval(VALUES[:1]), ranking.mean(np.array([np.nan]))))


def test_ranks() -> None:
    means = np.array([0.2, 0.9, np.nan, 0.5, 0.5])
    np.testing.assert_array_equal(ranking.ranks(means, "higher"), [4, 1, np.nan, 2.5, 2.5])
    np.testing.assert_array_equal(ranking.ranks(means, "lower"), [1, 4, np.nan, 2.5, 2.5])
