"""Methods that weigh activations by gradients. A and G are [N, C, *spatial]; each returns [N, *spatial], before ReLU."""

from __future__ import annotations

from xcam.maps import Array, pool, relu, weigh
from xcam.methods import method


@method("gradcam", source="Selvaraju et al. 2017, Eq. 1–2")
def gradcam(activations: Array, gradients: Array) -> Array:
    """Σc mean(G)·A: each channel weighed by its mean gradient."""
    return weigh(pool(gradients), activations)


@method("hirescam", source="Draelos and Carin 2020")
def hirescam(activations: Array, gradients: Array) -> Array:
    """Σc G·A: gradient times activation, place by place, without pooling."""
    return (gradients * activations).sum(axis=1)


@method("layercam", source="Jiang et al. 2021")
def layercam(activations: Array, gradients: Array) -> Array:
    """Σc relu(G)·A: each place weighed by its own positive gradient."""
    return (relu(gradients) * activations).sum(axis=1)
