"""Numbers, counts and names as text for a report."""

from __future__ import annotations

import math

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
NONE = "–"
"""Text for a missing value in a table."""


def number(value: float) -> str:
    """Return a number with three significant digits; below 0.001 as a power of ten: `0.0312`, `3.1 × 10⁻⁵`."""
    if math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size == 0:
        text = "0"
    elif size >= 999.5:
        text = f"{size:,.0f}".replace(",", "\u202f") if size < 1e7 else _scientific(size)
    elif size >= 0.0009995:
        text = f"{size:.3g}"
    else:
        text = _scientific(size)
    return f"−{text}" if value < 0 else text


def power_of_ten(exponent: int) -> str:
    """Return `10⁻⁵` for −5."""
    return f"10{str(exponent).translate(SUPERSCRIPTS)}"


def _scientific(size: float) -> str:
    mantissa, exponent = f"{size:.1e}".split("e")
    return f"{mantissa}\u00a0×\u00a0{power_of_ten(int(exponent))}"


def correlation(value: float) -> str:
    """Return a correlation with four decimals; `> 0.9999` where rounding would give 1 and the value is smaller."""
    if math.isnan(value):
        return NONE
    if value >= 1:
        return "1"
    if round(value, 4) == 1:
        return ">\u00a00.9999"
    return f"{value:.4f}".replace("-", "−")


def percent(value: float) -> str:
    """Return a share in percent with one decimal; never rounded to 0% or 100%."""
    if math.isnan(value):
        return NONE
    if value in (0, 1):
        return f"{value:.0%}"
    if 0 < value < 0.0005:
        return "<\u00a00.1%"
    if 0.9995 <= value < 1:
        return ">\u00a099.9%"
    return f"{value:z.1%}".replace("-", "−")


def count(n: int, singular: str, plural: str = "") -> str:
    """Return `1 image`, `2 images`."""
    return f"{n} {singular if n == 1 else plural or singular + 's'}"


def shorten(name: str, length: int) -> str:
    """Return a name of at most `length` characters: the middle of a long one is left out."""
    return name if len(name) <= length else f"{name[: length // 2 - 1]}…{name[-(length - length // 2) :]}"
