"""Methods that replace the layer's activations and run the tail again."""

from __future__ import annotations

import numpy as np

from xcam.methods.inputs import Runner, scored
from xcam.methods.maps import Array, weigh
from xcam.methods.registry import method


@method("ablationcam", source="Desai and Ramaswamy 2020, Eq. 2", passes="1 forward, C runs of the tail")
def ablationcam(activations: Array, value: Array, resume: Runner, *, eigen_smooth: bool = False) -> Array:
    """Σc w·A with w = (y − y without channel c)/|y|: channels weighted by the relative drop of the score.

    A channel is removed by setting it to zero. The paper divides by y, which is positive there; the magnitude keeps the
    sign of the map for a negative score.
    """
    weights = np.zeros(activations.shape[:2], np.float64)
    for row, a in enumerate(activations):

        def without(part: slice, a: Array = a) -> Array:
            variants = np.repeat(a[None], part.stop - part.start, axis=0)
            variants[np.arange(len(variants)), np.arange(part.start, part.stop)] = 0
            return variants

        scores = scored(resume, row, len(a), without, a.nbytes, "channels removed")
        weights[row] = (value[row] - scores) / (abs(float(value[row])) or 1.0)
    return weigh(weights.astype(activations.dtype), activations, eigen_smooth)


@method("reciprocam", source="Byun and Lee 2022, Eq. 3", passes="1 forward, H·W runs of the tail")
def reciprocam(activations: Array, resume: Runner) -> Array:
    """y − min(y) with y the score of A at one position alone, 0 elsewhere: the score of each position.

    The minimum over positions is subtracted as in the paper. The paper also divides by the range, a constant factor
    that normalisation removes.
    """
    n, _, *space = activations.shape
    cam = np.empty((n, int(np.prod(space))), np.float64)
    for row, a in enumerate(activations):
        flat = a.reshape(len(a), -1)

        def alone(part: slice, flat: Array = flat) -> Array:
            positions = np.arange(part.start, part.stop)
            variants = np.zeros((len(positions), *flat.shape), flat.dtype)
            variants[np.arange(len(positions)), :, positions] = flat[:, positions].T
            return variants.reshape(len(positions), len(flat), *space)

        cam[row] = scored(resume, row, flat.shape[1], alone, a.nbytes, "positions alone")
    return (cam - cam.min(axis=1, keepdims=True)).reshape(n, *space).astype(activations.dtype)
