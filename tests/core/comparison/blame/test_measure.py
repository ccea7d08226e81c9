"""The arithmetic of contributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from xcam.comparison.blame import Interval
from xcam.comparison.blame.measure import ScoreDifference, contributions, disagrees, interval, median


def test_the_whole_difference_is_the_root_mean_square_relative_to_the_largest_score() -> None:
    difference = ScoreDifference(np.array([4.0, 0.0]), np.array([4.0, 3.0]))
    assert difference(np.array([4.0, 3.0])) == pytest.approx(3 / math.sqrt(2) / 4)
    assert difference(np.array([4.0, 0.0])) == 0
    assert difference(np.array([9.0, 1.0])) == pytest.approx(1 / math.sqrt(2) / 4), "only along its own direction"
    np.testing.assert_allclose(difference.gradient, [0, 1 / math.sqrt(2) / 4])


def test_equal_scores_have_no_direction() -> None:
    difference = ScoreDifference(np.zeros(3), np.zeros(3))
    assert difference(np.ones(3)) == 0
    assert not difference.gradient.any()


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=20))
def test_contributions_add_up_to_the_whole(left: list[float]) -> None:
    assert math.fsum(contributions(left)) == pytest.approx(left[0] - left[-1], abs=1e-9)


def test_an_interval_is_that_of_student() -> None:
    values = [1.0, 2.0, 4.0, math.nan]
    result = interval(values, 0.9)
    low, high = stats.t.interval(0.9, 2, np.mean(values[:3]), stats.sem(values[:3]))
    assert (result.mean, result.low, result.high) == pytest.approx((7 / 3, low, high))
    assert interval([3.0]) == Interval(3.0, math.nan, math.nan) or math.isnan(interval([3.0]).low)
    assert math.isnan(interval([]).mean)


def test_a_median_has_the_range_of_its_values() -> None:
    assert median([5.0, 1.0, 2.0]) == Interval(2.0, 1.0, 5.0)


@pytest.mark.parametrize(
    ("forward", "reverse", "expected"),
    [(0.5, 0.7, False), (0.5, 0.8, True), (0.5, math.nan, False), (-0.2, 0.2, True)],
)
def test_directions_disagree_by_a_quarter_of_the_whole(forward: float, reverse: float, expected: bool) -> None:
    assert disagrees(forward, reverse, 1.0) is expected
