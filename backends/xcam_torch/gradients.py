"""For each cotangent of the outputs the gradient at the layer, and its products with the Hessian, by torch.autograd.grad."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from xcam.contract import Outputs
from xcam.errors import ModelError


def asked(outputs: Mapping[str, Tensor], cotangent: Outputs) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs that a cotangent asks about and that can be differentiated, with its values as tensors."""
    given = cotangent if isinstance(cotangent, Mapping) else {next(iter(outputs)): cotangent}
    pairs = [
        (output, torch.as_tensor(np.asarray(given[key]), device=output.device).to(output.dtype))
        for key, output in outputs.items()
        if output.requires_grad and np.any(given[key])
    ]
    return [output for output, _ in pairs], [v for _, v in pairs]


def vjp(
    outputs: Mapping[str, Tensor], leaves: list[Tensor], cotangents: Sequence[Outputs], layer: str, name: str
) -> Iterator[list[Tensor]]:
    """For each cotangent the gradient at every leaf. Several are batched where torch can. Raises ModelError."""
    if not any(output.requires_grad for output in outputs.values()):
        raise ModelError(
            f"no output of {name} depends on layer {layer!r} (or the model turns gradients off behind it); "
            "choose another layer"
        )
    wanted = [asked(outputs, cotangent) for cotangent in cotangents]
    same = (
        len(wanted) > 1
        and all([id(o) for o in a[0]] == [id(o) for o in wanted[0][0]] for a in wanted)
        and wanted[0][0]
    )
    if same:
        stacked = [torch.stack(vs) for vs in zip(*(a[1] for a in wanted), strict=True)]
        together = None
        with contextlib.suppress(RuntimeError):  # an operation that cannot be batched: one by one, below
            together = torch.autograd.grad(
                wanted[0][0], leaves, stacked, retain_graph=True, is_grads_batched=True, allow_unused=True
            )
        if together is not None:
            filled = _filled(together, leaves, layer, name, len(wanted))
            yield from ([g[m] for g in filled] for m in range(len(wanted)))
            return
    for targets, v in wanted:
        if targets:
            found = torch.autograd.grad(targets, leaves, v, retain_graph=True, allow_unused=True)
            yield _filled(found, leaves, layer, name)
        else:  # a cotangent that is zero everywhere
            yield [torch.zeros_like(leaf) for leaf in leaves]


def hvp(outputs: Mapping[str, Tensor], leaf: Tensor, cotangent: Outputs, vector: Tensor) -> Tensor:
    """∂²⟨v, outputs⟩/∂leaf² times `vector`, by double backward. The cotangent v counts as a constant."""
    targets, v = asked(outputs, cotangent)
    (gradient,) = torch.autograd.grad(targets, [leaf], v, create_graph=True, allow_unused=True)
    product = None
    if gradient is not None and gradient.requires_grad:
        (product,) = torch.autograd.grad(gradient, [leaf], vector.to(leaf), retain_graph=True, allow_unused=True)
    return torch.zeros_like(leaf) if product is None else product


def _filled(
    found: Sequence[Tensor | None], leaves: list[Tensor], layer: str, name: str, batch: int | None = None
) -> list[Tensor]:
    if all(g is None for g in found):
        raise ModelError(
            f"what is explained does not depend on layer {layer!r} of {name}; choose another layer or another output"
        )
    return [
        g if g is not None else leaf.new_zeros((batch, *leaf.shape) if batch else leaf.shape)
        for g, leaf in zip(found, leaves, strict=True)
    ]
