"""Mistakes at the input behind a functional resize: each is named with its own cause, and never as an interpolation."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import xcam
from planted import MEAN, STD

noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
IMAGE = np.asarray(cv2.GaussianBlur(noise, (5, 5), 1.2))


def scaled(x: Tensor, mean: Tensor = MEAN, std: Tensor = STD) -> Tensor:
    return (x - mean) / std


class Resized(nn.Module):
    def __init__(self, before: Callable[[Tensor], Tensor] = scaled, mode: str = "bilinear", **options: Any) -> None:
        super().__init__()
        self.before, self.options = before, {"mode": mode, "size": (24, 24)} | options
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 3)
            self.bn.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
            self.bn.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Any:
        x = nn.functional.interpolate(self.before(x), **self.options)  # type: ignore[arg-type]
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))


def changed(change: Callable[[Any], object]) -> nn.Module:
    net = Resized()
    with torch.no_grad():
        change(net)
    return net


@cache
def first() -> Any:
    return xcam.load(Resized().eval(), preprocess="unit", size=(32, 32))


MISTAKES: list[tuple[str, str, Callable[[], nn.Module]]] = [
    ("rgb-bgr", "RGB against BGR$", lambda: Resized(lambda x: scaled(x.flip(1)))),
    ("rgb-bgr", "behind mean and standard deviation", lambda: Resized(lambda x: scaled(x).flip(1))),
    (
        "input-scale",
        "the second both in the order BGR",
        lambda: Resized(lambda x: scaled(x, MEAN.flip(0), STD.flip(0))),
    ),
    ("input-scale", "the second both exchanged", lambda: Resized(lambda x: scaled(x, STD, MEAN))),
    ("input-scale", "the second not the mean", lambda: Resized(lambda x: x / STD)),
    ("input-scale", "the second not the standard deviation", lambda: Resized(lambda x: x - MEAN)),
    ("input-scale", "scaled as 'torch', and is given images scaled as 'unit'", lambda: Resized(lambda x: x)),
    ("input-scale", r"multiplied by 1.004 \(256 / 255\)", lambda: Resized(lambda x: scaled(x * 255 / 256))),
    ("mirrored-input", "it is mirrored", lambda: Resized(lambda x: scaled(x).flip(-1))),
    ("mirrored-input", "it is upside down", lambda: Resized(lambda x: scaled(x).flip(-2))),
    ("batchnorm-statistics", "another offset", lambda: changed(lambda n: n.conv.bias.zero_())),
    ("batchnorm-statistics", "epsilon", lambda: changed(lambda n: setattr(n.bn, "eps", 0.05))),
    ("missing-bias", "missing in the second", lambda: changed(lambda n: n.fc.bias.zero_())),
    ("interpolation", "linear against nearest", lambda: Resized(mode="nearest")),
    ("interpolation", "linear against linear .aligned corners", lambda: Resized(align_corners=True)),
    ("", "", lambda: changed(lambda n: n.conv.weight.add_(0.05 * torch.ones_like(n.conv.weight).bernoulli_(0.5)))),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*scales its input itself")  # some of the mistakes
@pytest.mark.parametrize(("code", "text", "build"), MISTAKES, ids=[f"{m[0]} {m[1]}" for m in MISTAKES])
def test_behind_a_functional_resize(code: str, text: str, build: Callable[[], nn.Module], tmp_path: Path) -> None:
    path = tmp_path / "second.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(build().eval(), (torch.rand(1, 3, 32, 32),), str(path), dynamo=False)
    result = xcam.compare([first(), xcam.load(path, preprocess="unit")], IMAGE, align=True).divergences[0]
    assert result.notes == ()
    if not code:
        assert result.layer is not None
        assert result.cause is None
        return
    assert result.cause is not None
    assert (result.cause.code, result.cause.proof) == (code, "rerun"), result.cause
    assert re.search(text, result.cause.text)
