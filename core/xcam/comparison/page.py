"""The report of a comparison: the content of its template, which computes nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xcam.comparison import sentences
from xcam.comparison.data import ComparisonData, Divergence, ImageComparison
from xcam.explanation.page import image_names, predictions, strongest
from xcam.explanation.result import Explanation
from xcam.methods import maps
from xcam.report import rendering, thumbnails
from xcam.report.chart import chart
from xcam.report.formatting import count, number

OPEN = 3
"""Up to this number of images, all are unfolded; of more, only the worst is."""
SCALES = (0.05, 0.1, 0.2, 0.5, 1.0)
"""The range of differences that the brightest colour may represent: below 0.05, rounding would appear bright."""
ROUNDING = 1e-6
"""Layers whose expected error is below this, such as a pool of exact values, are left out of the chart of own errors."""


def write(comparison: ComparisonData, path: Path, blame: Mapping[str, Any] | None = None) -> None:
    """Write the report. Raises InputError where it cannot be written, BackendError without Jinja2.

    Args:
        comparison: The comparison.
        path: The file.
        blame: The content of the section on contributions; None: no such section.
    """
    rendering.write(rendering.check_path(path), "comparison.html", {**content(comparison), "blame": blame})


def content(comparison: ComparisonData) -> dict[str, Any]:
    """Return the content of comparison.html, without the section on contributions."""
    letters = [letter(k) for k in range(len(comparison.names))]
    names = image_names([image.path for image in comparison.images])
    shown = [k for k, image in enumerate(comparison.images) if image.explanations]
    order = sorted(shown, key=lambda k: comparison.images[k].badness, reverse=True)
    brightest = _brightest(comparison)
    side = thumbnails.side_for(len(order))
    cards = [
        _card(comparison, comparison.images[k], names[k], letters, brightest, side, not n or len(order) <= OPEN)
        for n, k in enumerate(order)
    ]
    usable = bool(comparison.images and comparison.pairs)
    return {
        "verdict": comparison.verdict if usable else "none",
        "sign": sentences.SIGNS[comparison.verdict] if usable else "?",
        "headline": sentences.headline(comparison),
        "sentences": sentences.sentences(comparison),
        "signs": sentences.SIGNS,
        "tally": [(v, n) for v, n in sentences.tally(comparison) if n] if usable else [],
        "models": list(zip(letters, comparison.names, comparison.layers, strict=True)),
        "pairs": [
            {"letters": _pair(letters, pair), "verdict": comparison.of(pair), "names": _pair(comparison.names, pair)}
            for pair in comparison.pairs
        ]
        if comparison.images
        else [],
        "method": comparison.method,
        "first_difference": _first_difference(comparison, letters),
        "even": _even(comparison),
        "divergences": [
            _divergence(comparison, d, letters)
            for d in sorted(comparison.divergences, key=lambda d: d.index is None)
            if d.steps
        ],
        "findings": comparison.findings,
        "failed": [(path, error.removeprefix(path).lstrip(": ")) for path, error in comparison.failed],
        "notes": comparison.notes,
        "cards": cards,
        "more": len(comparison.images) - len(cards),
        "columns": ("two", "three", "four")[min(max(len(letters), 1), 3) - 1],
        "heat": thumbnails.stops(thumbnails.HEAT),
        "difference": thumbnails.stops(thumbnails.DIFFERENCE),
        "brightest": number(brightest),
        "measures": sentences.MEASURES,
    }


def letter(k: int) -> str:
    """Return the k-th of A, B, … Z, AA, AB, …: a short name of a model."""
    return (letter(k // 26 - 1) if k >= 26 else "") + chr(ord("A") + k % 26)


def difference(first: Explanation, second: Explanation) -> npt.NDArray[np.float32]:
    """Return the absolute difference of two heatmaps [H, W], at the size of the first; NaN where one model did not look."""
    a, b = first.drawn_heatmap, second.drawn_heatmap
    if a.shape != b.shape:
        b = maps.resize(b, (a.shape[0], a.shape[1]))
    return np.abs(a - b)


def _pair(names: Sequence[str], pair: tuple[int, int]) -> tuple[str, str]:
    return names[pair[0]], names[pair[1]]


def _brightest(comparison: ComparisonData) -> float:
    """The difference that the brightest colour represents in every difference map, so that images can be compared."""
    values = [m.largest for image in comparison.images for m in image.measures.values() if math.isfinite(m.largest)]
    return next((scale for scale in SCALES if max(values, default=0.0) <= scale), SCALES[-1])


def _card(
    comparison: ComparisonData,
    image: ImageComparison,
    name: str,
    letters: Sequence[str],
    brightest: float,
    side: int,
    is_open: bool,
) -> dict[str, Any]:
    """One image."""
    embedded = thumbnails.embed(image.explanations[0].image, side)
    return {
        "name": name,
        "path": str(image.path or ""),
        "verdict": image.verdict,
        "largest": number(max((m.largest for m in image.measures.values()), default=math.nan)),
        "same_class": all(m.same_class for m in image.measures.values()),
        "is_open": is_open,
        "image": embedded,
        "panes": [
            {
                "letter": letters[k],
                "model": comparison.names[k],
                "uri": thumbnails.heat(e.drawn_heatmap, side=side),
                "alt": f"Heatmap of {letters[k]}, {comparison.names[k]}, on {name}: {strongest(e)}",
                "explained": e.label,
                "notes": e.notes,
                "zero": not bool(e.positive.any()),
                "predictions": predictions(e),
            }
            for k, e in enumerate(image.explanations)
        ],
        "differences": [
            {
                "letters": _pair(letters, (a, b)),
                "uri": thumbnails.heat(
                    difference(image.explanations[a], image.explanations[b]) / np.float32(brightest),
                    thumbnails.DIFFERENCE,
                    side,
                ),
                "alt": f"Where {letters[a]} and {letters[b]} differ on {name}: {number(m.largest)} at most",
                "largest": number(m.largest),
            }
            for (a, b), m in image.measures.items()
        ],
        "measured": [
            {"letters": _pair(letters, pair), "verdict": m.verdict, "cells": sentences.cells(m)}
            for pair, m in image.measures.items()
        ],
    }


def _first_difference(comparison: ComparisonData, letters: Sequence[str]) -> dict[str, str] | None:
    divergence = comparison.divergence
    if divergence is None or divergence.index is None:
        return None
    step = divergence.steps[divergence.index]
    before = divergence.steps[divergence.index - 1].error if divergence.index else None
    return {
        "layer": step.second,
        "letter": letters[divergence.pair[1]],
        "other": step.first,
        "first": letters[divergence.pair[0]],
        "error": number(step.error),
        "before": "" if before is None else number(before),
        "added": _optional(step.added),
        "expected": _optional(step.expected) if divergence.tolerance is not None else "",
        "cause": "" if divergence.cause is None else divergence.cause.text,
        "evidence": "" if divergence.cause is None else divergence.cause.evidence,
        "remedy": "" if divergence.cause is None else divergence.cause.remedy,
    }


def _optional(value: float | None) -> str:
    return "" if value is None else number(value)


def _even(comparison: ComparisonData) -> str:
    """Return how two models differ of which one has a reduced precision, where no layer stands out."""
    causes = [d.cause for d in comparison.divergences if d.index is None and d.cause and d.tolerance is not None]
    return causes[0].text if causes and len(comparison.names) == 2 else ""


def _divergence(comparison: ComparisonData, divergence: Divergence, letters: Sequence[str]) -> dict[str, Any]:
    steps, index, layer = divergence.steps, divergence.index, divergence.layer or ""
    tolerance = divergence.tolerance
    names = [step.second if step.first == step.second else f"{step.first} ↔ {step.second}" for step in steps]
    # In a model of reduced precision: the own errors, of the layers that have one.
    shown = [k for k, step in enumerate(steps) if tolerance is None or (step.expected or 0) > ROUNDING or k == index]
    errors = [steps[k].error if tolerance is None else steps[k].added or 0.0 for k in shown]
    ends = [(steps[k].expected or 0.0) for k in shown]
    band = [] if tolerance is None else [(end / tolerance, end * tolerance) for end in ends]
    marked = None if index is None else shown.index(index)
    kind, mark = ("error", "first that differs") if tolerance is None else ("own error", "stands out")
    texts = [
        f"{k + 1} of {len(steps)}, {names[k]}: {kind} {number(error)}"
        + ("" if tolerance is None else f", expected {number(end)}")
        + (f" ({mark})" if k == index else "")
        for k, error, end in zip(shown, errors, ends, strict=True)
    ]
    if tolerance is None:
        explanation = (
            "The largest difference of the activations of two models at each layer, relative to their largest magnitude, on a "
            "logarithmic scale."
        )
        readout = (
            "The marked layer is the first that differs." if layer else "The difference is rounding at every layer."
        )
        description = f"Relative error of the activations along {count(len(shown), 'corresponding layer')}"
    else:
        explanation = (
            "The error that each layer adds, computed from the exact values ahead of it: root of the mean square, relative to "
            f"the largest magnitude, on a logarithmic scale. The band shows the expected error, up to {number(tolerance)} "
            "times larger or smaller."
        )
        readout = "The marked layer stands out." if layer else "The precision explains the error of every layer."
        description = f"Own error of {count(len(shown), 'corresponding layer')}, with the expected error as a band"
    description += (
        f", from input to output, on a logarithmic scale, from {number(min(errors))} to {number(max(errors))}."
    )
    verb = "It jumps" if tolerance is None else "It stands out"
    return {
        "letters": _pair(letters, divergence.pair),
        "names": _pair(comparison.names, divergence.pair),
        "layer": divergence.layer,
        "cause": "" if divergence.cause is None else divergence.cause.text,
        "evidence": "" if divergence.cause is None else divergence.cause.evidence,
        "remedy": "" if divergence.cause is None else divergence.cause.remedy,
        "notes": divergence.notes,
        "is_reduced": tolerance is not None,
        "explanation": explanation,
        "readout": readout,
        "description": description + (f" {verb} at {layer}." if layer else ""),
        "charts": (
            ("wide", chart(errors, texts, marked, layer, band=band)),
            ("narrow", chart(errors, texts, marked, layer, 360, 260, band)),
        ),
        "steps": [
            {
                "first": s.first,
                "second": s.second,
                "error": number(s.error),
                "added": _optional(s.added),
                "expected": _optional(s.expected),
                "is_first": k == index,
            }
            for k, s in enumerate(steps)
        ],
    }
