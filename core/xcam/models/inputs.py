"""The values of a model's other inputs: read from files and numbers, and images prepared as the model's own are."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xcam.contract import DEFAULT_SIZE, Array, InputSpec
from xcam.contract.files import check_file
from xcam.contract.fixed import FORMS, FixedInputs, ImageValue, TextValue
from xcam.contract.layouts import filled
from xcam.contract.preprocessing import PRESETS
from xcam.errors import InputError
from xcam.images import arrays, batches, reading

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")


def fixed_inputs(inputs: Any, image_input: Any) -> FixedInputs:
    """Return the values of a model's other inputs, read from their files.

    Args:
        inputs: See `xcam.load`.
        image_input: See `xcam.load`.

    Raises:
        InputError: A value cannot be read, or is not a number, an array or a text.
    """
    if inputs is not None and not isinstance(inputs, Mapping):
        raise InputError(f"cannot use inputs={inputs!r:.80}; give a dictionary from names of inputs to values")
    if image_input is not None and (not isinstance(image_input, str) or not image_input):
        raise InputError(f"cannot use image_input={image_input!r:.80}; give the name of an input")
    stated = {str(name): value for name, value in (inputs or {}).items()}
    values = {name: _value(name, value) for name, value in stated.items()}
    plain = frozenset(name for name, value in stated.items() if not hasattr(value, "dtype") and not _has_type(value))
    return FixedInputs(values, image_input, plain)


def _has_type(value: Any) -> bool:
    """Return whether a value is a file that states the type of its numbers."""
    return isinstance(value, str | os.PathLike) and arrays.is_array_file(value)


def _value(name: str, value: Any) -> Any:
    if isinstance(value, os.PathLike) or (isinstance(value, str) and not _is_literal(value)):
        return _from_file(name, os.fspath(value))
    if isinstance(value, str):
        value = json.loads(value)
    if hasattr(value, "detach"):  # a tensor of torch, which may require gradients
        value = value.detach().cpu()
    if isinstance(value, bool | int | float):
        return value
    return _array(name, value, f"{value!r:.60}")


def _is_literal(text: str) -> bool:
    """Return whether a text is a number, true, false, or a list of these."""
    try:
        return isinstance(json.loads(text), bool | int | float | list)
    except ValueError:
        return False


def _array(name: str, value: Any, shown: str) -> Any:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"cannot use {shown} for the input {name!r}: its rows differ in length; give an array"
        ) from error
    if array.dtype.kind in "US":
        return TextValue(tuple(str(line) for line in np.ravel(array)))
    if array.dtype.kind not in "biuf":
        raise InputError(f"cannot use {shown} for the input {name!r}: it is not an array of numbers; give {FORMS}")
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3:
        return ImageValue(reading.check(array, f"inputs[{name!r}]"), f"inputs[{name!r}]")
    return array


def _from_file(name: str, text: str) -> Any:
    """Return the content of a file. Raises InputError."""
    path = Path(text)
    suffix = path.suffix.lower()
    if arrays.is_array_file(text):
        return arrays.read(text)
    if suffix in IMAGES:
        return ImageValue(reading.read(path), str(path))
    if suffix not in (".json", ".txt", ".csv"):
        raise InputError(f"cannot use {text!r} for the input {name!r}: give {FORMS}")
    check_file(path, "numbers or a text")
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}; give a text file in UTF-8") from error
    if suffix == ".json":
        try:
            return _array(name, json.loads(content), str(path))
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"cannot read {path}: {error}; give JSON with a number or a list of numbers") from error
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    if not lines:
        raise InputError(f"cannot use {path} for the input {name!r}: it is empty; give numbers or a text")
    try:
        rows = [[_number(part) for part in line.replace(",", " ").split()] for line in lines]
    except ValueError:
        return TextValue(tuple(lines))
    return _array(
        name, rows[0] if len(rows) == 1 else [row[0] for row in rows] if _is_column(rows) else rows, str(path)
    )


def _number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _is_column(rows: list[list[float]]) -> bool:
    return all(len(row) == 1 for row in rows)


def has_images(fixed: FixedInputs) -> bool:
    """Return whether a value is an image."""
    return any(isinstance(value, ImageValue) for value in fixed.values.values())


def with_images(fixed: FixedInputs, spec: InputSpec) -> FixedInputs:
    """Return the values with each image prepared as the model's own images are.

    Args:
        fixed: The values.
        spec: The model's input.
    """

    def prepared(value: Any) -> Any:
        if not isinstance(value, ImageValue):
            return value
        is_float = np.issubdtype(np.dtype(spec.dtype), np.floating)
        preprocessing = (spec.preprocessing if is_float else None) or PRESETS["unit" if is_float else "raw"]
        height, width = filled(spec.size, DEFAULT_SIZE) or DEFAULT_SIZE
        x: Array = batches.batch([value.pixels], spec, (height or 0, width or 0), preprocessing)
        return x if spec.channels else x.reshape(x.shape[0], height or 0, width or 0)

    return FixedInputs({name: prepared(value) for name, value in fixed.values.items()}, fixed.image, fixed.plain)
