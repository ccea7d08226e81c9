"""The measures of the randomisation test, compared with scipy and with values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from xcam.evaluation.randomization import efficient_randomization, randomization, ranks

RAMP = np.arange(12, dtype=np.float32).reshape(1, 3, 4)


@given(arrays(np.float32, (2, 9), elements=st.sampled_from([0.0, 0.5, 1.0, 2.0])))
def test_ranks_are_those_of_scipy(values: np.ndarray) -> None:
    np.testing.assert_array_equal(ranks(values), stats.rankdata(values, axis=1))


def test_the_mean_over_the_stages() -> None:
    """A stage that keeps the order, one that reverses it, and one that is constant."""
    assert randomization(RAMP, [RAMP**2]) == pytest.approx(1)
    assert randomization(RAMP, [-RAMP]) == pytest.approx(-1)
    assert randomization(RAMP, [RAMP, RAMP, -RAMP, 0 * RAMP]) == pytest.approx(1 / 4)


def test_each_row_is_the_correlation_of_scipy() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    expected = [stats.spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(randomization(a, [b]), expected, atol=1e-12)


def test_a_constant_map_has_no_value() -> None:
    both = np.concatenate([RAMP, 0 * RAMP])
    np.testing.assert_allclose(randomization(both, [both]), [1, np.nan], atol=1e-12)
    assert np.isnan(efficient_randomization(both, [both]))[1]
    assert np.isnan(randomization(both, [])).all()
    assert np.isnan(efficient_randomization(both, [])).all()


def test_the_relative_rise_of_entropy_up_to_the_last_stage() -> None:
    """Two values, equally frequent: ln 2. Four: ln 4, twice as much."""
    two, four = np.float32([[[0, 0, 1, 1]]]), np.float32([[[0, 1, 2, 3]]])
    assert efficient_randomization(two, [two, four]) == pytest.approx(1)
    assert efficient_randomization(four, [four, two]) == pytest.approx(-0.5)
