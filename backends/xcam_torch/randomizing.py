"""A copy of a module with the weights of some parts shuffled: for the model-parameter randomisation test.

Values are exchanged within each weight, so that its distribution stays. What was counted and not learnt (the statistics
of a batch norm) stays too.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from xcam.errors import InputError, ModelError, first_line, nearest


def parameter_layers(module: nn.Module, order: Sequence[str] = ()) -> list[str]:
    """The paths of the parts that have weights of their own; those named in `order` as they stand there, others first."""
    found = list(_weights(module))
    place = {name: k for k, name in reversed(list(enumerate(order)))}  # where it is called first
    return sorted(found, key=lambda name: place.get(name, -1))


def shuffled(module: nn.Module, parts: Sequence[str], seed: int) -> nn.Module:
    """A copy in which the weights of `parts` are shuffled: each by its own seed, whatever else is shuffled.

    Raises InputError for a part that has none, ModelError for a module that cannot be copied.
    """
    made = _copied(module)
    weights = _weights(made)
    with torch.no_grad():
        for name in parts:
            if name not in weights:
                raise InputError(
                    f"no part {name!r} with weights in {type(module).__name__}; {nearest(name, weights)}"
                )
            random = np.random.default_rng([seed, zlib.crc32(name.encode())])
            for weight in weights[name]:
                order = torch.from_numpy(random.permutation(weight.numel())).to(weight.device)
                weight.copy_(weight.flatten()[order].reshape(weight.shape))
    return made


def _copied(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except (
        Exception
    ) as error:  # what torch.export loads holds symbols that cannot be copied, and needs no copy of them
        try:
            return _twin(module, {}, {})
        except Exception:
            raise ModelError(
                f"{type(module).__name__} cannot be copied ({first_line(error)}), and its own weights are not to be "
                "touched; give a module that copy.deepcopy takes, or leave the randomisation test out"
            ) from error


def _twin(module: nn.Module, made: dict[nn.Module, nn.Module], values: dict[int, Tensor]) -> nn.Module:
    """A tree of new modules around the same code, with weights and buffers of its own."""
    if module in made:
        return made[module]

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
    made[module] = twin
    twin.__dict__ = {name: copy.copy(v) if isinstance(v, dict) else v for name, v in module.__dict__.items()}
    twin.__dict__["_parameters"] = {name: value(p) for name, p in module._parameters.items()}
    twin.__dict__["_buffers"] = {name: value(b) for name, b in module._buffers.items()}
    twin.__dict__["_modules"] = {n: None if m is None else _twin(m, made, values) for n, m in module._modules.items()}
    return twin


def _weights(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    """By the path of a part its float parameters; one that several parts share belongs to the first."""
    seen: set[int] = set()
    found: dict[str, list[nn.Parameter]] = {}
    for path, part in module.named_modules():
        own = [w for w in part.parameters(recurse=False) if w.is_floating_point() and id(w) not in seen]
        seen |= {id(w) for w in own}
        if own:
            found[".".join(word for word in path.split(".") if word != "_orig_mod") or type(part).__name__] = own
    return found
