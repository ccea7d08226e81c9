"""The verdict of a blame on one image."""

from __future__ import annotations

import types

import numpy as np
import pytest

from xcam.comparison.blame import walks


@pytest.mark.parametrize(
    ("scores", "expected"), [((1.0, 0.0), "equivalent"), ((0.95, 0.0), "equivalent"), ((0.5, 0.0), "different")]
)
def test_two_zero_heatmaps_are_equivalent_at_best(scores: tuple[float, float], expected: str) -> None:
    """As in `compare`: they show no region that could agree."""
    zero = np.zeros((2, 2), np.float32)
    first, second = (types.SimpleNamespace(scores=np.array(s), heatmap=zero) for s in ((1.0, 0.0), scores))
    assert walks._verdict(types.SimpleNamespace(first=first, second=second, lost=0.0)) == expected  # type: ignore[arg-type]
