"""Inputs that are given as arrays: signals, volumes, and images that are not RGB.

An array is passed to the model as it is, without resizing. Its shape is that of the model's own input, with or without
the batch axis; a model of one channel also takes it without the channel axis. Arrays of uint8 contain pixels, and are
scaled as images are; all others are not scaled.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xcam.contract import Array, InputSpec, Layer, Model
from xcam.contract.layouts import shape_from_channels_first, to_channels_first
from xcam.contract.preprocessing import Preprocessing
from xcam.errors import InputError, ModelError, warn
from xcam.explanation import tokens
from xcam.explanation.inputs import check_images, input_preprocessing
from xcam.explanation.tokens import Grid
from xcam.images import arrays
from xcam.models.load import by

SPACE = {1: ("L",), 2: ("H", "W"), 3: ("D", "H", "W")}
"""The names of the spatial axes in messages."""
INPUTS = {1: "a signal", 2: "an image", 3: "a volume"}
AXES = {1: "one spatial axis", 2: "two spatial axes", 3: "three spatial axes"}
FAR, NEAR = 3.0, 0.02
"""Values that exceed the range of preprocessed pixels by the first factor, or use less than the second of it, are in
another scale."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One input that was given as an array."""

    x: Array
    """The input as the model takes it, without the batch axis."""
    values: Array
    """The values before preprocessing, [C, *space]."""
    path: Path | None = None
    """The file, where it was read from one."""


def with_samples(model: Model, source: Any) -> Any:
    """Return the argument of `explain` with a Sample in place of each array that is not an RGB image; arrays are copied.

    A single array with a batch axis of several rows becomes a list of samples.

    Raises:
        InputError: An array cannot be used as an input of the model.
    """
    if isinstance(source, list | tuple):
        return [_one(model, source, k) for k, source in enumerate(source)]
    if not _is_array(source):
        return _image(model.input, source)
    rows = list(_samples(model, source))
    return rows[0] if len(rows) == 1 else rows


def _one(model: Model, source: Any, k: int) -> Any:
    """Return the sample, or the copied image, of one entry of a list."""
    if not _is_array(source):
        return _image(model.input, source)
    rows = list(_samples(model, source))
    if len(rows) > 1:
        if isinstance(source, np.ndarray):
            remedy = "give its rows as entries of the list"
        else:
            remedy = "save each row in a file, or give the array to explain() in Python"
        name = f"entry {k + 1} of the list" if isinstance(source, np.ndarray) else os.fspath(source)
        raise InputError(f"{name} is a batch of {len(rows)} inputs, and one is expected; {remedy}")
    return rows[0]


def _image(spec: InputSpec, source: Any) -> Any:
    """Return a source that is an image, arrays as copies. Raises ModelError where the model does not take images."""
    if isinstance(source, str | os.PathLike | np.ndarray):
        check_images(spec)
    return np.array(source) if isinstance(source, np.ndarray) else source


def _is_array(source: Any) -> bool:
    """Return whether a source is an array, or a file of one, and not an RGB image."""
    if not isinstance(source, np.ndarray):
        return arrays.is_array_file(source)
    return not (source.dtype == np.uint8 and source.ndim == 3 and source.shape[2] == 3)


def shapes(sources: Sequence[Any]) -> list[Any]:
    """Return for each source the shape of its sample, None for an image: equal neighbours fit in one batch."""
    return [source.x.shape if isinstance(source, Sample) else None for source in sources]


def opened_for(model: Model, source: Any) -> Model:
    """Return a view of the model for the size of a sample; the model itself for an image.

    The view shares everything with the model except `input`: its layers are those for the sample's size.
    """
    if not isinstance(source, Sample):
        return model
    shape = source.x.shape[-1:] + source.x.shape[:-1] if model.input.layout == "channels_last" else source.x.shape
    channels = shape[0] if model.input.channels else 0
    spec = dataclasses.replace(model.input, channels=channels, channels_known=True, size=shape[1:])
    if model.input == spec:
        return model
    view = copy.copy(model)
    view.input = spec
    return view


