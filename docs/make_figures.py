"""Work out the figures of the explanation pages: `python docs/make_figures.py`, about a quarter of an hour.

peaks.csv counts, over scenes that training never saw and whose truth is known, how often a map's highest place lies on
the shape that was asked for. logits.csv sets gradients of logits beside those of probabilities. Options are the
methods' defaults.
"""

from __future__ import annotations

import csv
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

import xcam
from xcam.models import demo
from xcam.models.demo import CLASSES, scenes

FOLDER = Path(__file__).parent / "explanation"
HELD_OUT = 77_000
"""A seed that training never used; tests/helpers/ground_truth.py draws the same scenes."""
SCENES = 20
LAYERS = ("conv5", "conv4", "conv3")
DEEPEST_ALONE = ("scorecam", "sscam", "iscam")
"""They run the whole network for each channel: minutes for each further layer."""


def scenes_with_two(count: int = SCENES) -> list[scenes.Scene]:
    """Scenes with two shapes of different classes each."""
    rng = np.random.default_rng(HELD_OUT)
    return [scenes.scene(rng, rng.permutation(len(CLASSES))[:2].tolist()) for _ in range(count)]


def peaks(model: xcam.Model, made: Sequence[scenes.Scene], method: str, layer: str) -> tuple[float, float]:
    """The share of maps, one for each shape, with their highest place on that shape; and on any shape of the scene."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", xcam.ZeroHeatmapWarning)  # a zero map points nowhere, and counts as a miss
        found = xcam.explain(
            model,
            [s.image for s in made],
            layer=layer,
            target=[[shape.label for shape in s.shapes] for s in made],
            method=method,
        )
    own, some = [], []
    for scene, row in zip(made, found, strict=True):
        for shape, e in zip(scene.shapes, row, strict=True):
            at = e.heatmap.argmax()
            hit = [bool(e.heatmap.max() > 0 and other.mask.flat[at]) for other in scene.shapes]
            own.append(bool(e.heatmap.max() > 0 and shape.mask.flat[at]))
            some.append(any(hit))
    return float(np.mean(own)), float(np.mean(some))


def peak_row(model: xcam.Model, method: str) -> list[str]:
    """A row of peaks.csv."""
    made = scenes_with_two()
    layers = LAYERS[:1] if method in DEEPEST_ALONE else LAYERS
    shares = [peaks(model, made, method, layer) for layer in layers]
    rest = [f"{own:.3f}" for own, _ in shares[1:]] or ["–"] * (len(LAYERS) - 1)
    return [f"`{method}`", f"{shares[0][0]:.3f}", f"{shares[0][1]:.3f}", *rest]


def logit_rows(model: xcam.Model) -> list[list[str]]:
    """The rows of logits.csv: for a sure, a divided and an absent class, what each score's raw map looks like."""
    sure, divided = demo.image_paths()[3], scenes_with_two()[18].image
    rows = []
    for what, image, label in (
        ("one star", sure, "star"),
        ("a ring and a star", divided, "ring"),
        ("a ring and a star", divided, "star"),
        ("one star", sure, "triangle"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", xcam.ZeroHeatmapWarning)
            logit, p, log = (
                xcam.explain(model, image, layer="conv5", target=label, score=score)
                for score in ("logit", "probability", "log-probability")
            )
        chance = float(p.scores[p.index])
        sizes = [f"{np.abs(e.cam).max():.4f}" for e in (logit, p, log)]
        alike = np.corrcoef(logit.cam.ravel(), p.cam.ravel())[0, 1]
        rows.append([what, label, f"{chance:.4f}", f"{chance * (1 - chance):.4f}", *sizes, f"{alike:.2f}"])
    return rows


def write(path: Path, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([headings, *rows])


PEAKS = (
    "method",
    "conv5: the shape asked for",
    "conv5: either shape",
    "conv4: the shape asked for",
    "conv3: the shape asked for",
)
LOGITS = (
    "picture",
    "class",
    "p",
    "p(1 − p)",
    "largest value of the raw map: logit",
    "probability",
    "log-probability",
    "correlation, logit with probability",
)


def main(folder: Path = FOLDER) -> None:
    model = xcam.load("demo", "onnx")
    write(folder / "logits.csv", LOGITS, logit_rows(model))
    write(folder / "peaks.csv", PEAKS, [peak_row(model, method) for method in xcam.list_methods()])


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
