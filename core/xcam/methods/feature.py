"""Feature explanation maps: unusually large activations, without gradients."""

from __future__ import annotations

import numpy as np

from xcam.errors import InputError, nearest
from xcam.methods.maps import Array, weigh
from xcam.methods.registry import method

VARIANTS = ("paper", "pytorch-grad-cam")


@method("fem", source="Fuad et al. 2020, Eq. 1–3", passes="1 forward")
def fem(activations: Array, *, k: float = 2.0, variant: str = "paper") -> Array:
    """Σc mean(A)·1[A ≥ mean(A) + k·std(A)]: positions of large activations, weighted by the channel's mean.

    Mean and standard deviation (divisor H·W) are over space, for each channel. `variant="pytorch-grad-cam"` is that
    package's map: Σc w·A with w the share of positions where A > mean(A) + k·std(A).
    """
    if variant not in VARIANTS:
        raise InputError(f"unknown variant {variant!r} of fem; {nearest(str(variant), VARIANTS)}")
    space = tuple(range(2, activations.ndim))
    mean = activations.mean(axis=space, keepdims=True)
    limit = mean + k * activations.std(axis=space, keepdims=True)
    if variant == "paper":
        return np.asarray((mean * (activations >= limit)).sum(axis=1))
    return weigh((activations > limit).mean(axis=space).astype(activations.dtype), activations)
