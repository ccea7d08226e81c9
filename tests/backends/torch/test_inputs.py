"""Inputs of torch modules: grey images without a channel axis, and sizes that a module states."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import xcam
from xcam_torch.backend import stated_size

SIZE = (9, 7)
PHOTO = np.repeat(np.random.default_rng(0).integers(0, 256, (*SIZE, 1), dtype=np.uint8), 3, -1)


class Grey(nn.Module):
    """It takes [N, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU())
        self.scores = nn.Linear(8, 3)
        nn.init.ones_(self.scores.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores(self.features(x.unsqueeze(1)).mean(dim=(2, 3)))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("source", ["module", "stated", "program", "onnx"])
def test_grey_images_without_a_channel_axis(source: str, tmp_path: Path) -> None:
    module: Any = Grey().eval()
    x = torch.from_numpy(PHOTO[None, ..., 0].astype(np.float32))
    features = module.features(x.unsqueeze(1))
    expected = (
        torch.einsum("chw,c->hw", features[0], module.scores.weight[1]).detach().numpy() / features[0, 0].numel()
    )
    model = xcam.load(module, preprocess="raw", size=SIZE, channels=None if source == "module" else 0)
    if source == "program":
        shapes = ({0: torch.export.Dim.DYNAMIC},)
        model = xcam.load(torch.export.export(module, (x.repeat(2, 1, 1),), dynamic_shapes=shapes), preprocess="raw")
    elif source == "onnx":
        model = xcam.load(xcam.export(model, tmp_path / "grey.onnx", layer="features"), preprocess="raw")
    e = xcam.explain(model, PHOTO, layer="features.1" if source == "program" else "features", target=1)
    assert (model.input.size, model.input.channels) == (SIZE, 0)
    np.testing.assert_allclose(e.outputs, module(x).detach().numpy()[0], rtol=1e-4)
    np.testing.assert_allclose(e.cam, expected, atol=1e-4 * expected.max())
    for method in ("ablationcam", "scorecam", "shapleycam"):
        if method != "shapleycam" or source != "onnx":
            xcam.explain(model, [PHOTO, PHOTO[::-1]], target=1, method=method)
    np.testing.assert_allclose(model.predict(x.numpy()), model.predict(x.numpy()[:, None]))


class Sized(nn.Module):
    """It takes images of one size, which a part states, as those that embed patches do."""

    def __init__(self, size: Any) -> None:
        super().__init__()
        self.embedding = nn.Conv2d(3, 4, 8, 8)
        self.embedding.img_size = size
        height, width = size if isinstance(size, tuple) else (size, size)
        self.positions = nn.Parameter(torch.zeros(1, 4, height // 8, width // 8))
        self.scores = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores((self.embedding(x) + self.positions).mean(dim=(2, 3)))


@pytest.mark.parametrize("size", [256, (64, 96)])
def test_a_size_that_a_part_states(size: Any) -> None:
    model = xcam.load(Sized(size), preprocess="unit")
    height, width = size if isinstance(size, tuple) else (size, size)
    assert model.input.size == (height, width)
    assert xcam.explain(model, PHOTO, layer="embedding", target=0, method="hirescam").cam.shape == (
        height // 8,
        width // 8,
    )
    assert xcam.load(Sized(size), size=(32, 32)).input.size == (32, 32)


def test_attributes_that_state_no_size() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    assert stated_size(module) is None
    for value in ("224", (3, 224, 224), 0, True, [224, None]):
        module[0].image_size = value
        assert stated_size(module) is None
    module[1].config = SimpleNamespace(image_size=[30, 40])
    assert stated_size(module) == (30, 40)


class Focus(nn.Module):
    """Space to depth, then a convolution of 12 channels: the stem of YOLOv5 and TResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(nn.functional.pixel_unshuffle(x, 2))


class Repeated(nn.Module):
    """One channel in, repeated for a backbone of three."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x.repeat(1, 3, 1, 1))


class HeadFirst(nn.Module):
    """The head is declared before the backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.backbone = nn.Conv2d(16, 16, 1), nn.Conv2d(3, 16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))


@pytest.mark.parametrize(("stem", "channels"), [(Focus, 3), (Repeated, 1), (HeadFirst, 3)])
def test_a_wrong_guess_of_the_channels_is_corrected(stem: type[nn.Module], channels: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(stem(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).eval()
    nn.init.uniform_(net[4].weight)
    photo = np.repeat(np.random.default_rng(0).integers(0, 256, (24, 20, 1), dtype=np.uint8), 3, -1)
    model = xcam.load(net, preprocess="unit", size=(24, 20))
    e = xcam.explain(model, photo, target=2)
    assert (model.input.channels, model.input.channels_known) == (channels, True)
    x = torch.from_numpy(np.moveaxis(photo, -1, 0)[None, :channels].astype(np.float32) / 255)
    features = net[:2](x)
    expected = torch.einsum("chw,c->hw", features[0], net[4].weight[2]).detach().numpy() / features[0, 0].numel()
    np.testing.assert_allclose(e.outputs, net(x).detach().numpy()[0], rtol=1e-4)
    np.testing.assert_allclose(e.cam, expected, atol=1e-5 * expected.max())
    compared = xcam.compare([xcam.load(net, preprocess="unit", size=(24, 20)) for _ in range(2)], photo, target=2)
    np.testing.assert_allclose(compared.images[0].explanations[1].cam, e.cam, atol=1e-6)
