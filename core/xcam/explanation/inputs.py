"""The input of an explanation: its size, its preprocessing, and the variants that `augment` averages over."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xcam.contract import DEFAULT_SIZE, Array, InputSpec
from xcam.contract.preprocessing import PRESETS, Preprocessing
from xcam.errors import InputError, ModelError, warn
from xcam.images import framing
from xcam.models.load import LARGEST, by

AUGMENTATIONS = [
    (is_mirrored, factor) for is_mirrored in (False, True) for factor in (0.9, 1.0, 1.1) if is_mirrored or factor != 1
]
"""The variants of an input, in addition to the input itself: whether it is mirrored, and the factor of its values."""


def input_size(spec: InputSpec, image: Sequence[int]) -> tuple[int, int]:
    """Return the size of the input for an image: an open side follows from the other and from the image's ratio.

    Args:
        spec: The model's input.
        image: The image's shape, (height, width, …).

    Raises:
        ModelError: The model does not take images.
    """
    check_images(spec)
    height, width = spec.size or (None, None)
    if height is None and width is None:
        return (spec.fit and framing.fitted_size(image, spec.fit)) or DEFAULT_SIZE
    if height is None:
        return _side((width or 0) * image[0] / image[1]), width or 0
    return height, _side(height * image[1] / image[0]) if width is None else width


def check_images(spec: InputSpec) -> None:
    """Raise ModelError where the model does not take images."""
    if spec.rank not in (2, None):
        inputs = {1: "signals", 3: "volumes"}.get(spec.rank, "inputs")
        size = f" of {by(spec.size)}" if spec.size and None not in spec.size else ""
        raise ModelError(
            f"the model takes {inputs}{size}, not images; give `explain` an array as it takes it, or its .npy file"
        )


def _side(length: float) -> int:
    return min(max(round(length), 1), LARGEST)


def input_preprocessing(spec: InputSpec, name: str) -> Preprocessing:
    """Return the preprocessing of the model `name`; warns where its input does not state one.

    Raises:
        InputError: The model takes integers, and the stated preprocessing gives fractions.
    """
    stated = spec.preprocessing
    if not np.issubdtype(np.dtype(spec.dtype), np.floating):
        if stated not in (None, PRESETS["raw"]):
            raise InputError(
                f"{name} takes integers ({spec.dtype}), and {stated.name!r} gives fractions; use preprocess='raw' "
                "(--preprocess raw)"
            )
        return PRESETS["raw"]
    if stated is not None:
        return stated
    warn(f"{name} does not state how images are scaled: 'unit' (0…1) is used; choose with preprocess= (--preprocess)")
    return PRESETS["unit"]


def augmented(x: Array, spec: InputSpec, is_mirrored: bool, factor: float) -> Array:
    """Return a batch mirrored left to right where `is_mirrored`, with its values multiplied by `factor`."""
    if is_mirrored:
        x = np.ascontiguousarray(np.flip(x, -2 if spec.layout == "channels_last" else -1))
    return as_input(x * factor, x)


def as_input(values: Array, batch: Array) -> Array:
    """Return changed values of a batch in its type; integers are rounded, and kept in 0…255 where those of the batch are."""
    dtype = batch.dtype
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        are_pixels = batch.min() >= 0 and batch.max() <= 255
        values = np.clip(np.rint(values), *((0, 255) if are_pixels else (limits.min, limits.max)))
    return np.ascontiguousarray(values, dtype)
