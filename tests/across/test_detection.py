"""The boxes of a detector with one output [N, 4 + classes, boxes], in torch and in the file that it exports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import xcam

IMAGE = np.random.default_rng(6).integers(0, 256, (64, 64, 3), dtype=np.uint8)


class Detector(nn.Module):
    """Boxes by centre and size in pixels, and the probabilities of 6 classes, for each of 8 × 8 cells."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 8, 1), nn.ReLU())
        self.scores, self.sizes = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        f = self.features(x)
        y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
        centre = torch.stack([x, y]).flatten(1)[None] * 8.0 + 4
        size = 8 * self.sizes(f).flatten(2).exp()
        return torch.cat([centre.expand(len(f), -1, -1), size, self.scores(f).flatten(2).sigmoid()], 1)


@pytest.mark.parametrize("framework", ["torch", "onnx"])
def test_the_score_is_that_of_the_class_of_a_box_in_the_region(framework: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Detector().eval()
    model = xcam.load(module, preprocess="unit", size=(64, 64))
    if framework == "onnx":
        model.to_onnx(tmp_path / "m.onnx")
        model = xcam.load(tmp_path / "m.onnx", preprocess="unit")
    x = torch.tensor(np.moveaxis(IMAGE, -1, 0)[None] / np.float32(255))
    a = module.features(x).detach().requires_grad_()
    z = module.scores(a).flatten(2)
    target = xcam.Detection(2, (32, 16, 40, 24), corners="cxcywh")
    e = xcam.explain(model, IMAGE, layer="features.1", target=target)
    assert (e.target.box, e.target.axis) == (2 * 8 + 4, 2)
    assert e.score == pytest.approx(float(module(x)[0, 4 + 2, 20].detach()), rel=1e-5)
    (gradient,) = torch.autograd.grad(z.sigmoid()[0, 2, 20], a)
    cam = np.asarray((gradient.mean((2, 3), keepdim=True) * a).sum(1)[0].detach())
    np.testing.assert_allclose(e.cam, cam, rtol=1e-3, atol=1e-7)
