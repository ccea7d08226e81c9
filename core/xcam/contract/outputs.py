"""A model's outputs: one array, or a mapping from names to arrays when there are several; cotangents likewise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

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
