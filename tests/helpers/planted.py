"""A small network of torch with planted mistakes: copies of one network, each with one change, as conversions make it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

SIZE = 36
MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


def image() -> np.ndarray:
    """Return a smooth image without symmetries."""
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    smooth = (cv2.GaussianBlur(noise, (5, 5), 1.2).astype(float) - 128) * 3 + 128
    return np.clip(smooth + np.linspace(-60, 60, SIZE)[:, None, None], 0, 255).astype(np.uint8)


class Net(nn.Module):
    """Convolutions with and without batch normalisation, a residual block, an enlargement, two poolings, a vector."""

    def __init__(
        self,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        skip: bool = True,
        middle: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        super().__init__()
        self.before, self.skip, self.middle = before, skip, middle
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu1: nn.Module = nn.ReLU()
        self.pool1: nn.Module = nn.MaxPool2d(2)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.relu2: nn.Module = nn.ReLU()
        self.conv3, self.bn3, self.relu3 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.down: nn.Module = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.act: nn.Module = nn.GELU()
        self.up: nn.Module = nn.Upsample(scale_factor=2, mode="nearest")
        self.conv4: nn.Module = nn.Conv2d(12, 12, 3, padding=1)
        self.relu4 = nn.ReLU()
        self.pool2: nn.Module = nn.AvgPool2d(3)
        self.flat, self.fc = nn.Flatten(), nn.Linear(12 * 6 * 6, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.pool1(self.relu1(self.bn1(self.conv1(self.before(x)))))
        branch = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(x)))))
        x = self.relu3(branch + x if self.skip else branch)
        x = self.up(self.act(self.down(x)))
        x = self.middle(self.relu4(self.conv4(x)))
        return self.fc(self.flat(self.pool2(x)))


@cache
def weights() -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        net = Net().train()
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.normal_(part.bias, 0, 0.3)
        for k in range(30):
            net(torch.rand(8, 3, SIZE, SIZE) * (0.5 + k % 3 / 3))
        return net.state_dict()


def network(change: Callable[[Any], object] | None = None, **options: Any) -> Net:
    """Return the network in evaluation mode, with a change of its parts or weights."""
    net = Net(**options)
    net.load_state_dict(weights())
    net.eval()
    if change is not None:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(3)
            change(net)
    return net


def exported(net: nn.Module, path: Path, **options: Any) -> Path:
    """Write a network as an ONNX file, with torch's older exporter, which folds batch normalisations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (torch.rand(1, 3, SIZE, SIZE),), str(path), dynamo=False, **options)
    return path


def permuted(name: str) -> Callable[[Any], object]:
    def change(net: Any) -> None:
        part = getattr(net, name)
        order = torch.randperm(len(part.weight))
        part.weight.copy_(part.weight[order].clone())
        part.bias.copy_(part.bias[order].clone())

    return change


def flipped(name: str, *axes: int) -> Callable[[Any], object]:
    return lambda net: getattr(net, name).weight.copy_(torch.flip(getattr(net, name).weight, axes))


def transposed(name: str) -> Callable[[Any], object]:
    return lambda net: getattr(net, name).weight.copy_(getattr(net, name).weight.transpose(2, 3).clone())


def exchanged(one: str, other: str) -> Callable[[Any], object]:
    def change(net: Any) -> None:
        first, second = getattr(net, one).weight, getattr(net, other).weight
        kept = first.clone()
        first.copy_(second)
        second.copy_(kept)

    return change


def replaced(name: str, part: nn.Module) -> Callable[[Any], object]:
    return lambda net: setattr(net, name, part)


def padded(name: str, mode: str) -> Callable[[Any], object]:
    def change(net: Any) -> None:
        part = getattr(net, name)
        part.padding_mode, part._reversed_padding_repeated_twice = mode, [1, 1, 1, 1]

    return change


def unevenly_padded(name: str) -> Callable[[Any], object]:
    def change(net: Any) -> None:
        part = getattr(net, name)
        part.padding = (0, 0)
        pads = (0, 1, 0, 1) if part.stride[0] == 2 else (0, 2, 0, 2)
        setattr(net, name, nn.Sequential(nn.ZeroPad2d(pads), part))

    return change


def flattened_channels_last(net: Any) -> None:
    weight = net.fc.weight
    weight.copy_(weight.reshape(5, 12, 6, 6).permute(0, 2, 3, 1).reshape(5, -1).clone())


def pruned(name: str, channel: int) -> Callable[[Any], object]:
    def change(net: Any) -> None:
        part = getattr(net, name)
        part.weight[channel] = 0
        if part.bias is not None:
            part.bias[channel] = 0

    return change


def noisy(name: str, amount: float) -> Callable[[Any], object]:
    """Return a change that no known cause explains."""
    return lambda net: getattr(net, name).weight.add_(amount * torch.randn_like(getattr(net, name).weight))


def rounded(dtype: torch.dtype) -> Callable[[Any], object]:
    return lambda net: [p.copy_(p.to(dtype).float()) for p in net.parameters()]


class InTraining(nn.Module):
    """A batch normalisation in training mode."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, None, None, self.norm.weight, self.norm.bias, True)
