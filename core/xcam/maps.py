"""The arithmetic of class activation maps, in the field's own words: pooling, weighting, ReLU, normalisation, resizing.

Pure functions over arrays [N, C, *spatial] with any number of spatial dimensions. Nothing here reads a file,
knows a framework, or remembers anything.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from xcam import opencv
from xcam.errors import InputError, nearest

Array = npt.NDArray[Any]
Normalize = Literal["max", "minmax", "none"]


def _spatial(array: Array, first: int) -> tuple[int, ...]:
    return tuple(range(first, array.ndim))


def pool(gradients: Array) -> Array:
    """Global average pooling: mean over space, [N, C, *S] → [N, C]. α of Selvaraju et al. 2017, Eq. 1."""
    return gradients.mean(axis=_spatial(gradients, 2))


def weigh(weights: Array, activations: Array) -> Array:
    """Σc w·A: weights [N, C] and activations [N, C, *S] → map [N, *S]. Selvaraju et al. 2017, Eq. 2 before ReLU.

    The sum is kept, where the classic Keras recipe takes the mean over channels: a constant factor, which
    normalisation removes.
    """
    return np.einsum("nc,nc...->n...", weights, activations)


def relu(cam: Array) -> Array:
    """max(cam, 0): only what speaks for the target. Selvaraju et al. 2017, Eq. 2."""
    return np.maximum(cam, 0)


def normalize(cam: Array, how: Normalize = "max") -> Array:
    """Each map of [N, *S] to 0…1: `max` divides by the maximum, `minmax` stretches, `none` leaves it.

    `max` is for maps ≥ 0, and keeps zero where it was. A map that is all zero, or constant under `minmax`, gives
    zeros, never NaN. Raises InputError for another word.
    """
    if how not in get_args(Normalize):
        raise InputError(f"no normalisation {how!r}; {nearest(str(how), get_args(Normalize))}")
    if how == "none":
        return cam
    space = _spatial(cam, 1)
    if how == "minmax":
        cam = cam - cam.min(axis=space, keepdims=True)
    top = cam.max(axis=space, keepdims=True)
    return np.divide(cam, top, out=np.zeros_like(cam), where=top > 0)


def resize(cam: Array, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """One map [h, w] → float32 [H, W]: bilinear, half-pixel centres (cv2.INTER_LINEAR)."""
    cv2 = opencv.load()
    height, width = size
    return np.asarray(cv2.resize(cam.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR))
