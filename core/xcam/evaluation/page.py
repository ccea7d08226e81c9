"""The report on an evaluation: the ranking, the table of measures, and intervals on a common scale for each measure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xcam.evaluation.registry import Measure
from xcam.evaluation.scores import FLOOR, Row, Scores
from xcam.report import formatting, rendering

SIZES = {"wide": (880, 170), "narrow": (360, 112)}
"""The width of a chart and the start of its scale, in units of the view box."""
LINE = 30
"""The height of a method's line."""


def write(scores: Scores, path: Path) -> None:
    """Write the report. The file appears whole or not at all.

    Raises:
        InputError: The path cannot be written.
        BackendError: Jinja2 is not installed.
    """
    rendering.write(rendering.check_path(path), "evaluation.html", page(scores))


@dataclass(frozen=True)
class Bar:
    """One method on the scale of one measure, in units of the view box."""

    name: str
    y: float
    low: float
    mean: float
    high: float
    kind: str
    """The CSS class of the dot: `random` is marked."""
    text: str


def page(scores: Scores) -> dict[str, Any]:
    """Return the values for evaluation.html."""
    order = [rank.method for rank in scores.ranking]
    return {
        "model": scores.model,
        "layer": scores.layer,
        "title": f"Which maps of {scores.model} can be trusted?",
        "lead": _lead(scores),
        "floor": FLOOR if FLOOR in order else "",
        "level": f"{scores.level:.4g}",
        "ranking": [
            {
                "method": rank.method,
                "rank": formatting.NONE if math.isnan(rank.mean_rank) else f"{rank.mean_rank:.1f}",
                "above": f"{rank.above} of {rank.of}" if rank.method != FLOOR else formatting.NONE,
                "below": f"{rank.below} of {rank.of}" if rank.method != FLOOR else formatting.NONE,
            }
            for rank in scores.ranking
        ],
        "order": order,
        "measures": [_measure(scores, measure, order) for measure in scores.measures],
        "failed": [(path, reason.removeprefix(path).lstrip(": ")) for path, reason in scores.failed],
        "notes": scores.notes,
    }


def _lead(scores: Scores) -> str:
    """Return the result in a sentence or two."""
    count = len(scores.images)
    text = f"Measured on {formatting.count(count, 'image')} at layer {scores.layer}."
    best = scores.ranking[0]
    if len(scores.methods) < 2 or math.isnan(best.mean_rank):
        return text
    first = [rank for rank in scores.ranking if f"{rank.mean_rank:.1f}" == f"{best.mean_rank:.1f}"]
    mean_rank = f"a mean rank of {best.mean_rank:.1f} of {len(scores.methods)}"
    if len(first) > 1:
        names = ", ".join(rank.method for rank in first[:-1])
        text += f" {names} and {first[-1].method} are equally good, with {mean_rank}."
    else:
        text += f" {best.method} is best, with {mean_rank}."
    if FLOOR in scores.methods and len(first) == 1 and best.method != FLOOR:
        text += f" It is better than random maps by {best.above} of {best.of} measures: the interval of the difference is above zero."
    return text + (" One image gives no intervals; use more." if count < 2 else "")


def _measure(scores: Scores, measure: Measure, order: list[str]) -> dict[str, Any]:
    rows = {name: scores.row(name, measure.name) for name in order}
    return {
        "name": measure.name,
        "summary": measure.summary,
        "source": measure.source,
        "better": measure.better,
        "ranks": measure.ranks,
        "cells": [
            {
                "mean": formatting.number(row.mean),
                "interval": ""
                if math.isnan(row.low)
                else f"{formatting.number(row.low)} to {formatting.number(row.high)}",
                "above": row.above and measure.ranks,
                "of": f"{row.n} of {formatting.count(len(scores.images), 'image')}"
                if 0 < row.n < len(scores.images)
                else "",
            }
            for row in rows.values()
        ],
        "charts": [
            (size, chart)
            for size, dimensions in SIZES.items()
            if (chart := _chart(measure, list(rows.values()), *dimensions))
        ],
    }


def _chart(measure: Measure, rows: list[Row], width: int, start: int) -> dict[str, Any] | None:
    """Return the intervals of a measure on one scale, or None without values."""
    known = [row for row in rows if not math.isnan(row.mean)]
    if not known:
        return None
    ends = [v for row in known for v in (row.mean, row.low, row.high) if math.isfinite(v)]
    low, high = min(ends), max(ends)
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 0.05
    low, high = low - margin, high + margin

    def x(value: float) -> float:
        return round(start + (width - start - 14) * (value - low) / (high - low), 1)

    def bar(k: int, row: Row) -> Bar:
        left, right = (x(row.mean if math.isnan(v) else v) for v in (row.low, row.high))
        kind = "marked" if row.method == FLOOR else "before"
        text = f"{row.method}: {formatting.number(row.mean)}"
        if not math.isnan(row.low):
            text += f", interval {formatting.number(row.low)} to {formatting.number(row.high)}"
        return Bar(formatting.shorten(row.method, start // 8), 26.0 + LINE * k, left, x(row.mean), right, kind, text)

    bars = [bar(k, row) for k, row in enumerate(known)]
    floor = next((b for b, row in zip(bars, known, strict=True) if row.method == FLOOR), None)
    bottom = 14 + LINE * len(bars)
    return {
        "width": width,
        "left": start,
        "height": bottom + 30,
        "bottom": bottom,
        "bars": bars,
        "floor": floor,
        "ticks": [(x(v), formatting.number(v)) for v in _ticks(low, high, 5 if width > 500 else 3)],
        "name": f"{measure.name}, {measure.better} is better. " + "; ".join(b.text for b in bars),
    }


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers within a scale."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough)
    first = math.ceil(low / step)
    return [round(k * step, 12) for k in range(first, math.floor(high / step) + 1)]
