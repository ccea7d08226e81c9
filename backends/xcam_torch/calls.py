"""The calls of a module's forward pass, in execution order: shape, layout, and which outputs depend on them.

They are recorded in one forward and one backward pass on noise, in evaluation mode. All hooks are removed afterwards.
The forward pass shows which values depend on which (see `dependence`), the backward pass where gradients lead.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xcam.contract import Layer, Layout
from xcam.contract.layouts import shape_to_channels_first
from xcam_torch.dependence import INPUT, Dependence, Reads
from xcam_torch.guard import hooked, undisturbed
from xcam_torch.outputs import EndActivation, check_rows, first_float, main_output_first, replaced, tensors

CHANNELS_FIRST = (
    "Conv",
    "BatchNorm",
    "InstanceNorm",
    "GroupNorm",
    "Pool",
    "PixelShuffle",
    "PixelUnshuffle",
    "Upsample",
)
"""Parts of the names of torch's own classes whose values are channels first."""


@dataclass(frozen=True)
class Call:
    """One call of one module during the forward pass."""

    module: nn.Module
    index: int
    """Index of this call among the module's calls."""
    calls: int
    """Number of the module's calls."""
    layer: Layer
    value: int
    """A number that calls which return one value have in common: a container and its last part."""


@dataclass
class _Seen:
    start: int
    name: str
    module: nn.Module
    index: int
    value: Tensor
    version: int
    """Increased by each write in place."""
    number: int
    """Index of this call among those under its name."""
    bit: int
    """The bit of this call in a Dependence; 0 where none was recorded."""
    depends_on_input: bool | None
    alias_of: Tensor | None
    """The argument that it returned as it is."""


def module_names(model: nn.Module) -> dict[nn.Module, str]:
    """Return each module's path, without the wrappers that torch.compile puts around a module."""
    return {
        module: ".".join(part for part in name.split(".") if part != "_orig_mod")
        for name, module in model.named_modules()
        if name and not hasattr(module, "_orig_mod")
    }


class _Names:
    """Paths of modules, for the calls of a forward pass.

    A module that several parts share has a path in each: a call has the one inside the part that is running.
    """

    def __init__(self, model: nn.Module) -> None:
        self.first = module_names(model)
        self._paths: dict[nn.Module, list[str]] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            if module in self.first:
                clean = ".".join(part for part in path.split(".") if part != "_orig_mod")
                self._paths.setdefault(module, []).append(clean)

    def inside(self, around: str, module: nn.Module) -> str:
        """Return the path of a module that is called by the part at the path `around`, "" for the model itself."""
        paths = self._paths[module]
        if not around or len(paths) == 1:
            return self.first[module]
        return next((path for path in paths if path.startswith(f"{around}.")), self.first[module])


def record(
    model: nn.Module, x: Tensor, override: Layout | None = None
) -> tuple[dict[str, Call], dict[str, str | None]]:
    """Run `model` on `x` once and return its calls, and the activation that is cut off each output, by name.

    Args:
        model: the module.
        x: noise [N, C, *spatial].
        override: the layout of every layer, where the caller gives one.
    """
    try:
        return _record(model, x, override, Dependence())
    except Exception:  # an operation that cannot be followed, or the model's own error, which is raised again
        return _record(model, x, override, None)


