"""Gradients at a layer for each cotangent of the outputs, and Hessian-vector products, by torch.autograd.grad."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from xcam.contract import Array
from xcam.contract.recorded import NoGradient


def differentiable(
    outputs: Mapping[str, Tensor], cotangent: Mapping[str, Array]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the differentiable outputs with a nonzero cotangent, and the tensors of the cotangent."""
    pairs = [
        (output, torch.as_tensor(np.asarray(cotangent[key]), device=output.device).to(output.dtype))
        for key, output in outputs.items()
        if output.requires_grad and np.any(cotangent[key])
    ]
    return [output for output, _ in pairs], [v for _, v in pairs]


def vjp(
    outputs: Mapping[str, Tensor], values: Mapping[str, Sequence[Tensor]], cotangents: Sequence[Mapping[str, Array]]
) -> Iterator[dict[str, list[Tensor]]]:
    """Yield for each cotangent the gradient at every value of each layer; cotangents are batched where torch can.

    Raises:
        NoGradient: no path leads from a layer to the outputs.
    """
    for name, parts in values.items():
        if not all(part.requires_grad for part in parts) or not any(o.requires_grad for o in outputs.values()):
            raise NoGradient(name)
    leaves = [part for parts in values.values() for part in parts]
    pairs = [differentiable(outputs, cotangent) for cotangent in cotangents]
    targets = pairs[0][0]
    if len(pairs) > 1 and targets and all(list(map(id, others)) == list(map(id, targets)) for others, _ in pairs):
        stacked = [torch.stack(vs) for vs in zip(*(v for _, v in pairs), strict=True)]
        batched = None
        with contextlib.suppress(RuntimeError):  # an operation without a batching rule: one by one, below
            batched = torch.autograd.grad(
                targets, leaves, stacked, retain_graph=True, is_grads_batched=True, allow_unused=True
            )
        if batched is not None:
            gradients = _filled(batched, values, len(pairs))
            for m in range(len(pairs)):
                yield {name: [g[m] for g in parts] for name, parts in gradients.items()}
            return
    for targets, v in pairs:
        if targets:
            yield _filled(torch.autograd.grad(targets, leaves, v, retain_graph=True, allow_unused=True), values)
        else:  # a cotangent that is zero everywhere
            yield {name: [torch.zeros_like(part) for part in parts] for name, parts in values.items()}


def hvp(outputs: Mapping[str, Tensor], leaf: Tensor, cotangent: Mapping[str, Array], vector: Tensor) -> Tensor:
    """Return ∂²⟨v, outputs⟩/∂leaf² times `vector`, by double backward. The cotangent v is a constant."""
    targets, v = differentiable(outputs, cotangent)
    (gradient,) = torch.autograd.grad(targets, [leaf], v, create_graph=True, allow_unused=True)
    product = None
    if gradient is not None and gradient.requires_grad:
        (product,) = torch.autograd.grad(gradient, [leaf], vector.to(leaf), retain_graph=True, allow_unused=True)
    return torch.zeros_like(leaf) if product is None else product


def _filled(
    gradients: Sequence[Tensor | None], values: Mapping[str, Sequence[Tensor]], batch: int | None = None
) -> dict[str, list[Tensor]]:
    """Return the gradients by layer, zeros where a value has none. Raises NoGradient where no value of a layer has one."""
    rest, result = iter(gradients), {}
    for name, parts in values.items():
        at_layer = [next(rest) for _ in parts]
        if all(g is None for g in at_layer):
            raise NoGradient(name)
        result[name] = [
            g if g is not None else part.new_zeros((batch, *part.shape) if batch else part.shape)
            for g, part in zip(at_layer, parts, strict=True)
        ]
    return result
