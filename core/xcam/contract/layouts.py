"""Layouts: between [N, C, *spatial], as a Trace has it, and the order in which a framework stores a layer's value.

Arrays of one or two axes ([N], [N, C]) are the same in every layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from xcam.contract.types import DEFAULT_SIZE, Array, InputSpec, Layer, Layout

T = TypeVar("T")

SIDES = {1: 1024, 2: DEFAULT_SIZE[0], 3: 32}
"""The side of a signal, an image and a volume with which a model is recorded where nothing states one."""
MOST_EXTRA = 8
"""The largest number of class and register tokens."""


def to_channels_first(array: Array, layout: Layout) -> Array:
    """Return an array [N, …] stored in `layout` as [N, C, *spatial]: a view, nothing is copied."""
    return np.moveaxis(array, -1, 1) if layout != "channels_first" and array.ndim > 2 else array


def from_channels_first(array: Array, layout: Layout) -> Array:
    """Return an array [N, C, *spatial] in `layout`: a view, nothing is copied."""
    return np.moveaxis(array, 1, -1) if layout != "channels_first" and array.ndim > 2 else array


def to_trace(value: Array, layer: Layer) -> Array:
    """Return a layer's value, in the framework's order, as a Trace has it. A view, except where tokens are reordered."""
    value = np.moveaxis(value, layer.batch_axis, 0) if layer.batch_axis else value
    value = to_channels_first(value, layer.layout)
    return value if layer.order is None else value[..., list(layer.order)]


def from_trace(array: Array, layer: Layer) -> Array:
    """Return a layer's value, as a Trace has it, in the framework's order: the inverse of `to_trace`."""
    array = array if layer.order is None else array[..., np.argsort(layer.order)]
    array = from_channels_first(array, layer.layout)
    return np.moveaxis(array, 0, layer.batch_axis) if layer.batch_axis else array


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
    """Return the shape of one input without the batch, in the model's layout, with the sides of `full_size`."""
    size = full_size(spec.size, spec.rank)
    return shape_from_channels_first((spec.channels, *size), spec.layout) if spec.channels else size


def without_channel_axis(x: Array, spec: InputSpec) -> Array:
    """Return a batch [N, *space] for a model that has no channel axis; any other batch as it is: a view."""
    if spec.channels or np.ndim(x) != 2 + (spec.rank or 2):
        return x
    return x[..., 0] if spec.layout == "channels_last" else x[:, 0]


def full_size(size: Sequence[int | None] | None, rank: int | None = None) -> tuple[int, ...]:
    """Return a size without open sides, for a run that needs no image: that of `SIDES`, and at least the longest fixed side.

    Args:
        size: The size; None where all sides are open.
        rank: The number of sides where `size` is None; None: two.
    """
    size = (None,) * (rank or 2) if size is None else size
    length = max([SIDES.get(len(size), DEFAULT_SIZE[0]), *(n for n in size if n is not None)])
    return tuple(length if n is None else n for n in size)


def filled(size: Sequence[int | None] | None, other: Sequence[int | None] | None) -> tuple[int | None, ...] | None:
    """Return a size whose open sides are those of another; None where both sides of an image are open."""
    sides = size or other or ()
    if size and other and len(size) == len(other):
        sides = [m if n is None else n for n, m in zip(size, other, strict=True)]
    return None if list(sides) in ([], [None, None]) else tuple(sides)


def token_grid(count: int, size: tuple[int, int]) -> tuple[int, tuple[int, int]] | None:
    """Return the grid of tokens over an image: square patches, the fewest extra tokens.

    Args:
        count: The number of tokens.
        size: (height, width) of the image.

    Returns:
        The number of class and register tokens before the patches, and (h, w) of the patches; None where no grid fits.
    """
    height, width = size
    for extra in range(min(MOST_EXTRA, count - 1) + 1):
        for patch in range(1, min(height, width) + 1):
            cut_off = (height // patch, width // patch)
            padded = (-(-height // patch), -(-width // patch))
            for grid_size in (cut_off, padded):
                if grid_size[0] * grid_size[1] == count - extra > 1:
                    return extra, grid_size
    return None
