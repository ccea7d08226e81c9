"""TorchScript modules, live and in files, against the modules that they were made of."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import xcam
from xcam import ModelError
from xcam.models.layers import default

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning"
)

X = np.random.default_rng(0).normal(size=(2, 3, 12, 10)).astype(np.float32)


class Block(nn.Module):
    """A step with a setting, a call with a default, and a part that is called twice."""

    def __init__(self, channels: int, scale: float | None) -> None:
        super().__init__()
        self.conv, self.norm, self.act, self.scale = (
            nn.Conv2d(channels, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            scale,
        )
        nn.init.normal_(self.norm.running_mean)

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        x = self.act(self.norm(self.act(self.conv(x))) - 0.1)
        if self.scale is not None:
            x = x * self.scale
        return x * factor


class Dense(nn.Module):
    """Lists that are written to, a loop, and a condition of a size, as DenseNet's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.second, self.third = Block(3, None), Block(4, 0.5), Block(8, None)
        self.head, self.softmax = nn.Linear(4, 5), nn.Softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        features.append(self.second(features[0], 0.7))
        y = self.third(torch.cat(features, 1))
        if y.size(2) > 100:
            y = self.stem(y)
        for i in range(2):
            y = torch.tanh(y) + i
        return self.softmax(self.head(nn.functional.adaptive_avg_pool2d(y, 1).flatten(1)))


def made(way: str, module: nn.Module) -> Any:
    module = module.eval()
    return torch.jit.script(module) if way == "script" else torch.jit.trace(module, torch.from_numpy(X))


def cotangents(y: np.ndarray) -> list[np.ndarray]:
    return [np.eye(y.shape[1], dtype=np.float32)[[2] * len(y)]]


@pytest.mark.parametrize("layer", ["stem.norm", "third.act#0", None])
@pytest.mark.parametrize("way", ["script", "trace"])
def test_a_script_in_a_file(way: str, layer: str | None, tmp_path: Path) -> None:
    torch.jit.save(made(way, Dense()), tmp_path / "dense.pt")
    model = xcam.load(tmp_path / "dense.pt", preprocess="unit", size=(12, 10))
    plain = xcam.load(Dense(), preprocess="unit", size=(12, 10))
    assert model.input.channels == 3
    assert model.output_activation == "softmax"
    kinds = {layer.name: (layer.kind, layer.shape) for layer in model.layers}
    assert {layer.name: (layer.kind, layer.shape) for layer in plain.layers}.items() <= kinds.items()
    name = layer or default(model).name
    assert name == (layer or default(plain).name)
    trace, expected = model.trace(X, name, cotangents), plain.trace(X, name, cotangents)
    np.testing.assert_allclose(trace.outputs, expected.outputs, atol=1e-6)
    np.testing.assert_allclose(trace.activations, expected.activations, atol=1e-6)
    assert expected.gradients[0].any()
    np.testing.assert_allclose(trace.gradients[0], expected.gradients[0], atol=1e-7)
    changed = expected.activations * 0.3
    np.testing.assert_allclose(
        model.resume(trace, changed).outputs, plain.resume(expected, changed).outputs, atol=1e-6
    )
    if way == "trace":  # a script is captured only where it has no loops
        assert model._recording(X)._graphs.latest._checked.get(name, lambda: pytest.fail("no tail was run"))[0]


def test_a_live_script_is_unchanged_and_explained_in_evaluation_mode() -> None:
    module = Dense()
    script = torch.jit.script(module.train())
    before = copy.deepcopy(script.state_dict())
    model = xcam.load(script, size=(12, 10))
    np.testing.assert_allclose(model.predict(X), xcam.load(module, size=(12, 10)).predict(X), atol=1e-6)
    assert model.name == "Dense"
    assert script.training
    assert script.stem.norm.training
    for name, value in script.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_weights_and_shuffled_copies(tmp_path: Path) -> None:
    other = Dense()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(-0.5)
    torch.save(other.state_dict(), tmp_path / "w.pt")
    script = torch.jit.script(Dense().eval())
    model = xcam.load(script, weights=str(tmp_path / "w.pt"), size=(12, 10))
    np.testing.assert_allclose(model.predict(X), xcam.load(other, size=(12, 10)).predict(X), atol=1e-6)
    clean = xcam.load(script, size=(12, 10))
    np.testing.assert_allclose(clean.predict(X), xcam.load(Dense(), size=(12, 10)).predict(X), atol=1e-6)
    shuffled = clean.with_shuffled_weights(["third.conv"])
    assert not np.allclose(shuffled.predict(X), clean.predict(X), atol=1e-3)


def test_scripts_whose_parts_were_merged(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.freeze(torch.jit.script(Dense().eval())), tmp_path / "frozen.pt")
    with pytest.raises(ModelError, match=r"its parts were merged into one graph \(torch\.jit\.freeze"):
        xcam.load(tmp_path / "frozen.pt")


def test_an_operation_that_cannot_be_followed() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            sizes = [3, 1, 2]
            sizes.sort()
            return self.conv(x).mean((2, 3)) * sizes[0]

    with pytest.raises(ModelError, match=r"cannot explain the TorchScript module: it uses aten::sort, which"):
        xcam.load(torch.jit.script(Sorted()), size=(12, 10)).predict(X)
