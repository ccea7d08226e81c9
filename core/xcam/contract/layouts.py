"""Layouts: between [N, C, *spatial], as a Trace has it, and the order in which a framework stores a layer's value.

Arrays of one or two axes ([N], [N, C]) are the same in every layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from xcam.contract.types import DEFAULT_SIZE, Array, InputSpec, Layout

T = TypeVar("T")


def to_channels_first(array: Array, layout: Layout) -> Array:
    """Return an array [N, …] stored in `layout` as [N, C, *spatial]: a view, nothing is copied."""
    return np.moveaxis(array, -1, 1) if layout != "channels_first" and array.ndim > 2 else array


def from_channels_first(array: Array, layout: Layout) -> Array:
    """Return an array [N, C, *spatial] in `layout`: a view, nothing is copied."""
    return np.moveaxis(array, 1, -1) if layout != "channels_first" and array.ndim > 2 else array


def joined(batches: Sequence[Array], layout: Layout = "channels_first") -> Array:
    """Concatenate batches stored in `layout` to one contiguous array [N, C, *spatial]; a single one is not copied."""
    array = batches[0] if len(batches) == 1 else np.concatenate(batches)
    return np.ascontiguousarray(to_channels_first(array, layout))


def shape_to_channels_first(shape: Sequence[T], layout: Layout) -> tuple[T, ...]:
    """Return a shape without the batch, stored in `layout`, as (C, *spatial): the value of `Layer.shape`."""
    return tuple(shape) if layout == "channels_first" else (*shape[-1:], *shape[:-1])


def shape_from_channels_first(shape: Sequence[T], layout: Layout) -> tuple[T, ...]:
    """Return a shape (C, *spatial) in `layout`, without the batch."""
    return tuple(shape) if layout == "channels_first" else (*shape[1:], *shape[:1])


def input_shape(spec: InputSpec) -> tuple[int, ...]:
    """Return the shape of one input without the batch, in the model's layout; DEFAULT_SIZE where the size is open."""
    return shape_from_channels_first((spec.channels, *(spec.size or DEFAULT_SIZE)), spec.layout)
