"""The input of an explanation: its size, its preprocessing, and the variants that `augment` averages over."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xcam.contract import DEFAULT_SIZE, Array, InputSpec
from xcam.contract.preprocessing import PRESETS, Preprocessing
from xcam.errors import InputError, ModelError, warn
from xcam.models.load import LARGEST, by

AUGMENTATIONS = [
    (is_mirrored, factor) for is_mirrored in (False, True) for factor in (0.9, 1.0, 1.1) if is_mirrored or factor != 1
]
"""The variants of an input, in addition to the input itself: whether it is mirrored, and the factor of its values."""


def input_size(spec: InputSpec, image: Sequence[int]) -> tuple[int, int]:
    """Return the size to which an image is resized: an open side follows from the other and from the image's ratio.

    Args:
        spec: The model's input.
        image: The image's shape, (height, width, …).

    Raises:
        ModelError: The model does not take images.
    """
    if spec.size is None:
        return DEFAULT_SIZE
    if len(spec.size) != 2:
        raise ModelError(f"the model takes inputs of {by(spec.size)}, not images; call model.trace with an array")
    height, width = spec.size
    if height is None and width is None:
        return DEFAULT_SIZE
    if height is None:
        return _side((width or 0) * image[0] / image[1]), width or 0
    return height, _side(height * image[1] / image[0]) if width is None else width


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
            raise InputError(f"{name} takes integers ({spec.dtype}), and {stated.name!r} gives fractions; use raw")
        return PRESETS["raw"]
    if stated is not None:
        return stated
    warn(f"{name} does not state how images are scaled: 'unit' (0…1) is used; choose with preprocess= (--preprocess)")
    return PRESETS["unit"]


def augmented(x: Array, spec: InputSpec, is_mirrored: bool, factor: float) -> Array:
    """Return a batch mirrored left to right where `is_mirrored`, with its values multiplied by `factor`."""
    if is_mirrored:
        x = np.ascontiguousarray(np.flip(x, -2 if spec.layout == "channels_last" else -1))
    if np.issubdtype(x.dtype, np.integer):  # pixels
        return np.clip(np.rint(x * factor), 0, 255).astype(x.dtype)
    return x * np.asarray(factor, x.dtype)
