"""What the templates are given: plain values and names, nothing that has to be computed there."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xcam.comparison import sentences
from xcam.comparison.chart import chart
from xcam.comparison.result import Comparison, Divergence, ImageComparison
from xcam.explanation.grid import distinct
from xcam.explanation.result import Explanation
from xcam.report import thumbnails

OPEN = 3
"""Up to so many pictures are all unfolded; of more, the worst one is."""
TINY = 96
"""A photo with a shorter longer side is drawn with hard pixels: blurred, nobody would know what it is."""


def comparison_page(comparison: Comparison) -> dict[str, Any]:
    """The content of comparison.html."""
    letters = [letter(k) for k in range(len(comparison.names))]
    names = _names([image.path for image in comparison.images])
    shown = [k for k, image in enumerate(comparison.images) if image.explanations]
    order = sorted(shown, key=lambda k: comparison.images[k].badness, reverse=True)
    top = _scale(comparison)
    side = thumbnails.side_for(len(order))
    cards = [
        _card(comparison, comparison.images[k], names[k], letters, top, side, opened=not n or len(order) <= OPEN)
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
        "culprit": _culprit(comparison, letters),
        "divergences": [
            _divergence(comparison, d, letters)
            for d in sorted(comparison.divergences, key=lambda d: d.culprit is None)
            if d.steps
        ],
        "findings": comparison.findings,
        "failed": [(path, why.removeprefix(path).lstrip(": ")) for path, why in comparison.failed],
        "notes": comparison.notes,
        "cards": cards,
        "more": len(comparison.images) - len(cards),
        "columns": ("two", "three", "four")[min(max(len(letters), 1), 3) - 1],
        "heat": thumbnails.stops(thumbnails.HEAT),
        "difference": thumbnails.stops(thumbnails.DIFFERENCE),
        "top": sentences.number(top),
        "measures": sentences.MEASURES,
    }


def single_page(explanations: Sequence[Explanation]) -> dict[str, Any]:
    """The content of single.html: a group for each picture, in the order in which they were given."""
    groups: dict[Any, list[Explanation]] = {}
    for e in explanations:
        groups.setdefault(e.path if e.path is not None else id(e.image), []).append(e)
    names = _names([group[0].path for group in groups.values()])
    side = thumbnails.side_for(len(groups))
    models = list(dict.fromkeys(e.model for e in explanations))
    return {
        "title": f"Where {models[0]} looked" if len(models) == 1 else f"Where {len(models)} models looked",
        "count": sentences.count(len(groups), "picture"),
        "methods": list(dict.fromkeys(e.method for e in explanations)),
        "heat": thumbnails.stops(thumbnails.HEAT),
        "groups": [
            {
                "name": name,
                "path": str(group[0].path or ""),
                "photo": (shown := thumbnails.photo(group[0].image, side)),
                "tiny": max(shown.width, shown.height) < TINY,
                "panes": [
                    {
                        "caption": caption,
                        "uri": thumbnails.heat(thumbnails.heatmap(e), side=side),
                        "alt": f"Heatmap on {name}: {_where(e)}",
                        "facts": _facts(e),
                        "notes": e.notes,
                        "zero": not bool(e.positive.any()),
                        "predictions": _predictions(e),
                    }
                    for e, caption in zip(group, distinct(group), strict=True)
                ],
            }
            for name, group in zip(names, groups.values(), strict=True)
        ],
    }


def letter(k: int) -> str:
    """A, B, … Z, AA, AB, …: what a model is called where its name is too long."""
    return (letter(k // 26 - 1) if k >= 26 else "") + chr(ord("A") + k % 26)


def _pair(names: Sequence[str], pair: tuple[int, int]) -> tuple[str, str]:
    return names[pair[0]], names[pair[1]]


def _names(paths: Sequence[Path | None]) -> list[str]:
    """File names; whole paths where two files have the same name; numbers where there is no file."""
    often = Counter(path.name for path in paths if path is not None)
    return [
        f"Picture {k + 1}" if path is None else path.name if often[path.name] == 1 else str(path)
        for k, path in enumerate(paths)
    ]


def _scale(comparison: Comparison) -> float:
    """What the brightest colour of every difference map stands for: one scale, so that pictures can be compared.

    At least 0.05: stretched to the whole scale, mere rounding would look like an alarm.
    """
    found = [m.largest for image in comparison.images for m in image.measures.values() if math.isfinite(m.largest)]
    return next((s for s in (0.05, 0.1, 0.2, 0.5) if max(found, default=0.0) <= s), 1.0)


def _card(
    comparison: Comparison,
    image: ImageComparison,
    name: str,
    letters: Sequence[str],
    top: float,
    side: int,
    opened: bool,
) -> dict[str, Any]:
    """One picture."""
    shown = thumbnails.photo(image.explanations[0].image, side)
    largest = [m.largest for m in image.measures.values()]
    return {
        "name": name,
        "path": str(image.path or ""),
        "verdict": image.verdict,
        "largest": sentences.number(max(largest, default=math.nan)),
        "same_class": all(m.same_class for m in image.measures.values()),
        "opened": opened,
        "photo": shown,
        "tiny": max(shown.width, shown.height) < TINY,
        "panes": [
            {
                "letter": letters[k],
                "model": comparison.names[k],
                "uri": thumbnails.heat(thumbnails.heatmap(e), side=side),
                "alt": f"Heatmap of {letters[k]}, {comparison.names[k]}, on {name}: {_where(e)}",
                "explained": e.label,
                "notes": e.notes,
                "zero": not bool(e.positive.any()),
                "predictions": _predictions(e),
            }
            for k, e in enumerate(image.explanations)
        ],
        "differences": [
            {
                "letters": _pair(letters, (a, b)),
                "uri": thumbnails.heat(
                    thumbnails.difference(image.explanations[a], image.explanations[b]) / np.float32(top),
                    thumbnails.DIFFERENCE,
                    side,
                ),
                "alt": f"Where {letters[a]} and {letters[b]} differ on {name}: {sentences.number(m.largest)} at most",
                "largest": sentences.number(m.largest),
            }
            for (a, b), m in image.measures.items()
        ],
        "measured": [
            {"letters": _pair(letters, pair), "verdict": m.verdict, "cells": sentences.measures(m)}
            for pair, m in image.measures.items()
        ],
    }


def _where(explanation: Explanation) -> str:
    """In words, where a heatmap is strongest."""
    values = thumbnails.heatmap(explanation)
    if not values.any():
        return f"nothing speaks for {explanation.label}"
    y, x = np.unravel_index(int(np.argmax(values)), values.shape)
    height, width = values.shape
    return f"for {explanation.label}, strongest {(x + 0.5) / width:.0%} from the left, {(y + 0.5) / height:.0%} from the top"


def _predictions(explanation: Explanation) -> list[dict[str, Any]]:
    """The three best classes, and the one that was explained where it is none of them."""
    scores = explanation.scores
    shown = explanation.top(3)
    if explanation.index is not None and shown and explanation.index not in shown:
        shown.append(explanation.index)
    likely = bool(scores.size) and float(scores.min()) >= 0 and float(scores.max()) <= 1.0001
    out = []
    for index in shown:
        value = float(scores[index])
        names = explanation.labels or ()
        label = names[index] if index < len(names) else str(index)
        label = explanation.label if index == explanation.index else label
        out.append(
            {
                "label": f"class {index}" if label == str(index) else label,
                "value": sentences.share(value) if likely else sentences.number(value),
                "width": f"{100 * min(value, 1):.4g}" if likely else None,
                "explained": index == explanation.index,
            }
        )
    return out


def _facts(e: Explanation) -> list[tuple[str, str]]:
    kind = "Class" if e.index is not None else "Target"
    return [
        (kind, e.label),
        ("Score", sentences.number(e.score)),
        ("Method", e.method),
        ("Layer", e.layer),
        ("Map", "×".join(str(n) for n in e.cam.shape)),
        ("Model", f"{e.model} ({e.backend})"),
    ]


def _culprit(comparison: Comparison, letters: Sequence[str]) -> dict[str, str] | None:
    found = comparison.divergence
    if found is None or found.culprit is None:
        return None
    step = found.steps[found.culprit]
    before = found.steps[found.culprit - 1].error if found.culprit else None
    return {
        "layer": step.second,
        "letter": letters[found.pair[1]],
        "other": step.first,
        "first": letters[found.pair[0]],
        "error": sentences.number(step.error),
        "before": "" if before is None else sentences.number(before),
        "cause": found.cause,
    }


def _divergence(comparison: Comparison, divergence: Divergence, letters: Sequence[str]) -> dict[str, Any]:
    return {
        "letters": _pair(letters, divergence.pair),
        "names": _pair(comparison.names, divergence.pair),
        "layer": divergence.layer,
        "cause": divergence.cause,
        "charts": (("wide", chart(divergence)), ("narrow", chart(divergence, 360, 260))),
        "steps": [
            {
                "first": s.first,
                "second": s.second,
                "error": sentences.number(s.error),
                "culprit": k == divergence.culprit,
            }
            for k, s in enumerate(divergence.steps)
        ],
    }
