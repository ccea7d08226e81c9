"""The small networks of the golden values, for `make.py` and the tests.

`layer` is the explained layer, of 8×12 positions for an image of 20×28 pixels. The module imports torch only, so that
it runs in the environment of the other packages, without xcam.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def build(case: str, weights: Mapping[str, Any]) -> nn.Module:
    """Return the network of a case with its stored weights, in evaluation mode.

    pooled: values ≥ 0, then global average pooling and one Linear: the gradient is the same at all positions.
    signed: values of both signs (Tanh), then a head with kinks (ReLU).
    smooth: values ≥ 0, then a head that is smooth (Softplus, Tanh) and has a second derivative.
    small, large: `smooth` with a last Linear 1e-4 and 100 times as large, and with it every gradient.
    """
    wide = case == "pooled"
    first, second = (8, 12) if wide else (6, 8)
    signed = case == "signed"
    trunk: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(3, first, 3, padding=1)),
        ("act1", nn.Tanh() if signed else nn.ReLU()),
        ("pool", nn.AvgPool2d(2) if signed else nn.MaxPool2d(2)),
        ("conv2", nn.Conv2d(first, second, 3)),
        ("layer", nn.Tanh() if signed else nn.ReLU()),
    ]
    head: list[tuple[str, nn.Module]] = [
        ("conv3", nn.Conv2d(second, 6, 3, stride=2)),
        ("act3", nn.ReLU() if signed else nn.Softplus()),
        ("flatten", nn.Flatten()),
        ("fc1", nn.Linear(90, 8)),
        ("act4", nn.ReLU() if signed else nn.Tanh()),
        ("fc2", nn.Linear(8, 5)),
    ]
    if wide:
        head = [("gap", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("fc2", nn.Linear(second, 5))]
    module = nn.Sequential(OrderedDict(trunk + head)).eval()
    module.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    return module
