"""Scenes with known shapes: does the map for each class point at its own shape?"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

import xcam
from xcam.models.demo import CLASSES, scenes

HELD_OUT = 77_000
"""A seed that training did not use."""


def scenes_with_two(count: int) -> list[scenes.Scene]:
    """Return `count` scenes with two shapes of different classes each."""
    rng = np.random.default_rng(HELD_OUT)
    return [scenes.scene(rng, rng.permutation(len(CLASSES))[:2].tolist()) for _ in range(count)]


def hits(
    model: xcam.Model, images: list[scenes.Scene], method: str, layer: str | None = None, **options: Any
) -> float:
    """Return the share of (scene, class) pairs whose heatmap has its maximum within the outline of that class's shape."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", xcam.ZeroHeatmapWarning)  # an all-zero map counts as a miss below
        explanations = xcam.explain(
            model,
            [scene.image for scene in images],
            layer=layer,
            target=[[s.label for s in scene.shapes] for scene in images],
            method=method,
            method_options=options,
        )
    right = [
        bool(e.heatmap.max() > 0 and shape.mask.flat[e.heatmap.argmax()])
        for scene, row in zip(images, explanations, strict=True)
        for shape, e in zip(scene.shapes, row, strict=True)
    ]
    return float(np.mean(right))
