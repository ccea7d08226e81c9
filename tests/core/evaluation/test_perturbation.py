"""Deletion, insertion, drop and increase, compared with values computed by hand, and properties for a linear model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from xcam.errors import InputError
from xcam.evaluation.perturbation import average_drop, deletion, increase, insertion

X = np.float32([[[[4, 3], [2, 1]]]])
"""One image with one channel, 2×2."""


def total(x: Any, rows: Any) -> np.ndarray:
    """A linear model: the sum of all values."""
    assert len(x) == len(rows)
    return x.sum(axis=(1, 2, 3), dtype=float)


images = arrays(np.float32, (2, 1, 3, 4), elements=st.floats(0, 8, width=16))


def test_deletion_of_a_map_in_the_right_order_and_in_the_wrong_one() -> None:
    """The sum is 10, 6, 3, 1, 0, step by step; in the wrong order 10, 9, 7, 4, 0."""
    assert deletion(X[:, 0], X, total, steps=4, baseline="zero").tolist() == [(8 + 4.5 + 2 + 0.5) / 4]
    assert deletion(-X[:, 0], X, total, steps=4, baseline="zero").tolist() == [(9.5 + 8 + 5.5 + 2) / 4]
    assert deletion(X[:, 0], X, total, steps=2, baseline="zero").tolist() == [(6.5 + 1.5) / 2]


def test_insertion_of_a_map_in_the_right_order_and_in_the_wrong_one() -> None:
    assert insertion(X[:, 0], X, total, steps=4, baseline="zero").tolist() == [(2 + 5.5 + 8 + 9.5) / 4]
    assert insertion(-X[:, 0], X, total, steps=4, baseline="zero").tolist() == [(0.5 + 2 + 4.5 + 8) / 4]


def test_the_baseline_is_the_mean_of_each_channel_by_default() -> None:
    """The sum of the linear model is 10, 8.5, 8, 8.5, 10."""
    x = np.concatenate([X, 0 * X], axis=1)
    expected = (9.25 + 8.25 + 8.25 + 9.25) / 4
    assert deletion(X[:, 0], x, total, steps=4).tolist() == [expected]
    seen = []

    def watched(x: Any, rows: Any) -> np.ndarray:
        seen.append(x.copy())
        return total(x, rows)

    deletion(X[:, 0], x, watched, steps=4)
    assert (np.concatenate(seen)[:, 1] == 0).all()


def test_a_blurred_image_keeps_its_mean_and_loses_its_edges() -> None:
    x = np.zeros((1, 1, 64, 64), np.float32)
    x[:, :, 20:44, 20:44] = 1
    first: list[np.ndarray] = []

    def watched(x: Any, rows: Any) -> np.ndarray:
        first.append(x.copy())
        return total(x, rows)

    insertion(x[:, 0], x, watched, steps=1)
    start = first[0][0, 0]
    assert start.mean() == pytest.approx(x.mean(), rel=1e-3)
    assert np.abs(np.diff(start, axis=1)).max() < 0.15


@given(images, arrays(np.float32, (2, 3, 4), elements=st.floats(0, 1, width=16)))
def test_no_map_deletes_a_linear_model_faster_than_its_own_parts(x: Any, other: Any) -> None:
    best = deletion(x[:, 0], x, total, steps=12, baseline="zero")
    assert (best <= deletion(other, x, total, steps=12, baseline="zero") + 1e-5).all()
    assert (insertion(x[:, 0], x, total, steps=12, baseline="zero") + 1e-5 >= 0.5 * x.sum((1, 2, 3))).all()


@given(images, arrays(np.float32, (2, 3, 4), elements=st.floats(0, 1, width=16)))
def test_deletion_and_insertion_add_up_to_the_sum_of_the_image(x: Any, heatmap: Any) -> None:
    areas = [measure(heatmap, x, total, steps=5, baseline="zero") for measure in (deletion, insertion)]
    np.testing.assert_allclose(np.add(*areas), x.sum((1, 2, 3)), atol=1e-4)


def test_the_number_of_removed_pixels_in_each_step() -> None:
    counts: list[int] = []

    def counting(x: Any, rows: Any) -> np.ndarray:
        counts.extend(int((one == 0).sum()) for one in x)
        return total(x, rows)

    x = np.arange(1, 36, dtype=np.float32).reshape(1, 1, 5, 7)
    deletion(x[:, 0], x, counting, steps=3, baseline="zero")
    assert counts == [0, 12, 23, 35]


def test_drop_and_increase() -> None:
    clean, masked = np.array([0.8, 0.5, 0.0, -1.0]), np.array([0.2, 0.6, 0.1, -2.0])
    np.testing.assert_allclose(average_drop(clean, masked), [0.75, 0, np.nan, np.nan])
    np.testing.assert_array_equal(increase(clean, masked), [0, 1, 1, 0])
    assert increase(clean, clean).tolist() == [0, 0, 0, 0], "an unchanged score does not rise"


@pytest.mark.parametrize("options", [{"steps": 0}, {"baseline": "grey"}, {"seed": -1}])
def test_options_that_cannot_be_used(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=str(next(iter(options.values())))):
        deletion(X[:, 0], X, total, **options)
