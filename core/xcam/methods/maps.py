"""The arithmetic of class activation maps: pooling, weighting, ReLU, normalisation, resizing.

Pure functions of arrays [N, C, *space] with any number of spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from xcam.errors import InputError, nearest
from xcam.images import opencv, resizing

Array = npt.NDArray[Any]
Normalize = Literal["max", "minmax", "none"]


def _spatial(array: Array, first: int) -> tuple[int, ...]:
    """Return the indices of the spatial axes, of which `first` is the first."""
    return tuple(range(first, array.ndim))


def pool(gradients: Array) -> Array:
    """Return the mean over space, [N, C, *space] → [N, C]: the weights of Grad-CAM (Selvaraju et al. 2017, Eq. 1)."""
    return gradients.mean(axis=_spatial(gradients, 2))


def total(array: Array) -> Array:
    """Return the sum over space, [N, C, *space] → [N, C, 1, …]."""
    return np.asarray(array.sum(axis=_spatial(array, 2), keepdims=True))


def weigh(weights: Array, activations: Array, eigen_smooth: bool = False) -> Array:
    """Return the weighted sum of activations over channels, Σc w·A (Selvaraju et al. 2017, Eq. 2, before ReLU).

    The Grad-CAM example of Keras takes the mean over channels instead: a constant factor that normalisation removes.

    Args:
        weights: [N, C], or [N, C, *space] for a weight at each position.
        activations: [N, C, *space].
        eigen_smooth: Whether the first principal component of w·A replaces its sum over channels.

    Returns:
        The raw map [N, *space], signed.
    """
    if eigen_smooth:
        return principal(weights.reshape(*weights.shape, *[1] * (activations.ndim - weights.ndim)) * activations)
    if weights.ndim == 2:
        return np.einsum("nc,nc...->n...", weights, activations)
    return np.einsum("nc...,nc...->n...", weights, activations)


def principal(values: Array, centred: bool = True) -> Array:
    """Return the scores of the first principal component, with channels as variables and positions as observations.

    It is computed in float64 from the smaller of the two Gram matrices. The sign makes the map correlate positively with
    the mean over channels; where the magnitude of that correlation is below 1e-3, the entry of the largest magnitude is
    positive (the first of equal entries). Constant channels give 0.

    Args:
        values: [N, C, *space].
        centred: Whether the mean of each channel over space is subtracted first.

    Returns:
        The raw map [N, *space].
    """
    components = [_component(value.reshape(len(value), -1).T, centred) for value in values]
    return np.stack(components).reshape(len(values), *values.shape[2:]).astype(values.dtype)


def _component(rows: Array, centred: bool) -> Array:
    """Return the scores [P] of the first principal component of [P, C]."""
    x = rows.astype(np.float64)
    mean = x.mean(axis=1)
    if centred:
        x = x - x.mean(axis=0)
    size = np.abs(x).max()
    if not size > 0:
        return np.zeros(len(x))
    x /= size  # squares of small values would underflow
    if len(x) <= x.shape[1]:
        squares, vectors = np.linalg.eigh(x @ x.T)
        cam = vectors[:, -1] * np.sqrt(max(squares[-1], 0.0))
    else:
        cam = x @ np.linalg.eigh(x.T @ x)[1][:, -1]
    return cam * size * _sign(cam, mean)


def _sign(cam: Array, mean: Array) -> float:
    """Return the sign, 1 or −1, that a principal component [P] is multiplied by; see `principal`."""
    a, b = cam - cam.mean(), mean - mean.mean()
    norm = np.linalg.norm(a) * np.linalg.norm(b)
    correlation = float(a @ b / norm) if norm > 0 else 0.0
    if abs(correlation) >= 1e-3:
        return 1.0 if correlation > 0 else -1.0
    return 1.0 if cam[np.abs(cam).argmax()] > 0 else -1.0


def relu(cam: Array) -> Array:
    """Return max(cam, 0), the evidence for the target (Selvaraju et al. 2017, Eq. 2)."""
    return np.maximum(cam, 0)


def normalize(cam: Array, mode: Normalize = "max") -> Array:
    """Scale each map of a batch to 0…1.

    A map that is zero everywhere, or constant with `minmax`, gives zeros, never NaN.

    Args:
        cam: [N, *space].
        mode: `max` divides by the maximum, for maps ≥ 0, and keeps zero at zero; `minmax` maps the minimum to 0 and the
            maximum to 1; `none` returns `cam` itself.

    Returns:
        [N, *space].

    Raises:
        InputError: The mode is unknown.
    """
    if mode not in get_args(Normalize):
        raise InputError(f"unknown normalisation {mode!r}; {nearest(str(mode), get_args(Normalize))}")
    if mode == "none":
        return cam
    space = _spatial(cam, 1)
    if mode == "minmax":
        cam = cam - cam.min(axis=space, keepdims=True)
    top = cam.max(axis=space, keepdims=True)
    return np.divide(cam, top, out=np.zeros_like(cam), where=top > 0)


def scaled(cam: Array, extent: tuple[float, float], mode: Normalize = "max") -> Array:
    """Scale a map to 0…1 by the values of several maps, for one colour scale.

    Args:
        cam: [*space], ≥ 0.
        extent: The smallest and the largest raw value of all maps; negative values count as 0.
        mode: `max` divides by the largest value; `minmax` also subtracts the smallest; `none` returns `cam` itself.

    Returns:
        [*space], zeros where all maps are constant.
    """
    if mode == "none":
        return cam
    low, high = (max(value, 0.0) for value in extent)
    low = low if mode == "minmax" else 0.0
    return np.clip((cam - low) / (high - low), 0, 1) if high > low else np.zeros_like(cam)


def resize(cam: Array, size: Sequence[int]) -> npt.NDArray[np.float32]:
    """Resize a map by linear interpolation with half-pixel centres (for two axes `cv2.INTER_LINEAR`).

    Args:
        cam: [*space], for example [h, w].
        size: The new length of each axis, for example (H, W).

    Returns:
        float32 of shape `size`.
    """
    if cam.ndim != 2:
        return resizing.linear(cam, size)
    cv2 = opencv.load()
    height, width = size
    return np.asarray(cv2.resize(cam.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR))