def _samples(model: Model, source: Any) -> Iterator[Sample]:
    """Yield the samples of an array or of a file. Raises InputError."""
    spec, path = model.input, None
    if isinstance(source, np.ndarray):
        array, name = np.array(source), "the array"
    else:
        path = Path(source)
        array, name = arrays.read(path), str(path)
    _check_values(array, name)
    batch = _batch(array, spec, name, model.name)
    for row in batch:
        values = to_channels_first(row[None], spec.layout)[0]
        yield Sample(_converted(row, spec, name, model.name), values, path)


def _check_values(array: Array, name: str) -> None:
    """Raise InputError for an array that is not of finite real numbers."""
    if array.dtype.kind not in "biuf":
        remedy = "give its real and imaginary parts as channels" if array.dtype.kind == "c" else "give numbers"
        raise InputError(f"cannot use {name}: its values are {array.dtype}; {remedy}")
    if not array.size:
        raise InputError(f"cannot use {name}: its shape {list(array.shape)} has no values; give another array")
    finite = np.isfinite(array)
    if not finite.all():
        first = [int(i) for i in np.argwhere(~finite)[0]]
        raise InputError(
            f"cannot use {name}: {np.count_nonzero(~finite)} of its values are NaN or infinite, the first at {first}; "
            "replace them, for example with np.nan_to_num"
        )


def _batch(array: Array, spec: InputSpec, name: str, model: str) -> Array:
    """Return an array in the model's layout with a batch axis. Raises InputError."""
    rank, shape = spec.rank, list(array.shape)
    if rank is None:  # as the model takes it
        if array.ndim < 3:
            raise InputError(
                f"cannot use {name} of shape {shape}: give it with the batch and the channel axis, as {model} takes it"
            )
        return array
    if rank not in SPACE:
        raise ModelError(
            f"{model} takes inputs with {rank} spatial axes, and maps are drawn for one, two or three; use model.trace"
        )
    axis = -1 if spec.layout == "channels_last" else -rank - 1
    axes = shape_from_channels_first(("C", *SPACE[rank]), spec.layout)
    expected = f"[{', '.join(axes)}] or [N, {', '.join(axes)}]"
    if not spec.channels:  # the core gives it a channel axis
        spec = dataclasses.replace(spec, channels=1)
    channels = spec.channels if spec.channels_known else None
    if array.ndim == rank + 2:
        batch = array
    elif array.ndim == rank + 1 and (spec.channels != 1 or array.shape[axis] == 1):
        batch = array[None]
    elif array.ndim in (rank, rank + 1) and spec.channels == 1:
        batch = np.expand_dims(array if array.ndim > rank else array[None], axis if axis == -1 else 1)
    else:
        count = f" with {spec.channels} channels" if channels else ""
        raise InputError(
            f"cannot use {name} of shape {shape}: {model} takes {expected}{count}; add, remove or reorder its axes"
        )
    if channels not in (None, batch.shape[axis]):
        other = 1 if axis == -1 else batch.ndim - 1
        hint = (
            f"np.moveaxis(array, {other - batch.ndim}, {axis})" if batch.shape[other] == channels else "another array"
        )
        hint += ", or RGB as uint8 [H, W, 3]" if rank == 2 and channels in (1, 3) else ""
        raise InputError(
            f"cannot use {name} of shape {shape}: it has {batch.shape[axis]} channels where {model} takes {channels}, as "
            f"{expected}; give {hint}"
        )
    size = tuple(n for k, n in enumerate(batch.shape) if k not in (0, axis % batch.ndim))
    if spec.fixed and any(m not in (n, None) for m, n in zip(spec.size or size, size, strict=True)):
        raise InputError(
            f"cannot use {name} of shape {shape}: {model} takes the size {by(spec.size)}, not {by(size)}, and arrays are "
            "not resized; crop, pad or resample it first"
        )
    return batch


