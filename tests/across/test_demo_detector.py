"""The demo detector computes the same boxes in each framework."""

from __future__ import annotations

import numpy as np

import xcam
from ground_truth import scenes_with_two
from xcam.models.demo import CLASSES


def test_three_frameworks_compute_the_same_boxes() -> None:
    x = np.stack([scene.image for scene in scenes_with_two(2)]).astype(np.float32) / 127.5 - 1
    outputs = {
        name: np.asarray(xcam.load("demo-detector", name).predict(x if name == "keras" else np.moveaxis(x, -1, 1)))
        for name in ("onnx", "torch", "keras")
    }
    assert outputs["onnx"].shape == (2, 4 + len(CLASSES), 256)
    for name in ("torch", "keras"):
        np.testing.assert_allclose(outputs[name], outputs["onnx"], rtol=1e-4, atol=1e-4)
