"""Coherency, complexity, ADCC and sensitivity, against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from xcam.errors import InputError
from xcam.evaluation.agreement import adcc, coherency, complexity
from xcam.evaluation.robustness import max_sensitivity

RAMP = np.arange(6, dtype=np.float32).reshape(1, 2, 3) / 5


def test_coherency_is_a_correlation_between_0_and_1() -> None:
    assert coherency(RAMP, 0.5 * RAMP + 0.1) == pytest.approx(1)
    assert coherency(RAMP, 1 - RAMP) == pytest.approx(0)
    assert coherency(RAMP, 0 * RAMP).tolist() == [0.5]
    half = np.float32([[[0, 0, 1], [1, 1, 0]]])
    assert coherency(half, np.float32([[[0, 1, 1], [0, 1, 0]]])) == pytest.approx((1 + 1 / 3) / 2)


def test_complexity_is_the_mean() -> None:
    assert complexity(RAMP) == pytest.approx(0.5)
    assert complexity(0 * RAMP) == 0


def test_adcc_is_the_harmonic_mean() -> None:
    """Coherency 1, complexity 0.5, drop 0.75."""
    found = adcc(RAMP, RAMP, np.array([0.8]), np.array([0.2]))
    assert found == pytest.approx(3 / (1 + 2 + 4))
    assert adcc(RAMP, RAMP, np.array([0.8]), np.array([0.0])) == 0
    assert np.isnan(adcc(RAMP, RAMP, np.array([-1.0]), np.array([0.0])))


@given(
    arrays(np.float32, (3, 4, 5), elements=st.floats(0, 1, width=16)),
    arrays(np.float32, (3, 4, 5), elements=st.floats(0, 1, width=16)),
    arrays(np.float64, 3, elements=st.floats(0.01, 1)),
    arrays(np.float64, 3, elements=st.floats(0, 1)),
)
def test_adcc_lies_between_its_parts(heatmap: Any, again: Any, clean: Any, masked: Any) -> None:
    parts = [coherency(heatmap, again), 1 - complexity(heatmap), 1 - np.maximum(clean - masked, 0) / clean]
    found = adcc(heatmap, again, clean, masked)
    assert (np.min(parts, axis=0) - 1e-9 <= found).all()
    assert (found <= np.max(parts, axis=0) + 1e-9).all()


def test_sensitivity_is_the_largest_relative_change() -> None:
    """The map's norm is 5; the second of three noises moves it by 0.5, the others by less."""
    heatmap = np.zeros((1, 2, 2), np.float32)
    heatmap[0, 0] = 3, 4
    moves = iter([0.1, 0.5, 0.2])
    x = np.float32([[[[0, 0], [0, 1]]]])

    def explained(x: Any, rows: Any) -> Any:
        moved = heatmap.copy()
        moved[0, 1, 1] = next(moves)
        return moved

    assert max_sensitivity(heatmap, x, explained, n=3) == pytest.approx(0.1)


def test_the_noise_stays_within_its_radius_of_each_pictures_range() -> None:
    x = np.stack([np.linspace(0, 1, 64), np.linspace(-100, 100, 64)]).reshape(2, 1, 8, 8).astype(np.float32)
    seen: list[np.ndarray] = []

    def explained(changed: Any, rows: Any) -> Any:
        seen.append(changed - x)
        assert list(rows) == [0, 1]
        return changed[:, 0]

    found = max_sensitivity(x[:, 0], x, explained, n=4, radius=0.1)
    moved = np.abs(np.stack(seen)).max(axis=(0, 2, 3, 4))
    assert 0.09 < moved[0] <= 0.1 + 1e-6
    assert 18 < moved[1] <= 20 + 1e-4
    assert len({one.tobytes() for one in seen}) == 4
    again = max_sensitivity(x[:, 0], x, lambda changed, _: changed[:, 0], n=4, radius=0.1)
    np.testing.assert_array_equal(found, again)


def test_a_map_that_stays_is_not_sensitive_and_of_an_empty_one_or_a_flat_picture_nothing_is_known() -> None:
    maps = np.stack([RAMP[0], 0 * RAMP[0], RAMP[0]])
    x = np.stack([np.stack([RAMP[0]] * 3)] * 2 + [np.ones((3, *RAMP[0].shape))]).astype(np.float32)
    np.testing.assert_array_equal(max_sensitivity(maps, x, lambda *_: maps), [0, np.nan, np.nan])


@pytest.mark.parametrize("wrong", [{"n": 0}, {"radius": 0.0}, {"radius": float("nan")}])
def test_bad_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        max_sensitivity(RAMP, RAMP[None], lambda *_: RAMP, **wrong)
