"""The geometry of a chart of bars."""

from __future__ import annotations

import math

import pytest

from xcam.report.bars import bars


def test_bars_begin_at_the_ground_and_are_as_high_as_their_share() -> None:
    chart = bars({"scores": [0.5, -0.25], "heatmap": [1.0, math.nan]}, ["one", "two"], [True, False])
    assert [bar.kind for bar in chart.bars] == ["scores", "scores", "heatmap"]
    half, negative, whole = chart.bars
    assert whole.height == pytest.approx(2 * half.height, abs=0.2)
    assert half.y + half.height == pytest.approx(chart.ground, abs=0.2)
    assert negative.y == chart.ground
    assert half.x + half.width <= whole.x + 0.2 < negative.x
    assert [column.kind for column in chart.columns] == ["marked", "before"]


def test_the_scale_contains_all_shares_and_zero() -> None:
    chart = bars({"scores": [1.3, -0.1]}, ["a", "b"], [False, False])
    texts = [line.text for line in chart.lines]
    assert texts[0] == "−25%"
    assert "0%" in texts
    assert texts[-1] == "150%"
    assert all(bar.y >= 0 and bar.y + bar.height <= chart.height for bar in chart.bars)


def test_nothing_to_draw() -> None:
    assert bars({"scores": []}, [], []).bars == ()
    assert bars({"scores": [math.nan]}, ["a"], [False]).bars == ()
