"""Numbers as text."""

from __future__ import annotations

import math

import pytest

from xcam.report import formatting


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-0.0, "0"),
        (1, "1"),
        (0.123456, "0.123"),
        (0.00099996, "0.001"),
        (0.00012345, "1.2\u00a0×\u00a010⁻⁴"),
        (-36.66, "−36.7"),
        (12345.6, "12\u202f346"),
        (3e12, "3.0\u00a0×\u00a010¹²"),
        (math.nan, "–"),
        (math.inf, "∞"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert formatting.number(value) == text


def test_nothing_is_rounded_to_perfect() -> None:
    assert [formatting.correlation(v) for v in (1.0, 0.99999, 0.98765, -0.5)] == [
        "1",
        ">\u00a00.9999",
        "0.9877",
        "−0.5000",
    ]
    assert [formatting.percent(v) for v in (0.0, -1e-5, 1e-5, 0.123, 0.9999, 1.0)] == [
        "0%",
        "0.0%",
        "<\u00a00.1%",
        "12.3%",
        ">\u00a099.9%",
        "100%",
    ]
