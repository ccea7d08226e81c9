"""The error along the aligned layers of two models, as the coordinates of a drawing on a logarithmic scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

from xcam.comparison import sentences
from xcam.comparison.result import Divergence

FLOOR = 1e-9
"""Errors below are drawn on the ground line: a logarithm knows no zero."""

PRECISION = -7
"""The power of ten at which float32 ends: the ground line is there or below it, where a layer has no error at all."""


@dataclass(frozen=True)
class Dot:
    """One layer."""

    x: float
    y: float
    text: str
    kind: str
    """`culprit`, `after` it, or `before` it (or where there is none)."""


@dataclass(frozen=True)
class Tick:
    """A line of the scale."""

    y: float
    text: str


@dataclass(frozen=True)
class Chart:
    """What the template draws, in units of its view box."""

    width: int
    height: int
    left: int
    right: float
    top: int
    bottom: int
    path: str
    dots: tuple[Dot, ...]
    ticks: tuple[Tick, ...]
    culprit: Dot | None
    mark: str
    """The culprit's name, short enough to be drawn."""
    anchor: str
    name: str
    """For a screen reader."""

    @property
    def mark_x(self) -> float:
        """Where the culprit's name starts, or ends."""
        if self.culprit is None:
            return 0
        return self.culprit.x + (8 if self.anchor == "start" else -8)


def chart(divergence: Divergence, width: int = 880, height: int = 280) -> Chart:
    """Lay out one divergence in a box of `width` × `height`. It must have steps."""
    left, top, right, bottom = 52, 34, width - 14, height - 36
    errors = [step.error for step in divergence.steps]
    usable = [e for e in errors if math.isfinite(e) and e >= FLOOR]
    low = math.floor(math.log10(min(usable))) if usable else -9
    if any(e < FLOOR for e in errors):  # what is below all lines must not look like an error worth mentioning
        low = min(low, PRECISION)
    high = math.ceil(math.log10(max(usable))) if usable else 0
    high = max(high, low + 3)
    n = len(errors)

    def across(k: int) -> float:
        return round(left + 12 + (right - left - 24) * (k / (n - 1) if n > 1 else 0.5), 1)

    def down(error: float) -> float:
        if math.isnan(error) or error == math.inf:
            return top
        power = math.log10(error) if error > 0 else -math.inf
        return round(bottom - (bottom - top) * min(max((power - low) / (high - low), 0), 1), 1)

    culprit = divergence.culprit
    dots = []
    for k, step in enumerate(divergence.steps):
        names = step.second if step.first == step.second else f"{step.first} ↔ {step.second}"
        kind = "before" if culprit is None or k < culprit else "culprit" if k == culprit else "after"
        said = f"{names}: error {sentences.number(step.error)}" + (
            " (first that differs)" if kind == "culprit" else ""
        )
        dots.append(Dot(across(k), down(step.error), f"{k + 1} of {n}, {said}", kind))
    every = max(1, math.ceil((high - low) / 8))
    ticks = tuple(Tick(down(10.0**p), _decade(p)) for p in range(low, high + 1, every))
    marked = None if culprit is None else dots[culprit]
    start = marked is not None and marked.x < (left + right) / 2
    name = (
        f"Relative error of the activations along {sentences.count(n, 'aligned layer')}, from input to output, on a "
        f"logarithmic scale, from {sentences.number(min(errors))} to {sentences.number(max(errors))}."
    )
    if divergence.layer is not None:
        name += f" It jumps at {divergence.layer}."
    return Chart(
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        path="M" + "L".join(f"{d.x} {d.y}" for d in dots),
        dots=tuple(dots),
        ticks=ticks,
        culprit=marked,
        mark="" if divergence.layer is None else sentences.shorter(divergence.layer, width // 22),
        anchor="start" if start else "end",
        name=name,
    )


def _decade(power: int) -> str:
    if power >= -2:
        return f"{10.0**power:g}"
    return f"10{str(power).translate(sentences.RAISED)}"
