"""The geometry of a line chart with a logarithmic scale: errors in, coordinates out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from xcam.report import formatting

SMALLEST = 1e-9
"""Errors below this are drawn on the ground line, as a logarithm has no zero."""
PRECISION = -7
"""The exponent of float32's precision. If an error is zero, the ground line is at this exponent or below."""


@dataclass(frozen=True)
class Dot:
    """One value."""

    x: float
    y: float
    text: str
    kind: str
    """`before`, `marked` or `after`; `before` where no dot is marked, and for all others in a chart with a band."""


@dataclass(frozen=True)
class Tick:
    """A line of the scale."""

    y: float
    text: str


@dataclass(frozen=True)
class Chart:
    """The elements of the drawing, in units of its view box."""

    width: int
    height: int
    left: int
    right: float
    top: int
    bottom: int
    path: str
    dots: tuple[Dot, ...]
    ticks: tuple[Tick, ...]
    marked: Dot | None
    mark: str
    """The name of the marked dot, shortened to fit."""
    anchor: str
    """`start` or `end`: the side of the marked dot on which its name is written."""
    band: str = ""
    """The outline of the expected values; "" where there is none."""

    @property
    def mark_x(self) -> float:
        """The start or the end of the name of the marked dot."""
        if self.marked is None:
            return 0
        return self.marked.x + (8 if self.anchor == "start" else -8)


def chart(
    errors: Sequence[float],
    texts: Sequence[str],
    marked: int | None = None,
    mark: str = "",
    width: int = 880,
    height: int = 280,
    band: Sequence[tuple[float, float]] = (),
) -> Chart:
    """Lay out a chart.

    Args:
        errors: One or more values, 0 or above; NaN and infinity are drawn at the top.
        texts: The description of each.
        marked: The index of the value to mark.
        mark: The name of the marked value.
        width: The width of the view box.
        height: The height of the view box.
        band: The range in which each value is expected, above 0. Values after the marked one do not follow from it.
    """
    left, top, right, bottom = 52, 34, width - 14, height - 36
    usable = [e for e in (*errors, *(end for ends in band for end in ends)) if math.isfinite(e) and e >= SMALLEST]
    low = math.floor(math.log10(min(usable))) if usable else -9
    if any(e < SMALLEST for e in errors):  # else rounding would be drawn high above zero
        low = min(low, PRECISION)
    high = math.ceil(math.log10(max(usable))) if usable else 0
    high = max(high, low + 3)
    n = len(errors)

    def x(k: int) -> float:
        return round(left + 12 + (right - left - 24) * (k / (n - 1) if n > 1 else 0.5), 1)

    def y(error: float) -> float:
        if math.isnan(error) or error == math.inf:
            return top
        power = math.log10(error) if error > 0 else -math.inf
        return round(bottom - (bottom - top) * min(max((power - low) / (high - low), 0), 1), 1)

    def kind(k: int) -> str:
        return "marked" if k == marked else "before" if marked is None or k < marked or band else "after"

    dots = tuple(Dot(x(k), y(e), text, kind(k)) for k, (e, text) in enumerate(zip(errors, texts, strict=True)))
    every = max(1, math.ceil((high - low) / 8))
    dot = None if marked is None else dots[marked]
    return Chart(
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        path="M" + "L".join(f"{d.x} {d.y}" for d in dots),
        dots=dots,
        ticks=tuple(Tick(y(10.0**p), _decade(p)) for p in range(low, high + 1, every)),
        marked=dot,
        mark=formatting.shorten(mark, width // 22),
        anchor="start" if dot is not None and dot.x < (left + right) / 2 else "end",
        band=_outline([(x(k), y(low), y(high)) for k, (low, high) in enumerate(band)]),
    )


def _outline(ends: Sequence[tuple[float, float, float]]) -> str:
    """Return the outline of a band, from (x, y of the lower end, y of the upper end) of each value."""
    if not ends:
        return ""
    points = [*((x, high) for x, _, high in ends), *((x, low) for x, low, _ in reversed(ends))]
    return "M" + "L".join(f"{x} {y}" for x, y in points) + "Z"


def _decade(power: int) -> str:
    return f"{10.0**power:g}" if power >= -2 else formatting.power_of_ten(power)
