"""The geometry of the chart."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from xcam.report.chart import Chart, chart


def drawn(errors: Sequence[float], marked: int | None = None) -> Chart:
    return chart(errors, [str(k) for k in range(len(errors))], marked)


def test_the_chart_is_logarithmic() -> None:
    result = drawn((1e-6, 1e-4, 1e-2, 0.0, math.inf, math.nan), 2)
    ys = [dot.y for dot in result.dots]
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2)
    assert ys[0] < ys[3] == result.bottom  # the smallest error is drawn above zero
    assert ys[2] == ys[4] == ys[5] == result.top  # the largest, infinity and NaN
    assert [dot.kind for dot in result.dots] == ["before", "before", "marked", "after", "after", "after"]
    assert all(result.left <= dot.x <= result.right for dot in result.dots)


def test_a_layer_without_an_error_is_drawn_below_rounding() -> None:
    result = drawn((0.0, 0.0, 0.3, 4.0), 2)
    assert result.dots[0].y == result.bottom
    assert result.dots[0].y - result.dots[2].y > 0.6 * (result.bottom - result.top), "0 and 0.3 are far apart"


@pytest.mark.parametrize("errors", [(0.0,), (0.0, 0.0), (math.nan,), (1e-30, 1e30)])
def test_values_without_a_logarithm_stay_within_the_chart(errors: tuple[float, ...]) -> None:
    result = drawn(errors)
    assert all(result.top <= dot.y <= result.bottom for dot in result.dots)


def test_the_name_of_the_marked_value_is_shortened_and_on_the_side_with_room() -> None:
    left, right = (chart([1e-6] * 9, [""] * 9, k, "features." * 20) for k in (1, 7))
    assert len(left.mark) == 880 // 22
    assert (left.anchor, right.anchor) == ("start", "end")
    assert left.marked is not None
    assert left.mark_x == left.marked.x + 8


def test_a_band_of_expected_values() -> None:
    errors, band = (1e-3, 0.1, 1e-3), [(1e-3, 1e-2)] * 3
    result = chart(errors, ["", "", ""], 1, band=band)
    upper = [float(point.split()[1]) for point in result.band.strip("MZ").split("L")]
    assert upper[:3] == [upper[0]] * 3
    assert upper[3:] == [result.dots[0].y] * 3  # the lower end is at the value itself
    assert result.dots[0].y - upper[0] == pytest.approx(upper[0] - result.dots[1].y, abs=0.2)  # one decade each
    assert [dot.kind for dot in result.dots] == ["before", "marked", "before"]
    assert chart(errors, ["", "", ""]).band == ""
