"""Compute the tables of the explanation pages: `python docs/make_figures.py`, about a quarter of an hour.

peaks.csv: how often the maximum of a map is on the target shape, in scenes that were not used for training and whose
truth is known. logits.csv: gradients of logits and of probabilities. The methods have their default options.
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
"""A seed that was not used for training; tests/helpers/ground_truth.py uses the same scenes."""
SCENES = 20
LAYERS = ("conv5", "conv4", "conv3")
DEEPEST_ALONE = ("scorecam", "sscam", "iscam")
"""They run the network once for each channel or more: another layer takes minutes."""


def scenes_with_two(count: int = SCENES) -> list[scenes.Scene]:
    """Return scenes with two shapes of different classes."""
    rng = np.random.default_rng(HELD_OUT)
    return [scenes.scene(rng, rng.permutation(len(CLASSES))[:2].tolist()) for _ in range(count)]


def peaks(model: xcam.Model, samples: Sequence[scenes.Scene], method: str, layer: str) -> tuple[float, float]:
    """Return the share of maps, one for each shape, whose maximum is on that shape, and on any shape of the scene."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", xcam.ZeroHeatmapWarning)  # a map of zeros counts as a miss
        explanations = xcam.explain(
            model,
            [s.image for s in samples],
            layer=layer,
            target=[[shape.label for shape in s.shapes] for s in samples],
            method=method,
        )
    on_target, on_any = [], []
    for scene, row in zip(samples, explanations, strict=True):
        for shape, e in zip(scene.shapes, row, strict=True):
            index = e.heatmap.argmax()
            hits = [bool(e.heatmap.max() > 0 and other.mask.flat[index]) for other in scene.shapes]
            on_target.append(bool(e.heatmap.max() > 0 and shape.mask.flat[index]))
            on_any.append(any(hits))
    return float(np.mean(on_target)), float(np.mean(on_any))


def peak_row(model: xcam.Model, method: str) -> list[str]:
    """Return a row of peaks.csv."""
    samples = scenes_with_two()
    layers = LAYERS[:1] if method in DEEPEST_ALONE else LAYERS
    shares = [peaks(model, samples, method, layer) for layer in layers]
    rest = [f"{on_target:.3f}" for on_target, _ in shares[1:]] or ["–"] * (len(LAYERS) - 1)
    return [f"`{method}`", f"{shares[0][0]:.3f}", f"{shares[0][1]:.3f}", *rest]


def logit_rows(model: xcam.Model) -> list[list[str]]:
    """Return the rows of logits.csv: the raw maps of each score, for a certain, an uncertain and an absent class."""
    certain, uncertain = demo.image_paths()[3], scenes_with_two()[18].image
    rows = []
    for description, image, label in (
        ("one star", certain, "star"),
        ("a ring and a star", uncertain, "ring"),
        ("a ring and a star", uncertain, "star"),
        ("one star", certain, "triangle"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", xcam.ZeroHeatmapWarning)
            logit, p, log = (
                xcam.explain(model, image, layer="conv5", target=label, score=score)
                for score in ("logit", "probability", "log-probability")
            )
        probability = float(p.scores[p.index])
        sizes = [f"{np.abs(e.cam).max():.4f}" for e in (logit, p, log)]
        similarity = np.corrcoef(logit.cam.ravel(), p.cam.ravel())[0, 1]
        rows.append(
            [
                description,
                label,
                f"{probability:.4f}",
                f"{probability * (1 - probability):.4f}",
                *sizes,
                f"{similarity:.2f}",
            ]
        )
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
    "image",
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
