"""The geometry of a chart of bars, two for each location from the input to the output: shares in, coordinates out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GAP = 0.2
"""The share of a location's width that stays empty."""


@dataclass(frozen=True)
class Bar:
    """One bar."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    """The name of its series."""


@dataclass(frozen=True)
class Column:
    """A location: its bars, and the dot below them that carries its description."""

    x: float
    y: float
    text: str
    kind: str
    """`marked` or `before`."""


@dataclass(frozen=True)
class Line:
    """A line of the scale."""

    y: float
    text: str


@dataclass(frozen=True)
class Bars:
    """The elements of the drawing, in units of its view box."""

    width: int
    height: int
    left: int
    right: int
    ground: float
    bars: tuple[Bar, ...]
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]


def bars(
    shares: Mapping[str, Sequence[float]],
    texts: Sequence[str],
    marked: Sequence[bool],
    width: int = 880,
    height: int = 280,
) -> Bars:
    """Lay out a chart.

    Args:
        shares: The values of each series, by its name; NaN values have no bar.
        texts: The description of each location.
        marked: Whether each location is marked.
        width: The width of the view box.
        height: The height of the view box.
    """
    left, top, right, bottom = 52, 12, width - 14, height - 44
    known = [value for series in shares.values() for value in series if math.isfinite(value)]
    low, high = min(0.0, *known, 0.0), max(0.1, *known, 0.1)
    step = next((s for s in (0.05, 0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 5.0) if (high - low) / s <= 6), high - low)
    low, high = step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9)

    def y(value: float) -> float:
        return round(bottom - (bottom - top) * (value - low) / (high - low), 1)

    slot = (right - left) / max(len(texts), 1)
    size = slot * (1 - GAP) / max(len(shares), 1)
    drawn = [
        Bar(
            round(left + slot * (k + GAP / 2) + size * n, 1),
            min(y(value), y(0)),
            round(max(size, 0.5), 1),
            round(abs(y(value) - y(0)), 1),
            name,
        )
        for n, (name, series) in enumerate(shares.items())
        for k, value in enumerate(series)
        if math.isfinite(value)
    ]
    columns = [
        Column(round(left + slot * (k + 0.5), 1), bottom + 10, text, "marked" if flag else "before")
        for k, (text, flag) in enumerate(zip(texts, marked, strict=True))
    ]
    steps = range(round(low / step), round(high / step) + 1)
    lines = [Line(y(n * step), f"{n * step:.0%}".replace("-", "−")) for n in steps]
    return Bars(width, height, left, right, y(0), tuple(drawn), tuple(columns), tuple(lines))
