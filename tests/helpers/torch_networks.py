"""The suite's networks in torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from xcam.testing import Network, Step


class Tokens(nn.Module):
    """[N, C, H, W] → [N, 1 + H·W, C], the class token first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        positions = x.flatten(2).transpose(1, 2)
        return torch.cat([self.first.expand(len(x), 1, -1), positions], dim=1)


class Attend(nn.Module):
    """x + softmax(q·kᵀ/√C)·v."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.zeros(channels, channels)) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (nn.functional.linear(x, w) for w in (self.q, self.k, self.v))
        return x + torch.softmax(q @ k.transpose(1, 2) / x.shape[-1] ** 0.5, dim=-1) @ v


class Do(nn.Module):
    """A module around a function of one or two values."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        return self.function(*values)


def part(step: Step) -> nn.Module:
    match step.op:
        case "conv":
            out, into, kernel, _ = step.weights[0].shape
            return nn.Conv2d(into, out, kernel, padding=kernel // 2)
        case "dense":
            return nn.Linear(*reversed(step.weights[0].shape))
        case "norm":
            return nn.LayerNorm(len(step.weights[0]), eps=1e-6)
        case "tokens":
            return Tokens(len(step.weights[0]))
        case "attend":
            return Attend(len(step.weights[0]))
    modules = {
        "relu": nn.ReLU(inplace=True),
        "tanh": nn.Tanh(),
        "pool": nn.MaxPool2d(2),
        "mean": Do(lambda x: x.mean(dim=(2, 3))),
        "add": Do(torch.add),
        "concat": Do(lambda a, b: torch.cat([a, b], dim=1)),
        "softmax": nn.Softmax(dim=1),
        "first": Do(lambda x: x[:, 0]),
    }
    return modules[step.op]


class Net(nn.Module):
    """A network of the suite: one module per step, `backbone/conv1` inside a module `backbone`."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        for step in network.steps:
            module = part(step)
            with torch.no_grad():
                for parameter, value in zip(module.parameters(), step.weights, strict=True):
                    parameter.copy_(torch.from_numpy(value))
            scope, _, name = step.name.rpartition("/")
            if scope and not hasattr(self, scope):
                self.add_module(scope, nn.Module())
            (getattr(self, scope) if scope else self).add_module(name, module)

    def forward(self, x: torch.Tensor) -> Any:
        values = {"x": x}
        for step in self.network.steps:
            module = self.get_submodule(step.name.replace("/", "."))
            values[step.name] = module(*(values[name] for name in step.inputs))
        outputs = {name: values[name] for name in self.network.outputs}
        return outputs if len(outputs) > 1 else next(iter(outputs.values()))
