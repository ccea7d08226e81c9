"""The axes of a layer's value: by torch's own classes and by the image's ratio, never by the name of a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import xcam


class GatedConvBlock(nn.Module):
    """[N, H, W, C], in a class whose name says otherwise, as MambaOut's."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(into, out, 3, 2, 1), nn.LayerNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)).relu()


class LayerNorm2dNoBias(nn.LayerNorm):
    """[N, C, H, W], as MambaOut's, ConvNeXt's, and CoaT-Lite's of other names."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNextLayerNorm(nn.LayerNorm):
    """Either, as of transformers."""

    def __init__(self, channels: int, data_format: str) -> None:
        super().__init__(channels)
        self.data_format = data_format

    def forward(self, x: Tensor) -> Tensor:
        if self.data_format == "channels_first":
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return super().forward(x)


class LayerNormAct(nn.LayerNorm):
    """An own forward that keeps [N, H, W, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Conv2dSame(nn.Conv2d):
    """An own forward, as timm's."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(nn.functional.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


class ConvLast(nn.Conv2d):
    """A convolution that takes and returns [N, H, W, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Permute(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class Own(nn.Conv2d):
    """A subclass with torch's forward."""


def network(*parts: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*parts)


def stated(module: nn.Module, size: tuple[int, int]) -> Any:
    """Return the layers as the backend describes them, before the core's probe corrects them."""
    return xcam.load(module, size=size)._recording().layers


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int], list[tuple[str, tuple[int, ...]]]]] = {
    "a block of another name": (
        lambda: network(Permute(), GatedConvBlock(3, 24), GatedConvBlock(24, 7)),
        (64, 64),
        [("1", (24, 32, 32)), ("1.norm", (24, 32, 32)), ("1.conv", (24, 32, 32)), ("2", (7, 16, 16))],
    ),
    "subclasses of LayerNorm": (
        lambda: network(nn.Conv2d(3, 24, 3, 4, 1), LayerNorm2dNoBias(24), Permute(), LayerNormAct(24)),
        (64, 64),
        [("0", (24, 16, 16)), ("1", (24, 16, 16)), ("2", (24, 16, 16)), ("3", (24, 16, 16))],
    ),
    "both formats in one class": (
        lambda: network(
            nn.Conv2d(3, 24, 3, 4, 1),
            ConvNextLayerNorm(24, "channels_first"),
            Permute(),
            ConvNextLayerNorm(24, "channels_last"),
        ),
        (64, 96),
        [("1", (24, 16, 24)), ("3", (24, 16, 24))],
    ),
    "subclasses of Conv2d": (
        lambda: network(Conv2dSame(3, 8, 3), Own(8, 10, 1), Permute(), ConvLast(10, 12, 1)),
        (10, 20),
        [("0", (8, 10, 20)), ("1", (10, 10, 20)), ("3", (12, 10, 20))],
    ),
    "as many channels as rows and columns": (
        lambda: network(nn.Conv2d(3, 16, 1), LayerNorm2dNoBias(16), Permute(), nn.Linear(16, 16), nn.GELU()),
        (16, 16),
        [("0", (16, 16, 16)), ("1", (16, 16, 16)), ("3", (16, 16, 16)), ("4", (16, 16, 16))],
    ),
    "a normalisation of three axes": (
        lambda: network(nn.Conv2d(3, 6, 3, 2, 1), nn.LayerNorm([6, 8, 8])),
        (16, 16),
        [("1", (6, 8, 8))],
    ),
    "a width that is reduced less than the height": (
        lambda: network(nn.Conv2d(3, 6, 3, (8, 2), 1), nn.GELU(), LayerNorm2dNoBias(6)),
        (32, 160),
        [("0", (6, 4, 80)), ("1", (6, 4, 80)), ("2", (6, 4, 80))],
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_shapes(kind: str) -> None:
    make, size, expected = CASES[kind]
    layers = stated(make(), size)
    assert {name: layers[name].shape for name, _ in expected} == dict(expected)


def test_where_the_shape_is_ambiguous_the_class_or_the_layer_before_decides() -> None:
    layers = stated(CASES["as many channels as rows and columns"][0](), (16, 16))
    layouts = {name: layer.layout for name, layer in layers.items()}
    assert [layouts[name] for name in "0134"] == ["channels_first"] * 2 + ["channels_last"] * 2


def test_values_are_in_the_order_of_the_shape() -> None:
    module = network(nn.Conv2d(3, 24, 3, 4, 1), LayerNorm2dNoBias(24), Permute(), LayerNormAct(24)).eval()
    x = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    values = xcam.load(module, size=(32, 32)).activations(x, ["1", "3"])
    with torch.no_grad():
        np.testing.assert_allclose(values["1"], module[:2](torch.from_numpy(x)), atol=1e-6)
        np.testing.assert_allclose(values["3"], module(torch.from_numpy(x)).permute(0, 3, 1, 2), atol=1e-6)


def test_volumes_and_signals() -> None:
    class Volume(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.permute(0, 2, 3, 4, 1)

    volume = network(nn.Conv3d(1, 6, 1), Volume(), nn.LayerNorm(6), nn.GELU())
    model = xcam.load(volume)
    model.trace(np.zeros((2, 1, 4, 8, 12), np.float32), "3")
    layers = model._recording(np.zeros((2, 1, 4, 8, 12), np.float32)).layers
    assert [layers[name].shape for name in "0123"] == [(6, 4, 8, 12)] * 4
    signal = nn.Sequential(nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.ReLU())
    layers = xcam.load(signal)._recording(np.zeros((2, 2, 20), np.float32)).layers
    assert [layers[name].shape for name in "012"] == [(6, 18)] * 3
