"""The demo network in torch."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from xcam.models import demo


def build() -> nn.Module:
    """Return the trained demo network. A convolution and its ReLU are one part, with the name of the step."""
    network = demo.network()
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for step in network.steps:
        match step:
            case demo.Conv(name, filters, kernel):
                conv = nn.Conv2d(channels, filters, kernel, padding=kernel // 2)
                _fill(conv, network, name)
                parts[name] = nn.Sequential(conv, nn.ReLU())
                channels = filters
            case demo.Pool(name):
                parts[name] = nn.MaxPool2d(2)
            case demo.Mean(name):
                parts[name] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            case demo.Dense(name, units):
                dense = nn.Linear(channels, units)
                _fill(dense, network, name)
                parts[name] = nn.Sequential(dense, nn.Softmax(dim=1))
    return nn.Sequential(parts).eval()


def _fill(layer: nn.Conv2d | nn.Linear, network: demo.Network, name: str) -> None:
    kernel, bias = network.weights[name]
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(kernel))
        assert layer.bias is not None
        layer.bias.copy_(torch.from_numpy(bias))
