"""A model's outputs: one array, or a mapping from names to arrays when there are several; cotangents likewise."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from xcam.contract.types import Array, Cotangents, Outputs

T = TypeVar("T")


def one_or_mapping(named: Mapping[str, T]) -> T | Mapping[str, T]:
    """Return the value itself if there is only one, else the mapping by output name.

    The contract uses this form for outputs and for `Model.output_activation`.
    """
    return named if len(named) > 1 else next(iter(named.values()))


def by_name(outputs: Outputs, names: Iterable[str]) -> Mapping[str, Array]:
    """Return outputs or a cotangent by output name; an array belongs to the first of `names`."""
    return outputs if isinstance(outputs, Mapping) else {next(iter(names)): outputs}


def ask(cotangents: Cotangents | None, outputs: Outputs, names: Iterable[str]) -> list[Mapping[str, Array]]:
    """Call `cotangents` once with the outputs and return each cotangent by output name; [] where it is None."""
    names = list(names)
    return [by_name(cotangent, names) for cotangent in cotangents(outputs)] if cotangents else []


def one_output(outputs: Outputs, name: str | None = None) -> Array:
    """Return the array that a target reads: the output `name`, or the first."""
    if not isinstance(outputs, Mapping):
        return outputs
    return outputs[name] if name is not None else next(iter(outputs.values()))


def like(outputs: Outputs, value: Array, name: str | None = None) -> Outputs:
    """Return a cotangent shaped like `outputs`: `value` at the output that `one_output` reads, zero elsewhere."""
    if not isinstance(outputs, Mapping):
        return value
    name = next(iter(outputs)) if name is None else name
    return {key: value if key == name else np.zeros_like(array) for key, array in outputs.items()}


MAIN = ("logits", "probabilities", "probs", "predictions", "prediction", "scores", "score", "output", "out")
"""Names of the output that is explained, in order of preference: the whole name, or a part of its path."""


def main_first(
    activations: Mapping[str, str | None],
    shapes: Mapping[str, Sequence[Any] | None],
    nodes: Mapping[str, Any],
    ancestors: Callable[[Any], Container[Any]],
) -> dict[str, str | None]:
    """Return the outputs' activations in the order in which targets read them: the main output first.

    The main output is the one called `logits`. Else it is a vector of class scores [N, K] (or a number for each image
    with a known activation) from which no other such vector is computed: of several, the one whose name is in `MAIN`,
    else the first. Without a vector, names and order decide. Auxiliary outputs (`aux`) come last.

    Args:
        activations: The activation that was cut off each output, in the model's order.
        shapes: Their shapes, with the batch; None where the rank is not known.
        nodes: The node that computes each output; None where it is not known.
        ancestors: The nodes from which a node is computed; itself may be one of them.
    """
    names = list(activations)
    if len(names) < 2:
        return dict(activations)
    ranks = {name: len(shape) if shape is not None else 0 for name, shape in shapes.items()}
    vectors = [name for name in names if ranks[name] == 2 or (ranks[name] == 1 and activations[name] is not None)]
    before = {name: ancestors(nodes[name]) for name in vectors if nodes[name] is not None}
    inner = {
        name
        for name in before
        if any(nodes[name] != nodes[other] and nodes[name] in before[other] for other in before)
    }

    def rank(name: str) -> tuple[int, ...]:
        parts = [part for part in re.split(r"[/.]", name.partition(":")[0].lower()) if part]
        preferred = min((MAIN.index(part) for part in parts if part in MAIN), default=len(MAIN))
        is_auxiliary = any(part.startswith("aux") for part in parts)
        return is_auxiliary, preferred > 0, name not in vectors, name in inner, preferred

    first = min(names, key=rank)
    return {first: activations[first]} | dict(activations)


def cut_activation(output: T, producer: Callable[[T], tuple[str | None, T] | None]) -> tuple[T, str | None]:
    """Return an output's logits and the activation that was cut off, or the output itself and None.

    Args:
        output: a model output, as the framework's tensor, graph node or name.
        producer: for a value, what computes it: ("softmax" or "sigmoid", its input); (None, its input) for an
            operation that only changes how a value is stored (a cast between floats, an identity); None for any other.
    """
    value = output
    while (step := producer(value)) is not None:
        kind, value = step
        if kind is not None:
            return value, kind
    return output, None
