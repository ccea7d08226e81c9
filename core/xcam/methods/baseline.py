"""Random weights: the baseline for the measures of trust."""

from __future__ import annotations

import numpy as np

from xcam.methods.inputs import generator
from xcam.methods.maps import Array, weigh
from xcam.methods.registry import method


@method("random", source="xcam, a baseline", passes="1 forward")
def random(activations: Array, *, seed: int = 0) -> Array:
    """Σc w·A with w uniform in −1…1: random weights, the same for every image and class.

    The weights depend on `seed` and on the number of channels only.
    """
    weights = generator(seed).uniform(-1, 1, size=(1, activations.shape[1]))
    return weigh(np.broadcast_to(weights.astype(activations.dtype), activations.shape[:2]), activations)
