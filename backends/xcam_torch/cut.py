"""One forward pass of a module, opened at a layer: the layer's value becomes a leaf of torch's graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xcam.errors import ModelError
from xcam_torch.calls import Call
from xcam_torch.guard import hooked
from xcam_torch.outputs import EndActivation, dequantized, first_float, replaced, requantized, tensors


@dataclass
class Cut:
    """The result of a forward pass that was opened at a layer."""

    leaf: Tensor
    """The layer's value, in the layer's own layout."""
    outputs: dict[str, Tensor]


@dataclass(frozen=True)
class Forward:
    """A module's forward pass: its outputs by name, as logits where an output activation is cut off."""

    module: nn.Module
    name: str
    output_activations: dict[str, str | None]

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Return the outputs."""
        if not any(self.output_activations.values()):  # recording every function costs time
            return tensors(self.module(x), self.name)
        with EndActivation() as end:
            outputs = tensors(self.module(x), self.name)
        return {key: end.logits(output)[0] for key, output in outputs.items()}

    def cut(self, x: Tensor, call: Call, replacement: Tensor | None = None) -> Cut:
        """Run with the layer's value, or `replacement`, as the leaf from which torch records its graph.

        Call it under `guard.running`.

        Raises:
            ModelError: the pass does not call the layer.
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
            current = dequantized(tensor)
            leaf = (current if replacement is None else replacement.to(current)).detach()
            if call.layer.differentiable and not leaf.is_inference():
                leaf.requires_grad_()
                torch.set_grad_enabled(True)  # `undisturbed` restores the caller's own mode
            # A copy: later operations may write into it.
            return replaced(value, tensor, requantized(leaf.clone(), tensor))

        with hooked([call.module], after):
            outputs = self(x)
            detached = not any(output.requires_grad for output in outputs.values())
            if leaf is not None and call.layer.differentiable and detached:
                # A part behind the layer switched gradients off, and then restored the outer mode, which is off.
                # The second run has them on outside, too, which costs the memory of a whole graph.
                count = 0
                with torch.enable_grad():
                    outputs = self(x)
        if leaf is None:
            raise not_called(call, count)
        return Cut(leaf, outputs)


def not_called(call: Call, count: int) -> ModelError:
    """Return the error for a layer that was called `count` times, and more often when the layers were recorded."""
    return ModelError(
        f"cannot explain layer {call.layer.name!r}: the forward pass called it {count} times, and {call.calls} times "
        "when its layers were recorded, so it depends on the input; choose a module that is always called"
    )
