"""The demo network in Keras: its classes, and maps that point at the right one of two shapes."""

from __future__ import annotations

import numpy as np
import pytest

import xcam
from ground_truth import hits, scenes_with_two
from xcam.models import demo


@pytest.fixture(scope="module")
def model() -> xcam.Model:
    return xcam.load("demo", "keras")


def test_the_shipped_images_are_classified_correctly(model: xcam.Model) -> None:
    assert len(demo.image_paths()) >= 6
    for path in demo.image_paths():
        e = xcam.explain(model, path)
        assert e.label == path.stem.split("-")[-1]
        assert e.scores[e.index] > 0.5


@pytest.mark.slow
def test_the_peak_is_on_its_own_shape_except_for_random_maps(model: xcam.Model) -> None:
    scenes = scenes_with_two(200)
    share = {method: hits(model, scenes, method) for method in ("gradcam", "hirescam", "layercam", "random")}
    print("share of peaks on their own shape:", share)
    assert share["gradcam"] >= 0.95
    assert share["hirescam"] >= 0.95
    assert share["layercam"] >= 0.95
    assert share["random"] < 0.5


def test_the_weights_are_small() -> None:
    from importlib import resources

    size = len(resources.files("xcam.models.demo").joinpath(demo.WEIGHTS).read_bytes())
    assert size < 700_000
    kernel, bias = demo.network().weights["conv5"]
    assert (kernel.shape, bias.shape, kernel.dtype) == ((64, 64, 3, 3), (64,), np.float32)
