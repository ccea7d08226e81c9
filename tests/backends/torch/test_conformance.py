"""The conformance suite, for torch: modules in training mode, with in-place ReLUs, and under the caller's modes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from torch_networks import Net
from xcam.testing import Conformance, Network


def snapshot(native: nn.Module) -> Any:
    """Return all state that a call must not change: weights, gradients, modes, flags and hooks."""
    weights = [(name, p.detach().numpy().tobytes(), p.requires_grad, p.grad) for name, p in native.named_parameters()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in native.modules()]
    modes = [(m.training, sorted(vars(m))) for m in native.modules()]
    whole = nn.modules.module
    return (
        weights,
        hooks,
        modes,
        len(whole._global_forward_hooks),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    )


class TestTorch(Conformance):
    def build(self, network: Network) -> nn.Module:
        return Net(network).train()

    def layer(self, name: str) -> str:
        return name.replace("/", ".")

    def snapshot(self, native: nn.Module) -> Any:
        return snapshot(native)
