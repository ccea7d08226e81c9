"""All methods in all frameworks: the same maps for images of any shape, alone and in a batch, at the right position."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

import xcam
from ground_truth import hits, scenes_with_two
from xcam.images import reading
from xcam.methods.registry import list_methods
from xcam.models import demo

BACKENDS = ("onnx", "torch", "keras")
NO_CLASS = ("random", "eigencam", "fem")
"""Methods that do not use the class: of two shapes, they can mark either."""
LEAST = {"random": 0.0, "eigencam": 0.4, "fem": 0.0, "eigengradcam": 0.4, "sscam": 0.2}
"""Lowest expected shares of hits. fem marks outliers of the channels, at the edge of a shape. The first component of G·A
can be evidence for the other shape. sscam's noise (as in the paper) is twice as wide as a mask and hides it, however many
samples are drawn."""
CHEAP: dict[str, dict[str, Any]] = {
    "scorecam": {"max_channels": 16},
    "sscam": {"n": 2, "max_channels": 16},
    "iscam": {"n": 2, "max_channels": 16},
    "smoothgradcam++": {"n": 3},
}


@cache
def model(backend: str) -> Any:
    return xcam.load("demo", backend)


@cache
def image(kind: str) -> Any:
    whole = reading.read(demo.image_paths()[1])
    return {"square": whole, "portrait": np.ascontiguousarray(whole[:, 20:100])}[kind]


def explained(backend: str, name: str, images: Any, augment: bool = False, **options: Any) -> Any:
    score = "probability" if name == "shapleycam" else "logit"
    return xcam.explain(
        model(backend),
        images,
        layer="conv5",
        target=1,
        method=name,
        method_options=CHEAP.get(name, {}) | options,
        score=score,
        augment=augment,
    )


@pytest.mark.parametrize("kind", ["square", "portrait"])
@pytest.mark.parametrize("name", list_methods())
def test_the_frameworks_agree(name: str, kind: str) -> None:
    results = [explained(backend, name, image(kind)) for backend in BACKENDS]
    for other in results:
        assert other.cam.shape == (16, 16)
        assert other.heatmap.shape == image(kind).shape[:2]
        assert 0 <= other.heatmap.min() <= other.heatmap.max() <= 1 + 1e-6
        scale = np.abs(results[0].cam).max()
        np.testing.assert_allclose(other.cam / scale, results[0].cam / scale, atol=1e-3)
        np.testing.assert_allclose(other.heatmap, results[0].heatmap, atol=1e-3)
    np.testing.assert_array_equal(explained("onnx", name, image(kind)).cam, results[0].cam)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", list_methods())
def test_a_batch_gives_the_maps_of_its_images_alone(name: str, backend: str) -> None:
    both = [image("square"), image("portrait")]
    for together, alone in zip(explained(backend, name, both), both, strict=True):
        expected = explained(backend, name, alone).cam
        np.testing.assert_allclose(together.cam, expected, atol=1e-3 * np.abs(expected).max())


def test_augmenting_averages_over_mirror_images_and_scales() -> None:
    plain = explained("onnx", "gradcam", image("square"))
    smooth = explained("onnx", "gradcam", image("square"), augment=True)
    mirrored = explained("onnx", "gradcam", np.ascontiguousarray(image("square")[:, ::-1]), augment=True)
    assert not np.allclose(smooth.cam, plain.cam, atol=1e-3 * plain.cam.max())
    np.testing.assert_allclose(mirrored.cam[:, ::-1], smooth.cam, atol=1e-4 * smooth.cam.max())


def test_fusing_layers() -> None:
    parts = [xcam.explain(model("onnx"), image("square"), layer=layer, target=1) for layer in ("conv3", "conv5")]
    small = [part.positive / part.positive.max() for part in parts]
    wide = [small[0], xcam.methods.maps.resize(small[1], small[0].shape)]
    for fusion, expected in (
        ("mean", np.mean(wide, axis=0)),
        ("max", np.max(wide, axis=0)),
        ("product", wide[0] * wide[1]),
    ):
        fused = xcam.explain(model("onnx"), image("square"), layer=["conv3", "conv5"], target=1, fuse=fusion)
        np.testing.assert_allclose(fused.cam, expected, atol=1e-6)
        assert fused.layer == f"conv3 {fusion} conv5"


@pytest.mark.slow
@pytest.mark.parametrize("name", list_methods())
def test_the_map_of_each_class_marks_its_shape(name: str, record_property: Any) -> None:
    """Scenes have two shapes. Methods that do not use the class mark one of them; with random weights, maps miss more often."""
    share = hits(model("onnx"), scenes_with_two(25), name, **CHEAP.get(name, {}))
    record_property("share", share)
    assert LEAST.get(name, 0.9) <= share <= (0.75 if name in NO_CLASS else 1.0)
