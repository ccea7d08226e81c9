"""Heatmaps while a torch module is trained: the training takes the same course, and the maps are of the new weights."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import xcam
from xcam import callbacks
from xcam.callbacks import Heatmaps

RNG = np.random.default_rng(0)
IMAGES = list(RNG.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8))
X = torch.from_numpy(RNG.random((24, 3, 16, 16), dtype=np.float32))
Y = torch.from_numpy(RNG.integers(0, 3, 24))
pytestmark = pytest.mark.filterwarnings("ignore::xcam.ZeroHeatmapWarning")
OPTIONS: dict[str, Any] = {"size": (16, 16), "preprocess": "unit", "target": 1}


class Noisy(nn.Module):
    """Draws random numbers in evaluation mode too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.1 * torch.randn_like(x)


def network(noisy: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        *[Noisy()][: int(noisy)],
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def trained(on_epoch_end: Callable[[nn.Module, int], object]) -> dict[str, Any]:
    """Train for three epochs, and return all weights and the next random numbers."""
    module = network()
    module[-1].bias.requires_grad_(False)
    random.seed(0)
    np.random.seed(0)
    optimizer = torch.optim.Adam((p for p in module.parameters() if p.requires_grad), 1e-2)
    for epoch in range(1, 4):
        for rows in torch.randperm(24).split(8):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(X[rows]), Y[rows]).backward()
            optimizer.step()
        gradients = [p.grad for p in module.parameters()]
        on_epoch_end(module, epoch)
        assert all(part.training for part in module.modules())
        assert all(p.grad is gradient for p, gradient in zip(module.parameters(), gradients, strict=True))
        assert [p.requires_grad for p in module.parameters()].count(False) == 1
    draws = torch.rand(2), np.random.random(), random.random()
    return module.state_dict() | {"draws": torch.tensor([*draws[0], *draws[1:]])}


def test_the_training_is_the_same_with_and_without_heatmaps(tmp_path: Path) -> None:
    expected = trained(lambda module, epoch: None)
    results = trained(Heatmaps(IMAGES, tmp_path, **OPTIONS).on_epoch_end)
    for name, value in expected.items():
        assert torch.equal(results[name], value), name
    assert len(list(tmp_path.rglob("*.jpg"))) == 6


@pytest.mark.parametrize("method", ["gradcam", "ablationcam"])
def test_the_maps_are_of_the_new_weights(method: str, tmp_path: Path) -> None:
    """`ablationcam` runs a captured tail, which must not keep old weights."""
    module = network(noisy=False)
    heatmaps = Heatmaps(IMAGES, tmp_path, method=method, **OPTIONS)
    before = heatmaps.on_epoch_end(module, 1)
    opened = heatmaps._opened

    def in_place() -> None:
        for p in module.parameters():
            p.mul_(1.3)

    def data() -> None:
        for p in module.parameters():
            p.data = 1.3 * p.data

    def assigned() -> None:
        weights = {k: 1.3 * v if v.is_floating_point() else v for k, v in module.state_dict().items()}
        module.load_state_dict(weights, assign=True)

    def parameter() -> None:
        module[-1].weight = nn.Parameter(-1.3 * module[-1].weight)

    changes = (in_place, data, parameter) if method == "gradcam" else (in_place, assigned)
    for epoch, change in enumerate(changes, 2):
        with torch.no_grad():
            change()
        after = heatmaps.on_epoch_end(module, epoch)
        fresh = xcam.load(module, size=(16, 16), preprocess="unit")
        expected = xcam.explain(fresh, IMAGES, target=1, method=method, layer=before[0].layer)
        for e, still, old in zip(after, expected, before, strict=True):
            np.testing.assert_array_equal(e.cam, still.cam, change.__name__)
            assert np.abs(e.cam - old.cam).max() > 0
        before = after
    assert heatmaps._opened is opened


def test_a_copy_is_opened_again_and_wrappers_are_not_copies(tmp_path: Path) -> None:
    module = network(noisy=False)
    assert xcam.load(module).is_live(nn.DataParallel(module))  # type: ignore[attr-defined]
    assert xcam.load(torch.compile(module)).is_live(module)  # type: ignore[attr-defined]
    assert not xcam.load(module).is_live(network(noisy=False))  # type: ignore[attr-defined]
    heatmaps = Heatmaps(IMAGES, tmp_path, **OPTIONS)
    heatmaps.on_epoch_end(module, 1)
    heatmaps.on_epoch_end(other := network(noisy=False), 2)
    assert heatmaps._opened.module is other  # type: ignore[union-attr]


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return a package of the name of Lightning's, with the class that callbacks inherit from."""
    package = ModuleType("pytorch_lightning")
    package.Callback = type("Callback", (), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pytorch_lightning", package)
    monkeypatch.delitem(sys.modules, "lightning", raising=False)
    return package


def test_lightning_calls_before_the_first_epoch_and_after_each(lightning: ModuleType, tmp_path: Path) -> None:
    class Trainer:
        is_global_zero, sanity_checking, current_epoch = True, False, 0

    module = nn.ModuleDict({"net": network()})
    callback = callbacks.LightningHeatmaps(IMAGES, tmp_path, module="net", **OPTIONS)
    assert isinstance(callback, lightning.Callback)
    for Trainer.current_epoch in range(2):
        callback.on_train_epoch_start(Trainer, module)
        callback.on_train_epoch_end(Trainer, module)
    Trainer.is_global_zero, Trainer.current_epoch = False, 5
    callback.on_train_epoch_end(Trainer, module)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch_000", "epoch_001", "epoch_002"]


def test_without_lightning_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xcam_torch.callbacks.find_spec", lambda name: None)
    monkeypatch.setattr("xcam_torch.callbacks.sys.modules", {})
    with pytest.raises(xcam.BackendError, match="Lightning is not installed; pip install lightning"):
        _ = callbacks.LightningHeatmaps
