"""Scenes whose truth is known: does the map for each class point at its own shape?"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

import xcam
from xcam.models.demo import CLASSES, scenes

HELD_OUT = 77_000
"""A seed that training never used."""


def scenes_with_two(count: int) -> list[scenes.Scene]:
    """`count` scenes with two shapes of different classes each."""
    rng = np.random.default_rng(HELD_OUT)
    return [scenes.scene(rng, rng.permutation(len(CLASSES))[:2].tolist()) for _ in range(count)]


def hits(model: xcam.Model, made: list[scenes.Scene], method: str, **options: Any) -> float:
    """The share of (scene, class) pairs whose heatmap has its maximum within the outline of that class's shape."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", xcam.ZeroHeatmapWarning)  # a zero map is counted as a miss below
        found = xcam.explain(
            model,
            [scene.image for scene in made],
            target=[[s.label for s in scene.shapes] for scene in made],
            method=method,
            method_options=options,
        )
    right = [
        bool(e.heatmap.max() > 0 and shape.mask.flat[e.heatmap.argmax()])
        for scene, row in zip(made, found, strict=True)
        for shape, e in zip(scene.shapes, row, strict=True)
    ]
    return float(np.mean(right))
