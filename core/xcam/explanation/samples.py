"""Inputs that are given as arrays: signals, volumes, and images that are not RGB.

An array is passed to the model as it is, without resizing. Its shape is that of the model's own input, with or without
the batch axis; a model of one channel also takes it without the channel axis. Arrays of uint8 contain pixels, and are
scaled as images are; all others are not scaled.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xcam.contract import Array, InputSpec, Model
from xcam.contract.layouts import to_channels_first
from xcam.contract.preprocessing import Preprocessing
from xcam.errors import InputError, warn
from xcam.explanation.axes import arranged, view
from xcam.explanation.inputs import check_images, input_preprocessing
from xcam.images import arrays

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
    spec: InputSpec
    """The model's input for this size."""
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
    """Return a view of the model for the size of a sample; the model itself for an image."""
    return view(model, source.spec) if isinstance(source, Sample) else model


def _samples(model: Model, source: Any) -> Iterator[Sample]:
    """Yield the samples of an array or of a file. Raises InputError."""
    path = None
    if isinstance(source, np.ndarray):
        array, name = np.array(source), "the array"
    else:
        path = Path(source)
        array, name = arrays.read(path), str(path)
    batch, spec = arranged(model, array, name)
    for row in batch:
        values = to_channels_first(row[None], spec.layout)[0]
        yield Sample(_converted(row, spec, name, model.name), values, spec, path)


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