def _converted(row: Array, spec: InputSpec, name: str, model: str) -> Array:
    """Return one input in the model's type: pixels preprocessed, other values as they are. Raises InputError."""
    dtype = np.dtype(spec.dtype)
    if not np.issubdtype(dtype, np.floating):
        limits = np.iinfo(dtype) if dtype.kind in "iu" else None
        whole = row.dtype.kind in "biu" or bool((row == np.rint(row)).all())
        if limits is None or not whole or row.min() < limits.min or row.max() > limits.max:
            raise InputError(
                f"cannot use {name}: {model} takes {dtype}, and its values {row.min():.4g} to {row.max():.4g} are "
                f"{'beyond its range' if whole else 'fractions'}; scale and round them first"
            )
        return row.astype(dtype)
    if row.dtype == np.uint8:
        return _preprocessed(row, spec, name, model).astype(dtype, copy=False)
    with np.errstate(over="ignore"):
        x = row.astype(dtype)
    if not np.isfinite(x).all():
        raise InputError(
            f"cannot use {name}: its values exceed the range of {dtype}, which {model} takes; scale them first"
        )
    if spec.preprocessing is not None and spec.rank == 2:
        _check_scale(x, spec.preprocessing, name)
    return x


def _preprocessed(row: Array, spec: InputSpec, name: str, model: str) -> Array:
    preprocessing = input_preprocessing(spec, model)
    axis = -1 if spec.layout == "channels_last" else 0
    counts = {len(preprocessing.mean), len(preprocessing.std), 3 if preprocessing.order == "BGR" else 1} - {1}
    if counts - {row.shape[axis]}:
        raise InputError(
            f"cannot preprocess {name}: {preprocessing.name!r} is for {max(counts)} channels, and it has "
            f"{row.shape[axis]}; choose unit, raw or tf, or give the array in floating point as the model takes it"
        )
    return preprocessing(row, axis)


def _check_scale(x: Array, preprocessing: Preprocessing, name: str) -> None:
    """Warn where values cannot be preprocessed pixels."""
    ends = np.stack([preprocessing(np.full((1, 3), pixel)) for pixel in (0, 255)])
    low, high = float(ends.min()), float(ends.max())
    span, least, most = high - low, float(x.min()), float(x.max())
    if least < low - FAR * span or most > high + FAR * span or 0 < most - least < NEAR * span:
        warn(
            f"the values of {name} are {least:.4g} to {most:.4g}, and pixels preprocessed by {preprocessing.name!r} are "
            f"{low:.4g} to {high:.4g}: arrays are not scaled (except uint8); scale it first"
        )


@dataclass(frozen=True)
class Squeezed(Grid):
    """The values of a layer without leading spatial axes of length one, which the model's input does not have.

    A converted model of signals often runs on images of one row.
    """

    size: tuple[int, ...] | None = ()  # type: ignore[assignment]
    """The spatial size with the leading axes."""

    def view(self, tokens: Array) -> Array:
        """Return [N, C, 1, …, *space] as [N, C, *space]."""
        return tokens.reshape(*tokens.shape[:2], *tokens.shape[2 + self.extra :])

    def restore(self, view: Array, tokens: Array) -> Array:
        """Return [N, C, *space] as [N, C, 1, …, *space]."""
        return view.reshape(*view.shape[:2], *[1] * self.extra, *view.shape[2:])


def fitted_grid(layer: Layer, activations: Array, spec: InputSpec, batch_shape: Sequence[int], rank: int) -> Grid:
    """Return the grid in which a layer's values have the spatial axes of the input.

    Args:
        layer: The layer.
        activations: Its values [N, C, *space].
        spec: The model's input.
        batch_shape: The shape of the batch in the model's layout.
        rank: The number of spatial axes of the input.

    Raises:
        ModelError: The layer does not have these axes.
    """
    if layer.layout == "tokens" and rank != 2:
        raise ModelError(
            f"layer {layer.name!r} has tokens, and their grid is known for images only; choose a layer with {AXES[rank]}"
        )
    grid = tokens.grid(layer, activations.shape[-1], spec, batch_shape)
    space = grid.view(activations).shape[2:]
    extra = len(space) - rank
    if extra > 0 and grid == Grid() and set(space[:extra]) == {1}:
        return Squeezed(extra)
    if extra:
        raise ModelError(
            f"layer {layer.name!r} has values of {by(space)} for each channel, and a map over {INPUTS[rank]} needs "
            f"{AXES[rank]}; choose another layer"
        )
    return grid
