"""The demo network in torch."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from xcam.models import demo
from xcam.models.demo import detector


def build() -> nn.Module:
    """Return the trained demo network. A convolution and its ReLU are one part, with the name of the step."""
    return nn.Sequential(_parts(demo.network())).eval()


class Detector(nn.Module):
    """The trained demo detector: see xcam.models.demo.detector."""

    def __init__(self) -> None:
        """Fill the parts with the trained weights."""
        super().__init__()
        network = detector.network()
        for name, part in _parts(network).items():
            self.add_module(name, part)
        self.boxes, self.classes = (_head(network, name) for name in (detector.BOXES, detector.CLASSES))
        cells = torch.arange(network.size[0] // detector.STRIDE) + 0.5
        self.register_buffer("middles", torch.stack(torch.meshgrid(cells, cells, indexing="xy")), persistent=False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, 4 + 6, 256]."""
        for step in detector.STEPS:
            x = self.get_submodule(step.name)(x)
        offsets, sizes = self.boxes(x).split(2, 1)
        centres = detector.STRIDE * (self.middles + offsets)
        return torch.cat([centres, detector.SIDE * sizes.exp(), self.classes(x).sigmoid()], 1).flatten(2)


def _head(network: demo.Network, name: str) -> nn.Conv2d:
    kernel, _ = network.weights[name]
    head = nn.Conv2d(kernel.shape[1], kernel.shape[0], 1)
    _fill(head, network, name)
    return head


def _parts(network: demo.Network) -> OrderedDict[str, nn.Module]:
    """Return the steps of a network."""
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
    return parts


def _fill(layer: nn.Conv2d | nn.Linear, network: demo.Network, name: str) -> None:
    kernel, bias = network.weights[name]
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(kernel))
        assert layer.bias is not None
        layer.bias.copy_(torch.from_numpy(bias))
