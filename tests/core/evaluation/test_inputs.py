"""The order in which measures change pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from xcam.evaluation.inputs import order


@given(arrays(np.float32, (2, 3, 4), elements=st.floats(0, 1, width=16)), st.integers(0, 99))
def test_the_order_is_a_permutation_of_all_pixels_from_high_to_low(heatmap: Any, seed: int) -> None:
    result = order(heatmap, seed)
    for indices, values in zip(result, heatmap, strict=True):
        assert sorted(indices) == list(range(12))
        assert (np.diff(values.ravel()[indices]) <= 0).all()
    np.testing.assert_array_equal(result, order(heatmap, seed))


def test_equal_values_are_in_an_order_that_depends_on_the_seed() -> None:
    flat = np.zeros((1, 8, 8), np.float32)
    first, second = order(flat, 0)[0], order(flat, 1)[0]
    assert first.tolist() != second.tolist()
    assert np.abs(np.diff(first)).mean() > 5, "not row by row"
