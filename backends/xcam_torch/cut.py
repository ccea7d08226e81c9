"""One forward pass of a module, opened at layers: from the earliest one on torch records its graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xcam.errors import ModelError
from xcam_torch.calls import Call
from xcam_torch.guard import hooked
from xcam_torch.outputs import EndActivation, dequantized, first_float, replaced, requantized, tensors

Replacement = Tensor | Callable[[Tensor], Tensor]


@dataclass
class Cut:
    """The result of a forward pass that was opened at layers."""

    values: dict[str, Tensor]
    """The value of each layer by name, in its own layout."""
    outputs: dict[str, Tensor]


@dataclass(frozen=True)
class Forward:
    """A module's forward pass: its outputs by name, as logits where an output activation is cut off."""

    module: nn.Module
    name: str
    output_activations: dict[str, str | None]
    calls: Mapping[str, Call]

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Return the outputs."""
        if not any(self.output_activations.values()):  # recording every function costs time
            return tensors(self.module(x), self.name)
        with EndActivation() as end:
            outputs = tensors(self.module(x), self.name)
        return {key: end.logits(output)[0] for key, output in outputs.items()}

    def cut(
        self,
        x: Tensor,
        calls: Sequence[Call],
        replacements: Mapping[str, Replacement] | None = None,
        differentiate: bool = True,
    ) -> Cut:
        """Run with torch's graph from the earliest of some layers on. Call it under `guard.running`.

        Args:
            x: the input.
            calls: the calls of the layers.
            replacements: values, or functions of the value, that replace those of calls, by the name of the layer. They
                are constants: no gradient passes.
            differentiate: whether torch records its graph.

        Raises:
            ModelError: the pass does not call a layer.
        """
        replacements = replacements or {}
        count: dict[nn.Module, int] = {}
        values: dict[str, Tensor] = {}
        opened = {call.layer.name for call in calls if differentiate and call.layer.differentiable}
        hooks: dict[tuple[nn.Module, int], Call] = {}
        for call in (*calls, *(self.calls[name] for name in replacements)):
            hooks[call.module, call.index] = call

        def after(module: nn.Module, value: Any) -> Any:
            index = count[module] = count.get(module, -1) + 1
            call = hooks.get((module, index))
            if call is None:
                return None
            tensor = first_float(value)
            assert tensor is not None
            current, name = dequantized(tensor), call.layer.name
            if name in replacements:
                constants = replacements[name]
                current = (constants(current.detach()) if callable(constants) else constants).to(current).detach()
            if name in opened and not current.is_inference():
                if not values or not current.requires_grad:  # else it is computed from an earlier one of the layers
                    current = current.detach().requires_grad_()
                torch.set_grad_enabled(True)  # `undisturbed` restores the caller's own mode
            # Copies: later operations may write into them.
            values[name] = current.clone() if current.requires_grad and not current.is_leaf else current
            return replaced(value, tensor, requantized(values[name].clone(), tensor))

        with hooked({call.module for call in hooks.values()}, after):
            outputs = self(x)
            detached = not any(output.requires_grad for output in outputs.values())
            if values and opened and detached:
                # A part behind the layer switched gradients off, and then restored the outer mode, which is off.
                # The second run has them on outside, too, which costs the memory of a whole graph.
                count.clear()
                values.clear()
                with torch.enable_grad():
                    outputs = self(x)
        for call in hooks.values():
            if call.layer.name not in values:
                raise not_called(call, count.get(call.module, -1) + 1)
        return Cut({call.layer.name: values[call.layer.name] for call in calls}, outputs)


def not_called(call: Call, count: int) -> ModelError:
    """Return the error for a layer that was called `count` times, and more often when the layers were recorded."""
    return ModelError(
        f"cannot explain layer {call.layer.name!r}: the forward pass called it {count} times, and {call.calls} times "
        "when its layers were recorded, so it depends on the input; choose a module that is always called"
    )
