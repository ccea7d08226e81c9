"""Detectors and segmentation as text: the same answer in torch, in the exported file, and plain torch's gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import xcam
from detectors import SIDE, Segments, TwoScales, built
from xcam.explanation.recognition import task_of
from xcam.explanation.scales import default_scales
from xcam.images.batches import batch as batched
from xcam.methods.maps import normalize, resize

IMAGE = np.random.default_rng(6).integers(0, 256, (128, 192, 3), dtype=np.uint8)
SEEDS = {"ssd": 2}
"""Weights with which no unit of the heads is dead."""
FINE, COARSE = "box:9", "box:66"
"""64 boxes are of the finer scale, 16 of the coarser."""
LAYOUTS = {
    "v8": "detection, 3 classes, 80 boxes, xywh, no objectness",
    "v5": "detection, 3 classes, 240 boxes, xywh, objectness",
    "ssd": "detection, 3 classes, 80 boxes, relative xyxy, no objectness, background 0",
    "selected": "detection, 2 classes, 20 selected boxes, xyxy",
}


def opened(module: torch.nn.Module, framework: str, folder: Path, **options: Any) -> xcam.Model:
    model = xcam.load(module, preprocess="unit", size=(SIDE, SIDE), **options)
    if framework == "torch":
        return model
    model.to_onnx(folder / "m.onnx")  # type: ignore[attr-defined]
    return xcam.load(folder / "m.onnx", preprocess="unit", **options)


def batch() -> torch.Tensor:
    model = xcam.load(built(TwoScales()), preprocess="unit", size=(SIDE, SIDE))
    spec = model.input
    assert spec.preprocessing
    return torch.from_numpy(batched([IMAGE], spec, (SIDE, SIDE), spec.preprocessing))


@pytest.mark.parametrize(
    ("layout", "framework"), [*((name, "torch") for name in LAYOUTS), ("v5", "onnx"), ("selected", "onnx")]
)
def test_the_best_box_of_a_class_and_the_gradient_of_its_score(layout: str, framework: str, tmp_path: Path) -> None:
    module = built(TwoScales(layout), SEEDS.get(layout, 0))
    options = {"labels": ["cat", "dog", "cow"]} if layout != "selected" else {}
    model = opened(module, framework, tmp_path, **options)
    e = xcam.explain(model, IMAGE, target="dog" if options else 1, layer="fine.3", score="probability")
    assert e.task == LAYOUTS[layout]
    x = batch()
    a = module.fine(x).detach().requires_grad_()
    module.fine = torch.nn.Identity()
    y = module(a)
    if layout == "ssd":
        p = y["scores"][0, :, 2]
    elif layout == "selected":
        p = torch.where(y[0, :, 5] == 1, y[0, :, 4], 0)
    else:
        p = y[0, :, 4] * y[0, :, 6] if layout == "v5" else y[0, 5]
    best = int(p.argmax())
    (gradient,) = torch.autograd.grad(p[best], a)
    cam = np.asarray((gradient.mean((2, 3), keepdim=True) * a).sum(1)[0].detach())
    assert e.target.box == best  # type: ignore[attr-defined]
    assert e.score == pytest.approx(float(p[best].detach()), rel=1e-5)
    assert float(e.scores[e.index]) == pytest.approx(e.score, rel=1e-5)
    np.testing.assert_allclose(e.cam, cam, rtol=1e-3, atol=1e-6 * np.abs(cam).max())
    (explained,) = [b for b in e.boxes if b.explained]
    assert (explained.label, explained.score) == (e.label, pytest.approx(e.score, rel=1e-5))


@pytest.mark.parametrize(("layout", "framework"), [*((name, "torch") for name in LAYOUTS), ("ssd", "onnx")])
def test_the_default_layers_are_the_last_that_boxes_and_scores_share(
    layout: str, framework: str, tmp_path: Path
) -> None:
    model = opened(built(TwoScales(layout), SEEDS.get(layout, 0)), framework, tmp_path)
    task = task_of(model, IMAGE)
    assert task is not None
    fine, coarse = default_scales(model, task, IMAGE).layers
    assert (fine.shape, coarse.shape) == ((12, 8, 8), (12, 4, 4))
    assert framework == "onnx" or (fine.name, coarse.name) == ("fine.3", "coarse.1")
    e = xcam.explain(model, IMAGE)
    assert (e.layer, e.cam.shape) == (f"{fine.name} max {coarse.name}", (8, 8))


@pytest.mark.parametrize("framework", ["torch"])
def test_a_box_is_explained_at_its_own_scale(framework: str, tmp_path: Path) -> None:
    model = opened(built(TwoScales()), framework, tmp_path)
    for box, layer in ((FINE, "fine.3"), (COARSE, "coarse.1")):
        e, alone = (xcam.explain(model, IMAGE, target=box, layer=name) for name in (None, layer))
        small = normalize(alone.positive[None])[0]
        assert alone.cam.max() > 0
        np.testing.assert_allclose(e.cam, resize(small, (8, 8)), atol=1e-6)


@pytest.mark.parametrize("framework", ["torch", "onnx"])
def test_segmentation_explains_the_mean_score_over_the_predicted_region(framework: str, tmp_path: Path) -> None:
    module = built(Segments(), 3)
    model = opened(module, framework, tmp_path, labels=["background", "cat", "dog", "cow"])
    e = xcam.explain(model, IMAGE)
    assert e.task == f"segmentation, 4 classes, {SIDE}×{SIDE}, background 0"
    assert e.layer.endswith("deep.3") or framework == "onnx"
    z = module(batch())[0]
    predicted = z.argmax(0)
    areas = torch.bincount(predicted.flatten(), minlength=4)
    areas[0] = 0
    index = int(areas.argmax())
    assert e.index == index
    assert e.score == pytest.approx(float(z[index][predicted == index].detach().mean()), rel=1e-4)
    np.testing.assert_array_equal(e.region, np.asarray(predicted == index))
    x = batch()
    f = module.down(x)
    a = module.deep(f).detach().requires_grad_()
    skip = torch.cat([module.up(a), f], 1)
    full = torch.nn.functional.interpolate(module.classes(module.mix(skip)), scale_factor=2)
    (gradient,) = torch.autograd.grad(full[0, index][predicted == index].mean(), a)
    cam = np.asarray((gradient.mean((2, 3), keepdim=True) * a).sum(1)[0].detach())
    np.testing.assert_allclose(e.cam, cam, rtol=1e-3, atol=1e-5 * np.abs(cam).max())


def test_a_stated_layout_and_task_are_used() -> None:
    module = built(TwoScales("v5"))
    model = xcam.load(module, preprocess="unit", size=(SIDE, SIDE), boxes="no-objectness")
    assert xcam.explain(model, IMAGE, target=0).task == "detection, 4 classes, 240 boxes, xywh, no objectness"
    model = xcam.load(module, preprocess="unit", size=(SIDE, SIDE), task="classification")
    with pytest.raises(xcam.XcamError, match="not \\[batch, classes\\]"):
        xcam.explain(model, IMAGE)


def test_a_set_is_explained_at_all_scales_and_an_evaluation_names_them(tmp_path: Path) -> None:
    model = xcam.load(built(TwoScales()), preprocess="unit", size=(SIDE, SIDE))
    with pytest.raises(xcam.InputError, match=r"one layer is evaluated; give one with layer= .*: fine\.3, coarse\.1"):
        xcam.evaluate(model, [IMAGE], measures=["deletion"])
    result = xcam.evaluate(model, [IMAGE], measures=["deletion"], layer="fine.3")
    best = xcam.explain(model, IMAGE, layer="fine.3")
    assert result.targets == (best.label,)


def test_a_comparison_is_at_the_scale_of_the_box() -> None:
    model = xcam.load(built(TwoScales()), preprocess="unit", size=(SIDE, SIDE))
    comparison = xcam.compare([model, model], IMAGE, target=COARSE, align=False)
    assert comparison.layers == ("coarse.1", "coarse.1")
    assert comparison.verdict == "identical"
