"""Planted mistakes are named where undoing them makes the difference go; what no known cause explains is not named."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import planted
import xcam
from planted import MEAN, STD, network, replaced
from xcam.comparison.causes import search

MISTAKES: list[tuple[str, str, str, Callable[[], nn.Module]]] = [
    ("rgb-bgr", "/conv1/Conv", "RGB against BGR", lambda: network(before=lambda x: x.flip(1))),
    (
        "input-scale",
        "/conv1/Conv",
        "multiplied by 1.004 (256 / 255)",
        lambda: network(before=lambda x: x * 255 / 256),
    ),
    ("input-scale", "/conv1/Conv", "by 0.5 and then 0.5 is added", lambda: network(before=lambda x: x * 2 - 1)),
    ("input-scale", "/conv1/Conv", "by 0.229, 0.224, 0.225 and", lambda: network(before=lambda x: (x - MEAN) / STD)),
    ("uneven-padding", "/down/down.1/Conv", "shifted", lambda: network(planted.unevenly_padded("down"))),
    ("uneven-padding", "/conv4/conv4.1/Conv", "shifted", lambda: network(planted.unevenly_padded("conv4"))),
    ("border-padding", "/conv4/Conv", "zeros", lambda: network(planted.padded("conv4", "reflect"))),
    ("border-padding", "/down/Conv", "zeros", lambda: network(planted.padded("down", "replicate"))),
    ("border-padding", "/conv1/Conv", "zeros", lambda: network(planted.padded("conv1", "circular"))),
    ("channel-order", "/conv4/Conv", "another order", lambda: network(planted.permuted("conv4"))),
    ("channel-order", "/conv1/Conv", "another order", lambda: network(planted.permuted("conv1"))),
    ("value-order", "/fc/Gemm", "another order", lambda: network(planted.permuted("fc"))),
    ("flattening-order", "/fc/Gemm", "order of flattening", lambda: network(planted.flattened_channels_last)),
    ("flipped-kernel", "/conv4/Conv", "along width and height", lambda: network(planted.flipped("conv4", 2, 3))),
    ("flipped-kernel", "/conv1/Conv", "along width", lambda: network(planted.flipped("conv1", 3))),
    ("flipped-kernel", "/down/Conv", "along height", lambda: network(planted.flipped("down", 2))),
    ("flipped-kernel", "/down/Conv", "exchanged", lambda: network(planted.transposed("down"))),
    (
        "batchnorm-statistics",
        "/conv2/Conv",
        "scale and offset",
        lambda: network(lambda n: setattr(n.bn2, "eps", 0.1)),
    ),
    (
        "batchnorm-statistics",
        "/conv1/Conv",
        "scale and offset",
        lambda: network(lambda n: n.bn1.running_var.mul_(torch.linspace(0.8, 1.3, 8))),
    ),
    ("missing-bias", "/down/Conv", "missing in the second", lambda: network(lambda n: n.down.bias.zero_())),
    ("missing-bias", "/fc/Gemm", "missing in the second", lambda: network(lambda n: n.fc.bias.zero_())),
    ("channel-scale", "/down/Conv", "another offset", lambda: network(lambda n: n.down.bias.mul_(1.5))),
    (
        "constant-factor",
        "/conv4/Conv",
        "multiplied by 1.3",
        lambda: network(lambda n: (n.conv4.weight.mul_(1.3), n.conv4.bias.mul_(1.3))),
    ),
    ("constant-channel", "/conv4/Conv", "channel 5 is constant", lambda: network(planted.pruned("conv4", 5))),
    ("constant-channel", "/conv2/Conv", "channel 3 is constant", lambda: network(planted.pruned("conv2", 3))),
    ("activation", "/act/Gelu", "exact GELU against tanh GELU", lambda: network(replaced("act", nn.GELU("tanh")))),
    ("activation", "/act/Mul", "exact GELU against SiLU", lambda: network(replaced("act", nn.SiLU()))),
    ("activation", "/relu1/.*", "ReLU against leaky ReLU 0.1", lambda: network(replaced("relu1", nn.LeakyReLU(0.1)))),
    ("last-activation", "/1_1/Softmax", "one more softmax", lambda: nn.Sequential(network(), *[nn.Softmax(1)] * 2)),
    ("pooling", "/pool1/.*", "maximum of 2×2 against mean", lambda: network(replaced("pool1", nn.AvgPool2d(2)))),
    ("pooling", "/pool2/.*", "mean of 3×3 against maximum", lambda: network(replaced("pool2", nn.MaxPool2d(3)))),
    (
        "interpolation",
        "/up/Resize",
        "nearest against linear",
        lambda: network(replaced("up", nn.Upsample(scale_factor=2, mode="bilinear"))),
    ),
    (
        "interpolation",
        "/up/Resize",
        "nearest against linear (aligned corners)",
        lambda: network(replaced("up", nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True))),
    ),
    ("missing-skip", "/relu3/Relu", "/pool1/MaxPool is missing in the second", lambda: network(skip=False)),
    ("exchanged-layers", "/conv2/Conv", "/conv3/Conv are", lambda: network(planted.exchanged("conv2", "conv3"))),
]


@cache
def first() -> Any:
    return xcam.load(network(), preprocess="unit", size=(planted.SIZE, planted.SIZE))


def divergence(net: nn.Module, folder: Path) -> Any:
    second = xcam.load(planted.exported(net, folder / "second.onnx"), preprocess="unit")
    return xcam.compare([first(), second], planted.image(), align=True).divergences[0]


@pytest.mark.slow
@pytest.mark.parametrize(("code", "layer", "text", "build"), MISTAKES, ids=[f"{m[0]} {m[2]}" for m in MISTAKES])
def test_a_mistake_is_proven(
    code: str, layer: str, text: str, build: Callable[[], nn.Module], tmp_path: Path
) -> None:
    result = divergence(build(), tmp_path)
    assert result.cause is not None
    assert (result.cause.code, result.cause.proof) == (code, "rerun"), result.cause
    assert text in result.cause.text
    assert result.cause.left <= 0.02
    assert result.layer == layer or result.layer.startswith(layer.removesuffix(".*"))
    assert result.notes == ()


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["conv1", "conv2", "down", "conv4", "fc"])
def test_an_unknown_mistake_is_not_named(layer: str, tmp_path: Path) -> None:
    result = divergence(network(planted.noisy(layer, 0.05)), tmp_path)
    assert result.layer is not None
    assert result.cause is None, result.cause


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_fits(dtype: torch.dtype, tmp_path: Path) -> None:
    cause = divergence(network(planted.rounded(dtype)), tmp_path).cause
    assert (cause.code, cause.proof) == ("half-precision", "fit")
    assert f"rounded to {str(dtype).removeprefix('torch.')}:" in cause.text


def test_a_check_that_fails_leaves_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(_: object) -> Any:
        raise MemoryError("no memory\nat all")

    checks = (("another order", fails), *search.CHECKS[1:])
    monkeypatch.setattr(search, "CHECKS", checks)
    result = divergence(network(lambda n: n.down.bias.zero_()), tmp_path)
    assert result.notes == ("the check for another order failed: MemoryError: no memory",)
    assert result.cause.code == "missing-bias"


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["bn1", "bn2"])
@pytest.mark.parametrize("kind", ["module", "file"])
def test_a_normalisation_in_training_mode(norm: str, kind: str, tmp_path: Path) -> None:
    net = network(lambda n: setattr(n, norm, planted.InTraining(getattr(n, norm))))
    if kind == "module":
        second = xcam.load(net, preprocess="unit", size=(planted.SIZE, planted.SIZE))
        result = xcam.compare([first(), second], planted.image(), align=True).divergences[0]
    else:
        result = divergence(net, tmp_path)
    assert (result.cause.code, result.cause.proof) == ("batchnorm-training", "rerun"), result.cause
    assert "in training mode in the second model" in result.cause.text
    assert "Export in evaluation mode" in result.cause.remedy


def test_a_dropout_in_training_mode() -> None:
    net = network(middle=lambda x: nn.functional.dropout(x, 0.3, True))
    second = xcam.load(net, preprocess="unit", size=(planted.SIZE, planted.SIZE))
    cause = xcam.compare([first(), second], planted.image(), align=True).divergences[0].cause
    assert cause is not None
    assert (cause.code, cause.proof) == ("dropout-training", "rerun")
    assert "two runs of the second model on the same image differ" in cause.text


def test_a_mirrored_input_is_the_reason_of_a_refusal(tmp_path: Path) -> None:
    net = network(before=lambda x: x.flip(-1))
    with pytest.raises(xcam.InputError, match=r"begins to differ at /conv1/Conv: the input: it is mirrored in one"):
        divergence(net, tmp_path)


@pytest.mark.slow
def test_a_folded_normalisation_is_compared_behind_it(tmp_path: Path) -> None:
    cause = divergence(network(lambda n: n.bn3.running_mean.add_(0.1)), tmp_path).cause
    assert (cause.code, cause.proof) == ("batchnorm-statistics", "rerun")
    assert "another offset" in cause.text
