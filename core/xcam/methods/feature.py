"""Feature explanation: what stands out among the activations themselves."""

from __future__ import annotations

import numpy as np

from xcam.errors import InputError, nearest
from xcam.methods.maps import Array, weigh
from xcam.methods.registry import method

VARIANTS = ("paper", "pytorch-grad-cam")


@method("fem", source="Fuad et al. 2020, Eq. 1–3", passes="1 forward")
def fem(activations: Array, *, k: float = 2.0, variant: str = "paper") -> Array:
    """Σc mean(A)·1[A ≥ mean + k·std]: places where a channel stands out, weighed by the channel's mean.

    variant="pytorch-grad-cam": Σc w·A with w the share of places where A > mean + k·std.
    """
    if variant not in VARIANTS:
        raise InputError(f"no variant {variant!r} of fem; {nearest(str(variant), VARIANTS)}")
    space = tuple(range(2, activations.ndim))
    mean = activations.mean(axis=space, keepdims=True)
    limit = mean + k * activations.std(axis=space, keepdims=True)
    if variant == "paper":
        return np.asarray((mean * (activations >= limit)).sum(axis=1))
    return weigh((activations > limit).mean(axis=space).astype(activations.dtype), activations)
