"""The same weights give the same numbers in two frameworks, at three depths: logits, activations, gradients, heatmaps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kinks
import ported
import xcam
from ground_truth import scenes_with_two
from xcam.images import batches
from xcam_keras.backend import keras


def error(result: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, relative to the largest magnitude."""
    return float(np.abs(result - expected).max() / np.abs(expected).max())


@pytest.fixture(params=["float32", "float64"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy("float32")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "preset", "first"), [(ported.vgg16, "caffe", "features.15"), (ported.residual, "torch", "a.norm2")]
)
def test_keras_and_torch_agree(
    build: Callable[[], Any], preset: str, first: str, precision: str, tmp_path: Path
) -> None:
    """The images keep every ReLU and every maximum away from a tie, which float32 rounding would decide (see `kinks`).

    first: what the first of the three layers is called in a file, where batch norms are folded into convolutions.
    """
    source, port, depths = build()
    port = port.to(getattr(torch, precision))
    size = source.input_shape[1:3]
    a = xcam.load(source, preprocess=preset)
    b = xcam.load(port, preprocess=preset, size=size)
    assert (a.output_activation, b.output_activation) == ("softmax", None)
    scenes = [scene.image for scene in scenes_with_two(48)]
    x = batches.batch(scenes, b.input, size, b.input.preprocessing)
    if precision == "float32":
        b.to_onnx(tmp_path / "port.onnx")
        rows, clearance = kinks.clearest(tmp_path / "port.onnx", first, x)
        assert clearance > 4
    else:
        rows = np.arange(2)
    scenes, x = [scenes[row] for row in rows], x[rows]
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    print(f"\n{source.name} in {precision}: differences, Keras against torch, relative to the largest magnitude")
    for ours, theirs in depths:
        v = np.random.default_rng(3).normal(size=(2, source.output_shape[-1])).astype(np.float32)
        s, t = a.trace(last, ours, lambda _, v=v: [v]), b.trace(x, theirs, lambda _, v=v: [v])
        pairs = list(zip(xcam.explain(a, scenes, layer=ours), xcam.explain(b, scenes, layer=theirs), strict=True))
        # Where a maximum is taken over zeros only, each framework passes the gradient to another one: both are right.
        alive = s.activations != 0
        row = {
            "logits": error(t.outputs, s.outputs),
            "activations": error(t.activations, s.activations),
            "gradients": error(t.gradients[0] * alive, s.gradients[0] * alive),
            "pooled": error(xcam.methods.maps.pool(t.gradients[0]), xcam.methods.maps.pool(s.gradients[0])),
            "heatmap": max(float(np.abs(f.heatmap - e.heatmap).max()) for e, f in pairs),
        }
        print(f"  {ours:14} {theirs:12}", "  ".join(f"{name} {value:.1e}" for name, value in row.items()))
        assert [f.index for _, f in pairs] == [e.index for e, _ in pairs]
        assert min(e.heatmap.std() for e, _ in pairs) > 0.01
        assert row["logits"] < 1e-4
        assert row["activations"] < 1e-4
        assert row["gradients"] < 1e-3
        assert row["pooled"] < 1e-3
        assert row["heatmap"] < 1e-3


def test_the_demo_network_gives_the_same_heatmap(demo_image: Path) -> None:
    e, f = (xcam.explain(xcam.load("demo", name), demo_image, layer="conv5") for name in ("keras", "torch"))
    assert (e.label, e.backend, f.backend) == (f.label, "keras", "torch")
    np.testing.assert_allclose(f.outputs, e.outputs, atol=1e-4 * np.abs(e.outputs).max())
    np.testing.assert_allclose(f.heatmap, e.heatmap, atol=1e-3)
    np.testing.assert_allclose(f.scores, e.scores, atol=1e-4)