def _record(
    model: nn.Module, x: Tensor, override: Layout | None, dependence: Dependence | None
) -> tuple[dict[str, Call], dict[str, str | None]]:
    names = _Names(model)
    starts = itertools.count()
    open_calls: list[tuple[int, Reads, str]] = []
    seen: list[_Seen] = []
    count: dict[nn.Module, int] = {}
    named: dict[str, int] = {}
    end = EndActivation()

    def before(module: nn.Module, arguments: Any) -> None:
        path = names.inside(open_calls[-1][2] if open_calls else "", module)
        open_calls.append((next(starts), dependence.reads(arguments) if dependence else Reads(), path))

    def after(module: nn.Module, value: Any) -> Any:
        start, arguments, path = open_calls.pop()
        tensor = first_float(value)
        index = count[module] = count.get(module, -1) + 1
        if tensor is None:
            return None
        number = named[path] = named.get(path, -1) + 1
        new = tensor
        bit, depends_on_input, alias_of = 0, None, None
        if dependence:
            if isinstance(module, torch.jit.ScriptModule) or not dependence.is_known(tensor):
                dependence.mark(
                    tensor, dependence.also(tensor, arguments)
                )  # computed outside of torch's operations, at least in part
            depends_on_input = bool(dependence.of(tensor) & INPUT)
            if not (tensor.requires_grad or tensor.is_quantized or tensor.is_inference()):
                torch.set_grad_enabled(True)  # gradients are off in this part; they may lead from here to an output
                new = tensor.detach().requires_grad_().clone()
            elif dependence.is_older(tensor, arguments):
                new, alias_of = tensor.view_as(tensor), tensor  # a path may lead around a module that changes nothing
                end.pass_on(new, tensor)
            bit = INPUT << len(seen) + 1
            dependence.pass_through(new, bit, arguments)
        version = 0 if new.is_inference() else new._version  # inference tensors have no counter
        seen.append(_Seen(start, path, module, index, new, version, number, bit, depends_on_input, alias_of))
        return None if new is tensor else replaced(value, tensor, new)

    with undisturbed(model), torch.enable_grad(), hooked(names.first, after, before):
        source = x.detach().requires_grad_().clone()
        with end, dependence.recording(source) if dependence else contextlib.nullcontext():
            value = model(source)
            check_rows(value, len(x), type(model).__name__)
            outputs = tensors(value)
    logits = {name: end.logits(output) for name, output in outputs.items()}
    ordered = _ordered(seen)
    layouts = _layouts(ordered, x, override)
    axes = {id(call): 2 if layout == "channels_first" else 1 for call, layout in zip(ordered, layouts, strict=True)}
    with undisturbed(model), torch.enable_grad():  # without the hooks: checkpoints call their modules again
        reach = _reach(seen, {name: output for name, (output, _) in logits.items()}, x, dependence, axes)
    final = {id(t) for t in outputs.values()} | {id(output) for output, _ in logits.values()}
    for call in reversed(seen):
        if call.alias_of is not None and id(call.value) in final:
            final.add(id(call.alias_of))
    activations = main_output_first(logits)
    paths = dependence.avoiding(logits[next(iter(activations))][0]) if dependence else -1
    numbers: dict[tuple[int, int], int] = {}
    calls = {}
    for call, layout in zip(ordered, layouts, strict=True):
        name = call.name if call.number == named[call.name] else f"{call.name}#{call.number}"
        leads_to, differentiable = reach[id(call)]
        layer = Layer(
            name=name,
            kind=_kind(call.module),
            shape=shape_to_channels_first(call.value.shape[1:], layout),
            layout=layout,
            is_output=id(call.value) in final,
            folds_batch=call.value.ndim > 2 and len(call.value) != len(x),
            reaches_output=leads_to != (),
            leads_to=leads_to,
            differentiable=differentiable,
            depends_on_input=call.depends_on_input,
            dtype=str(call.value.dtype).removeprefix("torch.").removeprefix("q"),
            bypassed=not call.bit or bool(paths & call.bit),
        )
        number = numbers.setdefault((id(call.value), call.version), len(numbers))
        calls[name] = Call(call.module, call.index, count[call.module] + 1, layer, number)
    return calls, activations


def _kind(module: nn.Module) -> str:
    """Return the name of a module's class; of the original class for TorchScript."""
    return str(getattr(module, "original_name", None) or type(module).__name__)


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


Reach = tuple[tuple[str, ...] | None, bool]
"""`Layer.leads_to` and `Layer.differentiable`."""


def _reach(
    seen: Sequence[_Seen],
    outputs: Mapping[str, Tensor],
    x: Tensor,
    dependence: Dependence | None,
    axes: Mapping[int, int],
) -> dict[int, Reach]:
    """Return for each call, by its id, the outputs that depend on it and whether a gradient leads to it.

    For tokens and for positions of a signal, those outputs that depend on most of them: behind the last attention of a
    transformer only the class token reaches the scores, and a map there would be blank. `axes`: the axis of positions.
    """
    values = [call.value for call in seen]
    gradients = _gradients(list(outputs.values()), values)
    if gradients is None:  # torch cannot compute them here: assume that they lead everywhere
        gradients = [torch.ones(()) for _ in values]
    sequences = {id(call): call.value for call in seen if _is_sequence(call.value, x)}
    # A head of zeros lets no gradient reach any map or token.
    flows = bool(sequences) and any(
        gradient is not None and gradient.ndim > 2 and bool(gradient.any()) for gradient in gradients
    )
    alone: dict[str, Mapping[int, Tensor | None]] = {}
    for name, output in outputs.items() if len(outputs) > 1 and sequences else ():
        parts = _gradients([output], list(sequences.values())) or [None] * len(sequences)
        alone[name] = dict(zip(sequences, parts, strict=True))
    bits = {name: dependence.of(output) if dependence else 0 for name, output in outputs.items()}
    reach: dict[int, Reach] = {}
    for call, gradient in zip(seen, gradients, strict=True):
        leads_to: tuple[str, ...] | None = tuple(name for name in outputs if bits[name] & call.bit)
        if not leads_to and (gradient is not None or not any(bits.values())):
            # Operations that could not be followed: only the gradient shows a path, where gradients are on.
            leads_to = None if gradient is not None or not call.value.requires_grad else ()
        if id(call) in sequences:
            few = {
                name
                for name in outputs
                if _is_sparse(alone.get(name, {}).get(id(call), gradient), axes[id(call)], x.ndim != 4)
            }
            if few:
                leads_to = tuple(name for name in (outputs if leads_to is None else leads_to) if name not in few)
        # In a model with tokens, zeros are evidence where others are not: behind the last attention a class token alone
        # is read, also where patches are arranged as a map (CoaT). In others, a ReLU may be zero on noise.
        reach[id(call)] = leads_to, gradient is not None and (not flows or bool(gradient.any()))
    return reach


