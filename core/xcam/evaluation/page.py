"""The report on an evaluation: which method's maps can be trusted, in a table and as intervals that can be compared."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xcam.comparison import sentences
from xcam.evaluation.registry import Measure
from xcam.evaluation.result import FLOOR, Evaluation, Row
from xcam.report.rendering import _environment, _write, check_place

SIZES = {"wide": (880, 170), "narrow": (360, 112)}
"""Of a drawing, in units of its view box: its width, and where its scale begins."""
LINE = 30
"""The height of a method's line."""


def write(evaluation: Evaluation, path: Path) -> None:
    """Write the report. The file appears whole or not at all.

    Raises InputError for a place that cannot be written, BackendError where Jinja2 is not installed.
    """
    _write(check_place(path), _environment(), "evaluation.html", page(evaluation))


@dataclass(frozen=True)
class Bar:
    """One method on the scale of one measure, in units of the view box."""

    name: str
    y: float
    low: float
    mean: float
    high: float
    kind: str
    """A class of the style: what is above `random` is lit."""
    text: str


def page(evaluation: Evaluation) -> dict[str, Any]:
    """The content of evaluation.html."""
    order = [rank.method for rank in evaluation.ranking]
    return {
        "model": evaluation.model,
        "layer": evaluation.layer,
        "title": f"Which maps of {evaluation.model} can be trusted?",
        "lead": _lead(evaluation),
        "floor": FLOOR if FLOOR in order else "",
        "level": f"{evaluation.level:.4g}",
        "ranking": [
            {
                "method": rank.method,
                "place": sentences.NONE if math.isnan(rank.place) else f"{rank.place:.1f}",
                "above": f"{rank.above} of {rank.of}" if rank.method != FLOOR else sentences.NONE,
                "below": f"{rank.below} of {rank.of}" if rank.method != FLOOR else sentences.NONE,
            }
            for rank in evaluation.ranking
        ],
        "order": order,
        "measures": [_measure(evaluation, measure, order) for measure in evaluation.measures],
        "failed": [(path, why.removeprefix(path).lstrip(": ")) for path, why in evaluation.failed],
        "notes": evaluation.notes,
    }


def _lead(evaluation: Evaluation) -> str:
    """The answer in a sentence or two."""
    count = len(evaluation.pictures)
    said = f"Measured on {sentences.count(count, 'picture')} at layer {evaluation.layer}."
    best = evaluation.ranking[0]
    if len(evaluation.methods) < 2 or math.isnan(best.place):
        return said
    first = [rank for rank in evaluation.ranking if f"{rank.place:.1f}" == f"{best.place:.1f}"]
    place = f"a mean place of {best.place:.1f} of {len(evaluation.methods)}"
    if len(first) > 1:
        names = ", ".join(rank.method for rank in first[:-1])
        said += f" {names} and {first[-1].method} come out equally well, with {place}."
    else:
        said += f" {best.method} comes out best, with {place}."
    if FLOOR in evaluation.methods and len(first) == 1 and best.method != FLOOR:
        said += f" By {best.above} of {best.of} measures it is better than random maps, and the interval of the difference does not reach zero."
    return said + (" One picture gives no intervals: take more." if count < 2 else "")


def _measure(evaluation: Evaluation, measure: Measure, order: list[str]) -> dict[str, Any]:
    rows = {name: evaluation.row(name, measure.name) for name in order}
    return {
        "name": measure.name,
        "summary": measure.summary,
        "source": measure.source,
        "better": measure.better,
        "ranks": measure.ranks,
        "cells": [
            {
                "mean": sentences.number(row.mean),
                "interval": ""
                if math.isnan(row.low)
                else f"{sentences.number(row.low)} to {sentences.number(row.high)}",
                "above": row.above and measure.ranks,
                "of": f"{row.n} of {sentences.count(len(evaluation.pictures), 'picture')}"
                if 0 < row.n < len(evaluation.pictures)
                else "",
            }
            for row in rows.values()
        ],
        "charts": [
            (size, chart) for size, place in SIZES.items() if (chart := _chart(measure, list(rows.values()), *place))
        ],
    }


def _chart(measure: Measure, rows: list[Row], width: int, start: int) -> dict[str, Any] | None:
    """The intervals of a measure side by side; None where there is nothing to draw."""
    known = [row for row in rows if not math.isnan(row.mean)]
    if not known:
        return None
    ends = [v for row in known for v in (row.mean, row.low, row.high) if math.isfinite(v)]
    low, high = min(ends), max(ends)
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 0.05
    low, high = low - margin, high + margin

    def across(value: float) -> float:
        return round(start + (width - start - 14) * (value - low) / (high - low), 1)

    def bar(k: int, row: Row) -> Bar:
        left, right = (across(row.mean if math.isnan(v) else v) for v in (row.low, row.high))
        kind = "culprit" if row.method == FLOOR else "before"
        said = f"{row.method}: {sentences.number(row.mean)}"
        if not math.isnan(row.low):
            said += f", interval {sentences.number(row.low)} to {sentences.number(row.high)}"
        return Bar(
            sentences.shorter(row.method, start // 8), 26.0 + LINE * k, left, across(row.mean), right, kind, said
        )

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
        "ticks": [(across(v), sentences.number(v)) for v in _ticks(low, high, 5 if width > 500 else 3)],
        "name": f"{measure.name}, {measure.better} is better. " + "; ".join(b.text for b in bars),
    }


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers within a scale, about `count` of them."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough)
    first = math.ceil(low / step)
    return [round(k * step, 12) for k in range(first, math.floor(high / step) + 1)]
