"""The calls of a module's forward pass, in execution order: shape, layout, and whether the outputs depend on them.

They are recorded in one forward and one backward pass on noise, in evaluation mode. All hooks are removed afterwards.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xcam.contract import Layer, Layout
from xcam.contract.layouts import shape_to_channels_first
from xcam_torch.guard import hooked, undisturbed
from xcam_torch.outputs import EndActivation, first_float, tensors

CHANNELS_FIRST = ("Conv", "BatchNorm", "InstanceNorm", "GroupNorm", "MaxPool", "AvgPool")
"""Kinds (by a part of their name) whose values are channels first."""


@dataclass(frozen=True)
class Call:
    """One call of one module during the forward pass."""

    module: nn.Module
    index: int
    """Index of this call among the module's calls."""
    calls: int
    """Number of the module's calls."""
    layer: Layer


@dataclass
class _Seen:
    start: int
    name: str
    module: nn.Module
    index: int
    value: Tensor
    version: int
    """Increased by each write in place."""


def module_names(model: nn.Module) -> dict[nn.Module, str]:
    """Return each module's path, without the wrappers that torch.compile puts around a module."""
    return {
        module: ".".join(part for part in name.split(".") if part != "_orig_mod")
        for name, module in model.named_modules()
        if name and not hasattr(module, "_orig_mod")
    }


def record(
    model: nn.Module, x: Tensor, override: Layout | None = None
) -> tuple[dict[str, Call], dict[str, str | None]]:
    """Run `model` on `x` once and return its calls, and the activation that is cut off each output, by name.

    Args:
        model: the module.
        x: noise [N, C, *spatial].
        override: the layout of every layer, where the caller gives one.
    """
    names = module_names(model)
    starts = itertools.count()
    open_calls: list[int] = []
    seen: list[_Seen] = []
    count: dict[nn.Module, int] = {}
    end = EndActivation()

    def before(module: nn.Module) -> None:
        open_calls.append(next(starts))

    def after(module: nn.Module, value: Any) -> None:
        start = open_calls.pop()
        tensor = first_float(value)
        if tensor is not None:
            version = 0 if tensor.is_inference() else tensor._version  # inference tensors have no counter
            seen.append(_Seen(start, names[module], module, count.get(module, 0), tensor, version))
        count[module] = count.get(module, 0) + 1

    with undisturbed(model), torch.enable_grad(), hooked(names, after, before):
        source = x.detach().requires_grad_()
        with end:
            outputs = tensors(model(source.clone()))
        logits = {name: end.logits(output) for name, output in outputs.items()}
    with undisturbed(model), torch.enable_grad():  # without the hooks: checkpoints call their modules again
        gradients = _gradients([output for output, _ in logits.values()], [call.value for call in seen])
    final = {id(t) for t in outputs.values()} | {id(output) for output, _ in logits.values()}
    reach = {id(call): _reaches(g, call.value, x) for call, g in zip(seen, gradients, strict=True)}
    ordered = _ordered(seen)
    calls = {}
    for call, layout in zip(ordered, _layouts(ordered, x, override), strict=True):
        last = call.index == count[call.module] - 1
        name = call.name if last else f"{call.name}#{call.index}"
        layer = Layer(
            name=name,
            kind=type(call.module).__name__,
            shape=shape_to_channels_first(call.value.shape[1:], layout),
            layout=layout,
            is_output=id(call.value) in final,
            folds_batch=call.value.ndim > 2 and len(call.value) != len(x),
            reaches_output=reach[id(call)],
        )
        calls[name] = Call(call.module, call.index, count[call.module], layer)
    return calls, {name: kind for name, (_, kind) in logits.items()}


def _ordered(seen: Sequence[_Seen]) -> list[_Seen]:
    """Return the calls in the order in which they ended; a container that returns its last part's value comes first.

    (Except where it wrote to the value in place: `F.relu(norm(conv(x)), inplace=True)`.)
    """
    order: list[int] = []
    for end, call in enumerate(seen):
        same = [i for i in range(end) if seen[i].value is call.value and seen[i].version == call.version]
        parts = [i for i in same if seen[i].start > call.start]
        if not parts:
            order.append(end)
            continue
        last = max(parts, key=lambda i: seen[i].start)  # the innermost of those that ended last
        around = [i for i in parts if i >= last]  # this part, and the containers around it within the current one
        order.insert(min(order.index(i) for i in around), end)
    return [seen[i] for i in order]


def _gradients(outputs: Sequence[Tensor], values: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Return the gradient of a fixed random mixture of the outputs at each value, None where no path leads to it."""
    generator = torch.Generator().manual_seed(0)
    score = sum(
        (output.float() * torch.rand(output.shape, generator=generator).to(output.device)).sum()
        for output in outputs
        if output.requires_grad
    )
    differentiable = [value for value in values if value.requires_grad]
    if not isinstance(score, Tensor) or not differentiable:
        return [None] * len(values)
    try:
        gradients = iter(torch.autograd.grad(score, differentiable, allow_unused=True))
    except RuntimeError:  # reentrant checkpoints refuse gradients at inner values: assume that all reach the outputs
        return [torch.ones(()) for _ in values]
    return [next(gradients) if value.requires_grad else None for value in values]


def _reaches(gradient: Tensor | None, value: Tensor, x: Tensor) -> bool:
    """Return whether the outputs depend on the value; for tokens, whether they depend on most of them.

    Behind the last attention of a vision transformer only the class token does: a map there would be blank.
    """
    if not value.requires_grad:
        return True  # computed where the model turns gradients off: a later part may turn them on again
    if gradient is None:
        return False
    if gradient.ndim == 3 and x.ndim == 4 and value.shape[1] > 1 and gradient.any():
        return bool((gradient != 0).any(dim=2).float().mean() > 0.5)
    return True  # also where all of the gradient is zero: some libraries initialise a head with zeros


def _layouts(calls: Sequence[_Seen], x: Tensor, override: Layout | None) -> list[Layout]:
    """Return the layout of each call's value.

    Rank 3 in a model of images: tokens [N, T, C]. Rank 4: the layout that the module itself implies (convolutions are
    channels first; Linear and LayerNorm work on the last axis and are channels last); for other modules that of the
    nearest earlier value of the same shape whose module implied one, else the axes whose ratio is the image's.
    """
    layouts: list[Layout] = []
    decided: dict[torch.Size, Layout] = {}
    for call in calls:
        shape = call.value.shape
        layout: Layout = "channels_first"
        if override is not None and len(shape) == (3 if override == "tokens" else max(3, len(shape))):
            layout = override
        elif len(shape) == 3 and x.ndim == 4:
            layout = "tokens"
        elif len(shape) == 4 and x.ndim == 4:
            implied = _implied_layout(call.module)
            if implied:
                decided[shape] = implied
            layout = implied or decided.get(shape) or _by_ratio(shape, x)
        layouts.append(layout)
    return layouts


def _implied_layout(module: nn.Module) -> Layout | None:
    kind = type(module).__name__
    if isinstance(module, nn.Linear | nn.LayerNorm) and kind != "LayerNorm2d":
        return "channels_last"
    return "channels_first" if any(part in kind for part in CHANNELS_FIRST) else None


def _by_ratio(shape: torch.Size, x: Tensor) -> Layout:
    height, width = x.shape[2:]
    first = abs(shape[2] * width - shape[3] * height) / max(shape[2] * width, 1)
    last = abs(shape[1] * width - shape[2] * height) / max(shape[1] * width, 1)
    return "channels_last" if last < first else "channels_first"