def _gradients(outputs: Sequence[Tensor], values: Sequence[Tensor]) -> Sequence[Tensor | None] | None:
    """Return the gradient of a fixed random mixture of the outputs at each value, None where no path leads to it.

    None instead of the list: the backward pass fails.
    """
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
        gradients = iter(torch.autograd.grad(score, differentiable, retain_graph=True, allow_unused=True))
    except RuntimeError:
        return None
    return [next(gradients) if value.requires_grad else None for value in values]


def _is_sequence(value: Tensor, x: Tensor) -> bool:
    """Return whether a value of a model of images has tokens, or one of a model of signals positions."""
    return value.ndim == 3 and x.ndim in (2, 3, 4) and value.shape[1] > 1 and value.shape[2] > 1


def _is_sparse(gradient: Tensor | None, axis: int, in_all_channels: bool) -> bool:
    """Return whether a gradient is zero at half of the positions or more, and not at all.

    All zeros are not evidence: some libraries initialise a head with zeros. With `in_all_channels`, nor are zeros that
    differ between channels or rows, which the maximum over a signal gives.
    """
    if gradient is None or gradient.ndim != 3 or not gradient.any():
        return False
    read = (gradient != 0).movedim(axis, 1)
    positions = read.any(dim=2)
    few = bool(positions.float().mean() <= 0.5)
    same = bool((positions == positions[:1]).all() and read[positions].float().mean() > 0.25)  # a ReLU leaves a half
    return few and (same or not in_all_channels)


def _layouts(calls: Sequence[_Seen], x: Tensor, override: Layout | None) -> list[Layout]:
    """Return the layout of each call's value.

    Rank 3 in a model of images: tokens [N, T, C]. The rank of the input: the layout that the module itself implies, else
    the one whose grid fits the image's ratio, else that of the nearest earlier value, one of the same shape first.
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
        elif len(shape) == max(x.ndim, 3):
            certain = _implied_layout(call.module) or _by_ratio(shape[1:], x.shape[2:])
            if certain:
                decided.pop(shape, None)
                decided[shape] = certain
            nearest: list[Layout] = [*decided.values()]
            layout = certain or decided.get(shape) or (nearest[-1] if nearest else layout)
        layouts.append(layout)
    return layouts


def _implied_layout(module: nn.Module) -> Layout | None:
    """Return the layout of the values of torch's own modules: None for others, and where a class has its own forward.

    Convolutions are channels first; Linear and normalisations of the last axis alone are channels last.
    """
    kind = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
    if kind.__module__.partition(".")[0] != "torch" or "forward" in vars(module):
        return None
    if isinstance(module, nn.RNNBase):
        return "channels_last" if module.batch_first else None
    if kind.__name__ == "Linear" or len(getattr(module, "normalized_shape", ())) == 1:
        return "channels_last"
    return "channels_first" if any(part in kind.__name__ for part in CHANNELS_FIRST) else None


def _by_ratio(shape: Sequence[int], size: Sequence[int]) -> Layout | None:
    """Return the layout whose grid has the ratio of the image; None where both have it, or none has."""
    if len(size) < 2:
        return None
    longest = max(range(len(size)), key=size.__getitem__)

    def misfit(grid: Sequence[int]) -> float:
        """Return the largest difference, in positions, from a grid of the image's ratio."""
        return max(abs(n - grid[longest] * side / size[longest]) for n, side in zip(grid, size, strict=True))

    first, last = misfit(shape[1:]), misfit(shape[:-1])
    if abs(first - last) < 0.5 or min(first, last) > 1:
        return None
    return "channels_first" if first < last else "channels_last"
