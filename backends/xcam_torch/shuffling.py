"""A copy of a module with the weights of some parts shuffled: see xcam.contract.shuffling."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from xcam.contract.shuffling import cannot_copy, to_shuffle


def parameter_layers(module: nn.Module, order: Sequence[str] = ()) -> list[str]:
    """Return the paths of parts with their own weights: first those missing in `order`, then the others in that order."""
    first_call = {name: index for index, name in reversed(list(enumerate(order)))}
    return sorted(_weights(module), key=lambda name: first_call.get(name, -1))


def with_shuffled_weights(module: nn.Module, parts: Sequence[str], seed: int) -> nn.Module:
    """Return a copy in which the weights of `parts` are shuffled.

    Raises:
        InputError: a part has no weights.
        ModelError: the module cannot be copied.
    """
    result = _copied(module)
    with torch.no_grad():
        for weight, generator in to_shuffle(_weights(result), parts, seed, type(module).__name__):
            # By index, and not through NumPy, which has no bfloat16.
            order = torch.from_numpy(generator.permutation(weight.numel())).to(weight.device)
            weight.copy_(weight.flatten()[order].reshape(weight.shape))
    return result


def _copied(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:
        try:  # modules that torch.export loads hold symbols that cannot be copied, and can be shared
            return _twin(module, {}, {})
        except Exception:
            raise cannot_copy(type(module).__name__, error, "give a module that copy.deepcopy can copy") from error


def _twin(module: nn.Module, twins: dict[nn.Module, nn.Module], values: dict[int, Tensor]) -> nn.Module:
    """Return a tree of new modules that share the code, with copies of weights and buffers."""
    if module in twins:
        return twins[module]

    def value(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        if id(tensor) not in values:
            copied = tensor.detach().clone()
            values[id(tensor)] = (
                nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied
            )
        return values[id(tensor)]

    twin: nn.Module = module.__new__(type(module))
    twins[module] = twin
    twin.__dict__ = {name: copy.copy(v) if isinstance(v, dict) else v for name, v in module.__dict__.items()}
    twin.__dict__["_parameters"] = {name: value(p) for name, p in module._parameters.items()}
    twin.__dict__["_buffers"] = {name: value(b) for name, b in module._buffers.items()}
    twin.__dict__["_modules"] = {
        n: None if m is None else _twin(m, twins, values) for n, m in module._modules.items()
    }
    return twin


def _weights(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return by path of a part its float parameters; one that several parts share belongs to the first."""
    seen: set[int] = set()
    weights: dict[str, list[nn.Parameter]] = {}
    for path, part in module.named_modules():
        new = [w for w in part.parameters(recurse=False) if w.is_floating_point() and id(w) not in seen]
        seen |= {id(w) for w in new}
        if new:
            weights[".".join(name for name in path.split(".") if name != "_orig_mod") or type(part).__name__] = new
    return weights
