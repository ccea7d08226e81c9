"""The report of a blame: the content of its template, which computes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xcam.comparison.blame import sentences
from xcam.comparison.blame.data import BlameData, Contribution, usable
from xcam.comparison.blame.sentences import mean, share, spread
from xcam.comparison.sentences import SIGNS
from xcam.explanation.page import image_names
from xcam.report import rendering, thumbnails
from xcam.report.bars import bars
from xcam.report.formatting import NONE, count, number


def write(blame: BlameData, path: Path) -> None:
    """Write the report. Raises InputError where it cannot be written, BackendError without Jinja2."""
    rendering.write(rendering.check_path(path), "blame.html", content(blame))


def content(blame: BlameData) -> dict[str, Any]:
    """Return the content of blame.html."""
    return {
        "verdict": blame.verdict,
        "sign": SIGNS[blame.verdict],
        "headline": sentences.headline(blame),
        "sentences": sentences.sentences(blame),
        "models": list(zip("AB", blame.names, blame.layers, strict=True)),
        "method": blame.method,
        "findings": blame.findings,
        "notes": blame.notes,
        "failed": [(path, error.removeprefix(path).lstrip(": ")) for path, error in blame.failed],
        "heat": thumbnails.stops(thumbnails.HEAT),
        "cards": _cards(blame),
        "more": len(blame.images) - len(_shown(blame)),
        "blame": section(blame),
    }


def section(blame: BlameData, letters: tuple[str, str] = ("A", "B")) -> dict[str, Any]:
    """Return the content of the part of a page that shows the contributions, with short names of both models."""
    locations = blame.stretches
    texts = [_text(blame, c, k) for k, c in enumerate(locations)]
    shares = {
        "scores": [
            c.scores.mean / blame.scores.mean if share(c.scores, blame.scores) != NONE else float("nan")
            for c in locations
        ],
        "heatmap": [
            c.heatmap.mean / blame.heatmap.mean if share(c.heatmap, blame.heatmap) != NONE else float("nan")
            for c in locations
        ],
    }
    marked = [c.named for c in locations]
    return {
        "letters": letters,
        "sentences": sentences.sentences(blame),
        "scores": number(blame.scores.mean),
        "in_first": blame.in_first,
        "heatmap": number(blame.heatmap.mean),
        "behind": share(blame.heatmap_behind, blame.heatmap),
        "is_fast": blame.is_fast,
        "has_causes": blame.has_causes,
        "is_usable": any(usable(whole, whole) for whole in (blame.scores, blame.heatmap)),
        "level": f"{blame.level:.0%}",
        "named": [_named(blame, c) for c in blame.named],
        "rows": [row for c in blame.ranked for row in _rows(blame, c, 0)],
        "count": count(len(locations), "stretch", "stretches"),
        "readout": "Marked locations have errors of their own." if any(marked) else "No location is marked.",
        "description": f"Contribution of {count(len(locations), 'stretch', 'stretches')}, from input to output.",
        "charts": (
            ("wide", bars(shares, texts, marked)),
            ("narrow", bars(shares, texts, marked, 360, 240)),
        ),
        "has_reverse": any(share(c.reverse_scores, blame.scores) != NONE for c in locations),
        "has_spread": any(spread(c.scores, blame.scores) for c in locations),
    }


def _named(blame: BlameData, c: Contribution) -> dict[str, Any]:
    return {
        "first": c.first,
        "second": c.second,
        "start": c.start,
        "error": mean(c.error),
        "scores": share(c.scores, blame.scores),
        "heatmap": share(c.heatmap, blame.heatmap),
        "cause": "" if c.cause is None else c.cause.text,
        "evidence": "" if c.cause is None else c.cause.evidence,
        "remedy": "" if c.cause is None else c.cause.remedy,
        "notes": c.notes,
    }


def _rows(blame: BlameData, c: Contribution, depth: int) -> Iterator[dict[str, Any]]:
    yield {
        "depth": depth,
        "start": c.start,
        "first": c.first,
        "second": c.second,
        "scores": share(c.scores, blame.scores),
        "scores_spread": spread(c.scores, blame.scores),
        "heatmap": share(c.heatmap, blame.heatmap),
        "heatmap_spread": spread(c.heatmap, blame.heatmap),
        "reverse": _reverse(blame, c),
        "error": mean(c.error),
        "named": c.named,
        "interacts": c.interacts,
        "cause": "" if c.cause is None else c.cause.text,
    }
    for part in c.inner:
        yield from _rows(blame, part, depth + 1)


def _reverse(blame: BlameData, c: Contribution) -> str:
    both = share(c.reverse_scores, blame.scores), share(c.reverse_heatmap, blame.heatmap)
    return "" if both == (NONE, NONE) else ", ".join(both)


def _text(blame: BlameData, c: Contribution, k: int) -> str:
    kind = "estimated contribution" if c.is_estimate else "contribution"
    text = f"{k + 1} of {len(blame.stretches)}, {c.start} → {c.second}: {kind} {share(c.scores, blame.scores)} to the class scores"
    if share(c.heatmap, blame.heatmap) != NONE:
        text += f", {share(c.heatmap, blame.heatmap)} to the heatmap"
    return text + (f", local error {mean(c.error)}" if not c.is_estimate else "") + (" (named)" if c.named else "")


def _shown(blame: BlameData) -> list[int]:
    return [k for k, image in enumerate(blame.images) if image.image is not None]


def _cards(blame: BlameData) -> list[dict[str, Any]]:
    names = image_names([Path(image.name) for image in blame.images])
    return [
        {
            "name": names[k],
            "verdict": image.verdict,
            "sign": SIGNS[image.verdict],
            "label": image.label,
            "scores": number(image.scores),
            "heatmap": number(image.heatmap),
            "image": thumbnails.embed(image.image),
            "maps": [
                (letter, name, thumbnails.heat(heatmap), f"Heatmap of {letter}, {name}, on {names[k]}")
                for letter, name, heatmap in zip("AB", blame.names, image.maps, strict=True)
            ],
        }
        for k in _shown(blame)
        for image in [blame.images[k]]
        if image.image is not None
    ]


def fragment(blame: BlameData) -> str:
    """Return the summary and the table as HTML, for a notebook."""
    return rendering.render_part(
        "blame_table.html", {"blame": section(blame), "sentences": sentences.sentences(blame)}
    )
