"""Matching of two sequences: paths and distances computed by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from xcam.comparison import matching


def best_sum(gain: np.ndarray) -> float:
    """Return the largest sum by trying all increasing pairs."""
    n, m = gain.shape
    sums = [0.0]
    for size in range(1, min(n, m) + 1):
        for rows in itertools.combinations(range(n), size):
            sums += [float(gain[rows, columns].sum()) for columns in itertools.combinations(range(m), size)]
    return max(sums)


@pytest.mark.parametrize("seed", range(8))
def test_the_path_has_the_largest_sum(seed: int) -> None:
    random = np.random.default_rng(seed)
    gain = random.integers(0, 4, random.integers(1, 6, 2)).astype(np.float32)
    pairs = matching.in_order(gain)
    assert sum(gain[pair] for pair in pairs) == best_sum(gain)
    assert all(gain[pair] > 0 for pair in pairs)
    for (i, j), (k, m) in itertools.pairwise(pairs):
        assert i < k
        assert j < m


def test_of_equal_sums_the_earliest_pairs_are_taken() -> None:
    assert matching.in_order(np.ones((3, 2))) == [(0, 0), (1, 1)]
    assert matching.in_order(np.ones((2, 3))) == [(0, 0), (1, 1)]
    assert matching.in_order(np.zeros((2, 3))) == []
    assert matching.in_order(np.ones((2, 0))) == []


def test_distances() -> None:
    x = np.random.default_rng(0).normal(size=500)
    other = np.random.default_rng(1).normal(size=500)
    near, unexplained = matching.distances([x, 0 * x], [x, 1.5 * x, x + 3, -x, 0 * x, other, x + 0.01 * other])
    np.testing.assert_allclose(near[0, [0, 1, 3, 4]], [0, 1 / 3, 2, 1], atol=1e-6)
    np.testing.assert_allclose(near[1], [1, 1, 1, 1, 0, 1, 1])
    np.testing.assert_allclose(unexplained[0, :5], [0, 0, 0, 1, 1], atol=1e-6)
    np.testing.assert_allclose(unexplained[1], [1, 1, 1, 1, 0, 1, 1])
    correlation = np.corrcoef(x, x + 0.01 * other)[0, 1]
    assert unexplained[0, 6] == pytest.approx(np.sqrt(1 - correlation**2), rel=1e-4)


def test_fingerprints_of_infinite_and_large_values() -> None:
    values = np.array([[[np.inf, -np.inf, np.nan, 1e38]]], np.float32)
    assert matching.fingerprint(values).tolist() == [matching.LARGEST, -matching.LARGEST, 0, float(np.float32(1e38))]
    near, _ = matching.distances([matching.fingerprint(values)] * 2, [matching.fingerprint(values)])
    assert near.tolist() == [[0], [0]]
    long = np.random.default_rng(0).normal(size=(2, 30, 100)).astype(np.float32)
    taken = matching.fingerprint(long)
    assert len(taken) == matching.SIZE
    assert np.isin(taken, long).all()
    assert len(set(np.searchsorted(np.sort(long.ravel()), taken) % 100)) > 50


def test_common_labels() -> None:
    result = matching.shared([{"a", "b"}, {"c"}, set()], [{"b"}, {"c", "d"}, {"e"}])
    assert result.tolist() == [[True, False, False], [False, True, False], [False, False, False]]
