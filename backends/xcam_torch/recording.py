"""Looking through a module once: every call in execution order, its shape, its layout, and whether the output needs it.

One forward and one backward pass over noise, in evaluation mode. Its hooks are gone afterwards.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from xcam.contract import Layer, Layout
from xcam_torch.guard import hooked, undisturbed
from xcam_torch.outputs import EndActivation, first_float, tensors

if TYPE_CHECKING:
    from xcam_torch.tail import Tail

CHANNELS_FIRST = ("Conv", "BatchNorm", "InstanceNorm", "GroupNorm", "MaxPool", "AvgPool")
"""Kinds (by a part of their name) whose values are channels first."""


@dataclass(frozen=True)
class Call:
    """One call of one module during the forward pass."""

    module: nn.Module
    index: int
    """Which of the module's calls, from 0."""
    of: int
    """How many calls there are."""
    layer: Layer


@dataclass(frozen=True)
class Recording:
    """What one look through a module found."""

    calls: dict[str, Call]
    activations: dict[str, str | None]
    """What is cut off each output."""
    tails: dict[str, Tail | None] = field(default_factory=dict)
    """Captured tails by layer; None where one cannot be captured. They go when the recording goes."""


@dataclass
class _Seen:
    start: int
    name: str
    module: nn.Module
    index: int
    value: Tensor
    version: int
    """Goes up with each write in place."""


def module_names(model: nn.Module) -> dict[nn.Module, str]:
    """Each module's path. Wrappers that torch.compile and DataParallel put around a module leave no part in it."""
    return {
        module: ".".join(part for part in name.split(".") if part != "_orig_mod")
        for name, module in model.named_modules()
        if name and not hasattr(module, "_orig_mod")
    }


def record(model: nn.Module, x: Tensor, override: Layout | None = None) -> Recording:
    """Run `model` on `x` once and note its calls. `override` is the layout of every layer, when the user says so."""
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
            version = 0 if tensor.is_inference() else tensor._version  # made in inference mode, it counts none
            seen.append(_Seen(start, names[module], module, count.get(module, 0), tensor, version))
        count[module] = count.get(module, 0) + 1

    with undisturbed(model), torch.enable_grad(), hooked(names, after, before):
        source = x.detach().requires_grad_()
        with end:
            said = tensors(model(source.clone()))
        ends = {name: end.logits(output) for name, output in said.items()}
    with undisturbed(model), torch.enable_grad():  # without the hooks: checkpoints call their modules again
        gradients = _gradients([logits for logits, _ in ends.values()], [call.value for call in seen])
    final = {id(t) for t in said.values()} | {id(logits) for logits, _ in ends.values()}
    reach = {id(call): _reaches(g, call.value, x) for call, g in zip(seen, gradients, strict=True)}
    ordered = _ordered(seen)
    layouts = _layouts(ordered, x, override)
    calls = {}
    for call, layout in zip(ordered, layouts, strict=True):
        last = call.index == count[call.module] - 1
        name = call.name if last else f"{call.name}#{call.index}"
        shape = list(call.value.shape[1:])
        layer = Layer(
            name=name,
            kind=type(call.module).__name__,
            shape=tuple([shape[-1], *shape[:-1]] if layout != "channels_first" and shape else shape),
            layout=layout,
            is_output=id(call.value) in final,
            folds_batch=call.value.ndim > 2 and len(call.value) != len(x),
            reaches_output=reach[id(call)],
        )
        calls[name] = Call(call.module, call.index, count[call.module], layer)
    return Recording(calls, {name: kind for name, (_, kind) in ends.items()})


def _ordered(seen: Sequence[_Seen]) -> list[_Seen]:
    """Calls in the order in which they ended; but a container that hands on its last part's value stands before it.

    (Not where it wrote to the value in place first: `F.relu(norm(conv(x)), inplace=True)`.)
    """
    order: list[int] = []
    for end, call in enumerate(seen):
        same = [i for i in range(end) if seen[i].value is call.value and seen[i].version == call.version]
        parts = [i for i in same if seen[i].start > call.start]
        if not parts:
            order.append(end)
            continue
        last = max(parts, key=lambda i: seen[i].start)  # the innermost of those that ended last
        around = [i for i in parts if i >= last]  # it, and the containers between it and this one
        order.insert(min(order.index(i) for i in around), end)
    return [seen[i] for i in order]


def _gradients(outputs: Sequence[Tensor], values: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """The gradient of a fixed random mixture of the outputs at each value, None where there is no path."""
    generator = torch.Generator().manual_seed(0)
    score = sum(
        (output.float() * torch.rand(output.shape, generator=generator).to(output.device)).sum()
        for output in outputs
        if output.requires_grad
    )
    wanted = [value for value in values if value.requires_grad]
    if not isinstance(score, Tensor) or not wanted:
        return [None] * len(values)
    try:
        found = iter(torch.autograd.grad(score, wanted, allow_unused=True))
    except RuntimeError:  # reentrant checkpoints refuse to be asked for inner gradients: take all for reaching
        return [torch.ones(()) for _ in values]
    return [next(found) if value.requires_grad else None for value in values]


def _reaches(gradient: Tensor | None, value: Tensor, x: Tensor) -> bool:
    """Whether the outputs depend on the value; of tokens, whether they depend on most of them.

    Behind the last attention of a vision transformer only the class token does: a map there would be blank.
    """
    if not value.requires_grad:
        return True  # made where the model turns gradients off: what follows may turn them on again
    if gradient is None:
        return False
    if gradient.ndim == 3 and x.ndim == 4 and value.shape[1] > 1 and gradient.any():
        return bool((gradient != 0).any(dim=2).float().mean() > 0.5)
    return True  # also where the gradient is zero altogether: a head of zeros, as some libraries start with


def _layouts(calls: Sequence[_Seen], x: Tensor, override: Layout | None) -> list[Layout]:
    """How each call keeps its value.

    Rank 3 in a model of pictures: tokens [N, T, C]. Rank 4: a module that says it decides (convolutions keep channels
    first; Linear and LayerNorm, which work on the last axis, keep them last); others follow the nearest earlier value of
    the same shape that was decided, else the axes whose ratio is the picture's.
    """
    found: list[Layout] = []
    decided: dict[torch.Size, Layout] = {}
    for call in calls:
        shape = call.value.shape
        layout: Layout = "channels_first"
        if override is not None and len(shape) == (3 if override == "tokens" else max(3, len(shape))):
            layout = override
        elif len(shape) == 3 and x.ndim == 4:
            layout = "tokens"
        elif len(shape) == 4 and x.ndim == 4:
            own = _own_layout(call.module, shape)
            if own:
                decided[shape] = own
            layout = own or decided.get(shape) or _by_ratio(shape, x)
        found.append(layout)
    return found


def _own_layout(module: nn.Module, shape: torch.Size) -> Layout | None:
    kind = type(module).__name__
    if isinstance(module, nn.Linear | nn.LayerNorm) and kind != "LayerNorm2d":
        return "channels_last"
    return "channels_first" if any(word in kind for word in CHANNELS_FIRST) else None


def _by_ratio(shape: torch.Size, x: Tensor) -> Layout:
    height, width = x.shape[2:]
    first = abs(shape[2] * width - shape[3] * height) / max(shape[2] * width, 1)
    last = abs(shape[1] * width - shape[2] * height) / max(shape[1] * width, 1)
    return "channels_last" if last < first else "channels_first"
