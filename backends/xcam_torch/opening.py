"""One forward pass of a module, cut open at a layer: the layer's value becomes a leaf, and only what follows it is recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xcam.errors import ModelError
from xcam_torch.guard import hooked
from xcam_torch.outputs import EndActivation, first_float, replaced, tensors
from xcam_torch.recording import Call, Recording


@dataclass
class Opened:
    """A forward pass, cut open."""

    leaf: Tensor
    """The layer's value, as the layer itself keeps it."""
    outputs: dict[str, Tensor]


def cut_open(
    module: nn.Module, x: Tensor, call: Call, recording: Recording, name: str, put: Tensor | None = None
) -> Opened:
    """Stop differentiating at the layer: its value becomes a leaf, or `put` takes its place.

    Runs under `guard.running`. Raises ModelError where the pass never calls the layer.
    """
    count = 0
    leaf: Tensor | None = None

    def after(_: nn.Module, value: Any) -> Any:
        nonlocal count, leaf
        count += 1
        if count - 1 != call.index:
            return None
        tensor = first_float(value)
        assert tensor is not None
        leaf = (tensor if put is None else put.to(tensor)).detach().requires_grad_()
        torch.set_grad_enabled(True)  # from here on; the caller's own mode comes back with `undisturbed`
        return replaced(value, tensor, leaf.clone())  # a copy: what follows may write into it

    with hooked([call.module], after):
        outputs = forward(module, x, recording, name)
        if leaf is not None and not any(output.requires_grad for output in outputs.values()):
            # A part of the model turned gradients off and on again behind the layer, and so back to where they were
            # outside: off. Outside they are on in this second try, which costs the memory of a whole graph.
            count = 0
            with torch.enable_grad():
                outputs = forward(module, x, recording, name)
    if leaf is None:
        raise skipped(call, count)
    return Opened(leaf, outputs)


def forward(module: nn.Module, x: Tensor, recording: Recording, name: str) -> dict[str, Tensor]:
    """The outputs of one pass, as logits where an end was seen."""
    if not any(recording.activations.values()):  # watching every function costs time: only where there is need
        return tensors(module(x), name)
    with EndActivation() as end:
        said = tensors(module(x), name)
    return {key: end.logits(output)[0] for key, output in said.items()}


def skipped(call: Call, count: int) -> ModelError:
    """The error for a layer that was called `count` times, and more often when the layers were listed."""
    return ModelError(
        f"the forward pass called {call.layer.name!r} {count} times, and {call.of} times when its layers were "
        "listed: it depends on the input; explain a module that is always called"
    )
