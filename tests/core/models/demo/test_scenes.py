"""Scenes: reproducible, with masks where the shapes are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from xcam.images import reading
from xcam.models import demo
from xcam.models.demo import draw
from xcam.models.demo.scenes import CLASSES, scene


def test_the_shipped_images_are_drawn_again(tmp_path: Path) -> None:
    draw.main(tmp_path)
    assert [path.name for path in demo.image_paths()] == sorted(path.name for path in tmp_path.iterdir())
    for path in demo.image_paths():
        difference = reading.read(path).astype(int) - reading.read(tmp_path / path.name)
        assert np.abs(difference).mean() < 1  # rounding of interpolation depends on the processor


def test_masks_cover_the_shapes_and_do_not_overlap() -> None:
    result = scene(np.random.default_rng(3), [0, 5], 128)
    assert [CLASSES[shape.label] for shape in result.shapes] == ["disc", "ring"]
    disc, ring = (shape.mask for shape in result.shapes)
    assert not (disc & ring).any()
    for mask in (disc, ring):
        rows, _ = np.nonzero(mask)
        radius = np.ptp(rows) / 2
        assert 0.11 * 128 < radius < 0.21 * 128
        np.testing.assert_allclose(mask.sum(), np.pi * radius**2, rtol=0.1)  # the hole of a ring is included
    inside, around = result.image[disc].mean(axis=0), result.image[~disc].mean(axis=0)
    assert np.abs(inside - around).mean() > 20
