"""`blame` from torch to ONNX: mistakes planted into small networks of residual blocks, and of dense ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import xcam
from planted import image
from xcam_torch.export import to_onnx

pytestmark = pytest.mark.frameworks
SIZE = (36, 36)
Fault = Callable[[nn.Module], Any]


class Residual(nn.Module):
    """A residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act2(x + self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x))))))


class Dense(nn.Module):
    """A block whose new channels are added to those of its input; the last convolution returns to their number."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(channels + 6, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act2(self.bn2(self.conv2(torch.cat([x, self.act1(self.bn1(self.conv1(x)))], 1))))


class Net(nn.Module):
    def __init__(self, block: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.stem_act = nn.ReLU()
        self.block1, self.block2, self.block3 = block(8), block(8), block(8)
        self.pool, self.flat, self.fc = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.stem_act(self.stem(x)))))
        return self.fc(self.flat(self.pool(x)))


@torch.no_grad()
def network(block: Callable[[int], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        net = Net(block).eval()
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.3)
                part.running_var.uniform_(0.5, 1.5)
                part.weight.uniform_(0.7, 1.3)
                part.bias.normal_(0, 0.3)
    return net


def scaled(name: str) -> Fault:
    return lambda net: net.get_submodule(name).weight.mul_(1.05)


def turned(name: str) -> Fault:
    return lambda net: net.get_submodule(name).weight.copy_(net.get_submodule(name).weight.flip(-1))


def statistics(name: str) -> Fault:
    return lambda net: net.get_submodule(name).running_var.mul_(1.4)


def without_bias(name: str) -> Fault:
    return lambda net: net.get_submodule(name).bias.zero_()


FAULTS: dict[str, tuple[list[Fault], set[str]]] = {
    "none": ([], set()),
    "first": ([without_bias("stem")], {"stem"}),
    "inside": ([turned("block2.conv1")], {"block2"}),
    "last": ([without_bias("fc")], {"fc"}),
    "apart": ([scaled("block1.conv2"), statistics("block3.bn1")], {"block1", "block3"}),
    "adjacent": ([scaled("block2.conv2"), turned("block3.conv1")], {"block2", "block3"}),
    "three": ([without_bias("stem"), statistics("block2.bn2"), without_bias("fc")], {"stem", "block2", "fc"}),
}


def compared(block: Callable[[int], nn.Module], faults: list[Fault], path: Path, **options: Any) -> xcam.Blame:
    net = network(block)
    spoilt = copy.deepcopy(net)
    with torch.no_grad():
        for fault in faults:
            fault(spoilt)
    to_onnx(spoilt, path, SIZE)
    models = [xcam.load(net, preprocess="torch", size=SIZE), xcam.load(path, preprocess="torch")]
    return xcam.blame(models, image(), **options)


@pytest.mark.parametrize("block", [Residual, Dense])
@pytest.mark.parametrize("name", FAULTS)
def test_each_planted_mistake_is_named_within_its_block(
    name: str, block: Callable[[int], nn.Module], tmp_path: Path
) -> None:
    faults, expected = FAULTS[name]
    result = compared(block, faults, tmp_path / "spoilt.onnx", causes=False)
    assert {c.first.split(".")[0] for c in result.named} == expected
    scores, heatmap = result.sums
    assert scores == pytest.approx(result.scores.mean, rel=0.05)
    assert heatmap == pytest.approx(result.heatmap.mean, rel=0.05, abs=1e-6)


def test_estimates_rank_a_quantised_network_as_swaps_do(tmp_path: Path) -> None:
    from scipy import stats

    def quantised(net: nn.Module) -> None:
        for part in net.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                step = part.weight.abs().amax(dim=tuple(range(1, part.weight.ndim)), keepdim=True) / 31
                part.weight.copy_((part.weight / step).round() * step)

    exact, fast = (
        compared(Residual, [quantised], tmp_path / "spoilt.onnx", fast=fast, causes=False) for fast in (False, True)
    )
    values = [[abs(c.scores.mean) for c in result.stretches] for result in (exact, fast)]
    assert stats.spearmanr(*values).statistic > 0.8
    assert exact.named == []


def test_a_cause_is_proven(tmp_path: Path) -> None:
    result = compared(Residual, [without_bias("fc")], tmp_path / "spoilt.onnx")
    (only,) = result.named
    assert only.cause is not None
    assert (only.cause.code, only.cause.proof) == ("missing-bias", "rerun")
    np.testing.assert_allclose(result.share(only), 1, atol=0.01)
