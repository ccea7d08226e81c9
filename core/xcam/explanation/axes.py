"""The axes of an array that is an input: batch, channels and space, in the model's layout.

Keras models and ONNX files state the number of axes. A torch module does not: where its first convolution suggests another
reading of the axes than the one on which it runs, the other one is used.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator

import numpy as np

from xcam.contract import Array, InputSpec, Model, validation
from xcam.contract.layouts import shape_from_channels_first, shape_to_channels_first
from xcam.errors import InputError, ModelError
from xcam.models.load import by

SPACE = {1: ("L",), 2: ("H", "W"), 3: ("D", "H", "W")}
"""The names of the spatial axes in messages."""


def arranged(model: Model, array: Array, name: str) -> tuple[Array, InputSpec]:
    """Return an array with a batch axis, and the model's input for its size.

    Args:
        model: The model.
        array: One input or a batch of them.
        name: The array's name in messages.

    Raises:
        InputError: The array cannot be an input of the model.
        ModelError: The model does not run on it.
    """
    _check_values(array, name)
    spec = model.input
    if spec.size is not None:
        return _stated(array, spec, name, model.name)
    errors: list[InputError | ModelError] = []
    for batch, reading in _readings(array, spec, name, model.name, errors):
        try:
            validation.layers(view(model, reading))
        except ModelError as error:
            errors.append(error)
            continue
        return batch, _with_layout(model, reading)
    raise errors[0]


def view(model: Model, spec: InputSpec) -> Model:
    """Return a model that shares everything with the given one except `input`: its layers are those for that input."""
    if model.input == spec:
        return model
    result = copy.copy(model)
    result.input = spec
    return result


def _readings(
    array: Array, spec: InputSpec, name: str, model: str, errors: list[InputError | ModelError]
) -> Iterator[tuple[Array, InputSpec]]:
    """Yield the ways to read the axes of an array for a model that does not state them, the likeliest first."""
    if spec.rank is not None:
        try:
            yield _stated(array, spec, name, model)
        except InputError as error:
            errors.append(error)
    axis = -1 if spec.layout == "channels_last" else 1
    batches = [(batch, True) for batch in (array, array[None], array[None, None])]
    batches += [(np.expand_dims(batch, axis), False) for batch in (array, array[None])]
    readings = [
        (batch, _sized(spec, batch, has_channels))
        for batch, has_channels in batches
        if batch.ndim - 2 in SPACE and not (has_channels and batch.ndim - 2 == spec.rank)
    ]

    def is_likely(reading: tuple[Array, InputSpec]) -> bool:
        """Return whether the first convolution takes as many channels."""
        channels, rank = reading[1].channels, reading[1].rank
        return channels == spec.channels or (not channels and spec.channels == 1 and rank == spec.rank)

    yield from sorted(readings, key=is_likely, reverse=True)
    if not errors:
        errors.append(
            InputError(
                f"cannot use {name} of shape {list(array.shape)}: an input has one, two or three spatial axes; give a batch as "
                f"{model} takes it"
            )
        )


def _sized(spec: InputSpec, batch: Array, has_channels: bool) -> InputSpec:
    """Return the input for the size of a batch, whose channel axis is the core's own unless `has_channels`."""
    shape = shape_to_channels_first(batch.shape[1:], spec.layout)
    return dataclasses.replace(spec, channels=shape[0] if has_channels else 0, channels_known=True, size=shape[1:])


def _with_layout(model: Model, spec: InputSpec) -> InputSpec:
    """Return the input with the channels last where the layers of a sequence show it: they have as many positions.

    A model of sequences that begins with Linear takes [N, L, C].
    """
    if spec.rank != 1 or not spec.channels or model.input.rank is not None or spec.layout == "channels_last":
        return spec
    lengths = {
        layer.shape[1]
        for layer in validation.layers(view(model, spec))
        if len(layer.shape) == 2 and layer.layout != "channels_first"
    }
    (length,) = spec.size or (None,)
    if spec.channels not in lengths or length is None or length in lengths:
        return spec
    return dataclasses.replace(spec, layout="channels_last", channels=length, size=(spec.channels,))


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


def _stated(array: Array, spec: InputSpec, name: str, model: str) -> tuple[Array, InputSpec]:
    """Return an array with a batch axis, and the input for its size, for a model of a known number of axes."""
    rank, shape = spec.rank, list(array.shape)
    if rank not in SPACE:
        raise ModelError(
            f"{model} takes inputs with {rank} spatial axes, and maps are drawn for one, two or three; use model.trace"
        )
    has_channels = bool(spec.channels)
    if not has_channels:  # the core gives it a channel axis
        spec = dataclasses.replace(spec, channels=1)
    axis = -1 if spec.layout == "channels_last" else -rank - 1
    axes = shape_from_channels_first(("C", *SPACE[rank]), spec.layout)
    expected = f"[{', '.join(axes)}] or [N, {', '.join(axes)}]"
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
    _check_size(size, spec, f"{name} of shape {shape}", model)
    return batch, _sized(spec, batch, has_channels)


def _check_size(size: tuple[int, ...], spec: InputSpec, name: str, model: str) -> None:
    """Raise InputError where the model takes another size."""
    if spec.fixed and any(m not in (n, None) for m, n in zip(spec.size or size, size, strict=True)):
        raise InputError(
            f"cannot use {name}: {model} takes the size {by(spec.size)}, not {by(size)}, and arrays are not resized; crop, "
            "pad or resample it first"
        )
