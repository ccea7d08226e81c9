"""Coherency, complexity and ADCC, compared with values computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from xcam.evaluation.agreement import adcc, coherency, complexity

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
    result = adcc(RAMP, RAMP, np.array([0.8]), np.array([0.2]))
    assert result == pytest.approx(3 / (1 + 2 + 4))
    assert adcc(RAMP, RAMP, np.array([0.8]), np.array([0.0])) == 0
    assert np.isnan(adcc(RAMP, RAMP, np.array([-1.0]), np.array([0.0])))


@given(
    arrays(np.float32, (3, 4, 5), elements=st.floats(0, 1, width=16)),
    arrays(np.float32, (3, 4, 5), elements=st.floats(0, 1, width=16)),
    arrays(np.float64, 3, elements=st.floats(0.01, 1)),
    arrays(np.float64, 3, elements=st.floats(0, 1)),
)
def test_adcc_is_between_its_parts(heatmap: Any, masked_heatmap: Any, clean: Any, masked: Any) -> None:
    parts = [coherency(heatmap, masked_heatmap), 1 - complexity(heatmap), 1 - np.maximum(clean - masked, 0) / clean]
    result = adcc(heatmap, masked_heatmap, clean, masked)
    assert (np.min(parts, axis=0) - 1e-9 <= result).all()
    assert (result <= np.max(parts, axis=0) + 1e-9).all()
