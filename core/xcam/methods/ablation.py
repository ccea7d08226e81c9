"""Methods that change the layer's own value, and run only what follows it."""

from __future__ import annotations

import numpy as np

from xcam.methods.inputs import Runner, scored
from xcam.methods.maps import Array, weigh
from xcam.methods.registry import method


@method("ablationcam", source="Desai and Ramaswamy 2020, Eq. 2", passes="1 forward, C runs of the tail")
def ablationcam(activations: Array, value: Array, resume: Runner, *, eigen_smooth: bool = False) -> Array:
    """Σc w·A, w = (y − y without channel c)/|y|: what the score loses when a channel is set to zero."""
    weights = np.zeros(activations.shape[:2], np.float64)
    for row, a in enumerate(activations):

        def without(part: slice, a: Array = a) -> Array:
            variants = np.repeat(a[None], part.stop - part.start, axis=0)
            variants[np.arange(len(variants)), np.arange(part.start, part.stop)] = 0
            return variants

        left = scored(resume, row, len(a), without, a.nbytes, "channels left out")
        weights[row] = (value[row] - left) / (abs(float(value[row])) or 1.0)
    return weigh(weights.astype(activations.dtype), activations, eigen_smooth)


@method("reciprocam", source="Byun and Lee 2022, Eq. 3", passes="1 forward, H·W runs of the tail")
def reciprocam(activations: Array, resume: Runner) -> Array:
    """y − min(y), y being the score with only one place of A kept: what that place says alone.

    The minimum over places is taken off as in the paper, which also divides by the range: a constant factor, which
    normalisation removes.
    """
    n, _, *space = activations.shape
    cam = np.empty((n, int(np.prod(space))), np.float64)
    for row, a in enumerate(activations):
        flat = a.reshape(len(a), -1)

        def alone(part: slice, flat: Array = flat) -> Array:
            places = np.arange(part.start, part.stop)
            variants = np.zeros((len(places), *flat.shape), flat.dtype)
            variants[np.arange(len(places)), :, places] = flat[:, places].T
            return variants.reshape(len(places), len(flat), *space)

        cam[row] = scored(resume, row, flat.shape[1], alone, a.nbytes, "places alone")
    return (cam - cam.min(axis=1, keepdims=True)).reshape(n, *space).astype(activations.dtype)
