"""The baseline that every method has to beat."""

from __future__ import annotations

import numpy as np

from xcam.methods.inputs import generator
from xcam.methods.maps import Array, weigh
from xcam.methods.registry import method


@method("random", source="a baseline of our own", passes="1 forward")
def random(activations: Array, *, seed: int = 0) -> Array:
    """Σc w·A with w drawn uniformly from −1…1: the same weights for every picture and class.

    `seed` chooses the weights.
    """
    weights = generator(seed).uniform(-1, 1, size=(1, activations.shape[1]))
    return weigh(np.broadcast_to(weights.astype(activations.dtype), activations.shape[:2]), activations)
