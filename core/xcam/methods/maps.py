"""The arithmetic of class activation maps, in the field's own words: pooling, weighting, ReLU, normalisation, resizing.

Pure functions over arrays [N, C, *spatial] with any number of spatial dimensions. Nothing here reads a file,
knows a framework, or remembers anything.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from xcam.errors import InputError, nearest
from xcam.images import opencv

Array = npt.NDArray[Any]
Normalize = Literal["max", "minmax", "none"]


def _spatial(array: Array, first: int) -> tuple[int, ...]:
    return tuple(range(first, array.ndim))


def pool(gradients: Array) -> Array:
    """Global average pooling: mean over space, [N, C, *S] → [N, C]. α of Selvaraju et al. 2017, Eq. 1."""
    return gradients.mean(axis=_spatial(gradients, 2))


def total(array: Array) -> Array:
    """S: the sum over space, [N, C, *S] → [N, C, 1, …]."""
    return np.asarray(array.sum(axis=_spatial(array, 2), keepdims=True))


def weigh(weights: Array, activations: Array, eigen_smooth: bool = False) -> Array:
    """Σc w·A: weights [N, C] or [N, C, *S] and activations [N, C, *S] → map [N, *S]. Selvaraju et al. 2017, Eq. 2.

    The sum is kept, where the classic Keras recipe takes the mean over channels: a constant factor, which
    normalisation removes. eigen_smooth: the first principal component of w·A instead of its sum.
    """
    if eigen_smooth:
        return principal(weights.reshape(*weights.shape, *[1] * (activations.ndim - weights.ndim)) * activations)
    if weights.ndim == 2:
        return np.einsum("nc,nc...->n...", weights, activations)
    return np.einsum("nc...,nc...->n...", weights, activations)


def principal(values: Array, centred: bool = True) -> Array:
    """The first principal component of [N, C, *S], channels being variables and places observations: map [N, *S].

    Found from the smaller of the two Gram matrices. Its sign makes the map correlate positively with the mean over
    channels; where that correlation is below 1e-3 in magnitude, the entry of the largest magnitude is positive, the
    first among equals. Constant values give 0.
    """
    found = [_component(value.reshape(len(value), -1).T, centred) for value in values]
    return np.stack(found).reshape(len(values), *values.shape[2:]).astype(values.dtype)


def _component(rows: Array, centred: bool) -> Array:
    """The first principal component of [P, C], as its P coordinates."""
    x = rows.astype(np.float64)
    mean = x.mean(axis=1)
    if centred:
        x = x - x.mean(axis=0)
    size = np.abs(x).max()
    if not size > 0:
        return np.zeros(len(x))
    x /= size  # so that no square underflows
    if len(x) <= x.shape[1]:
        squares, vectors = np.linalg.eigh(x @ x.T)
        cam = vectors[:, -1] * np.sqrt(max(squares[-1], 0.0))
    else:
        cam = x @ np.linalg.eigh(x.T @ x)[1][:, -1]
    return cam * size * _sign(cam, mean)


def _sign(cam: Array, mean: Array) -> float:
    a, b = cam - cam.mean(), mean - mean.mean()
    norm = np.linalg.norm(a) * np.linalg.norm(b)
    correlation = float(a @ b / norm) if norm > 0 else 0.0
    if abs(correlation) >= 1e-3:
        return 1.0 if correlation > 0 else -1.0
    return 1.0 if cam[np.abs(cam).argmax()] > 0 else -1.0


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
