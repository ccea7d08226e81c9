"""The demo detector: its boxes are those of the shapes, and the map of a box peaks in it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

import xcam
from ground_truth import scenes_with_two
from xcam.models.demo.scenes import Scene

SCENES = scenes_with_two(12)


def bounds(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Return x0, y0, x1, y1 of a shape in pixels of the detector's input."""
    rows, columns = np.nonzero(mask)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def within(region: tuple[float, ...], heatmap: np.ndarray) -> bool:
    """Return whether the maximum of a map is within a region."""
    y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
    return bool(heatmap.max() > 0 and region[0] <= x < region[2] and region[1] <= y < region[3])


def hits(model: Any, method: str, scenes: list[Scene]) -> float:
    """Return the share of shapes for which the map of the class's best box has its maximum within that box."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", xcam.ZeroHeatmapWarning)
        rows = xcam.explain(
            model,
            [scene.image for scene in scenes],
            target=[[shape.label for shape in scene.shapes] for scene in scenes],
            method=method,
        )
    explained = [(e, next(box for box in e.boxes if box.explained)) for row in rows for e in row]
    return float(np.mean([within(box.box, e.heatmap) for e, box in explained]))


def test_the_best_boxes_are_those_of_the_shapes() -> None:
    model = xcam.load("demo-detector", "onnx")
    x = np.stack([scene.image for scene in SCENES]).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    overlaps = []
    for scene, numbers in zip(SCENES, np.asarray(model.predict(x)), strict=True):
        for shape in scene.shapes:
            cx, cy, w, h = numbers[:4, numbers[4 + shape.label].argmax()]
            x0, y0, x1, y1 = bounds(shape.mask)
            width = max(0, min(x1, cx + w / 2) - max(x0, cx - w / 2))
            height = max(0, min(y1, cy + h / 2) - max(y0, cy - h / 2))
            overlaps.append(width * height / (w * h + (x1 - x0) * (y1 - y0) - width * height))
    assert np.mean(np.array(overlaps) > 0.5) > 0.9


def test_the_map_of_a_box_peaks_in_it() -> None:
    """A random map of the last step peaks on either of the two shapes."""
    model = xcam.load("demo-detector", "onnx")
    assert hits(model, "gradcam", SCENES) > 0.9
    assert hits(model, "random", SCENES) < 0.75
