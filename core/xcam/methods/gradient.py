"""Methods that weigh activations by gradients. A and G are [N, C, *spatial]; each returns [N, *spatial], before ReLU.

S is the sum over space, mean the mean over space, Σc the sum over channels. `eigen_smooth` puts the first principal
component of the weighed activations in the place of their sum (pytorch-grad-cam's option of that name).
"""

from __future__ import annotations

import numpy as np

from xcam.methods.inputs import Hvp, Tracer, check, generator
from xcam.methods.maps import Array, pool, relu, total, weigh
from xcam.methods.registry import method
from xcam.progress import steps


@method("gradcam", source="Selvaraju et al. 2017, Eq. 1–2")
def gradcam(activations: Array, gradients: Array, *, eigen_smooth: bool = False) -> Array:
    """Σc mean(G)·A: each channel weighed by its mean gradient."""
    return weigh(pool(gradients), activations, eigen_smooth)


@method("gradcam++", source="Chattopadhay et al. 2018, Eq. 19")
def gradcam_plus_plus(activations: Array, gradients: Array, *, eigen_smooth: bool = False) -> Array:
    """Σc S(α·relu(G))·A with α = 1/(2 + max(S(A), 0)·G): pooled so that several objects count alike.

    The paper's α = G²/(2G² + S(A)·G³), cut down by G²: nothing underflows where gradients are small, and no ε swamps
    them. The paper takes A ≥ 0; for a layer with negative values S(A) counts as 0 where it is less, and so α has no pole.
    """
    positive = relu(gradients)
    alpha = 1 / (2 + relu(total(activations)) * positive)
    return weigh((alpha * positive).sum(axis=_space(activations)), activations, eigen_smooth)


@method("xgradcam", source="Fu et al. 2020, Eq. 7")
def xgradcam(activations: Array, gradients: Array, *, eigen_smooth: bool = False) -> Array:
    """Σc (S(G·A)/S(A))·A: gradients weighed by the activations they meet; 0 where S(A) is 0."""
    below = activations.sum(axis=_space(activations))
    above = (gradients * activations).sum(axis=_space(activations))
    return weigh(np.divide(above, below, out=np.zeros_like(above), where=below != 0), activations, eigen_smooth)


@method("layercam", source="Jiang et al. 2021, Eq. 6–7")
def layercam(activations: Array, gradients: Array, *, eigen_smooth: bool = False) -> Array:
    """Σc relu(G)·A: each place weighed by its own positive gradient."""
    return weigh(relu(gradients), activations, eigen_smooth)


@method("hirescam", source="Draelos and Carin 2020, Eq. 5")
def hirescam(activations: Array, gradients: Array, *, eigen_smooth: bool = False) -> Array:
    """Σc G·A: gradient times activation, place by place, without pooling."""
    return weigh(gradients, activations, eigen_smooth)


@method("gradcam-elementwise", source="pytorch-grad-cam, GradCAMElementWise")
def gradcam_elementwise(activations: Array, gradients: Array) -> Array:
    """Σc relu(G·A): hirescam with every product that speaks against the target left out."""
    return np.asarray(relu(gradients * activations).sum(axis=1))


@method("shapleycam", source="Cai 2025, Eq. 12", passes="1 forward, 1 backward, 1 double backward")
def shapleycam(activations: Array, gradients: Array, hvp: Hvp, *, eigen_smooth: bool = False) -> Array:
    """Σc mean(G − ½·H·A)·A: Shapley values to second order, H being the Hessian of the score at the layer.

    H·A comes from a double backward pass where the backend has one (`hvp`); else from the difference of two gradients,
    at A·(1 ± ε) with ε = 0.01, which is off by 8 % and more where the tail has kinks (ReLU). A tail that is linear piece
    by piece has H = 0 for a logit: the map is then Grad-CAM's. Choose `score="probability"` there.
    """
    return weigh(pool(gradients - 0.5 * hvp(activations)), activations, eigen_smooth)


@method("smoothgradcam++", source="Omeiza et al. 2019, Eq. 7–9", passes="1 + n forward, n backward")
def smooth_gradcam_plus_plus(
    activations: Array, x: Array, trace: Tracer, *, n: int = 8, std: float = 0.15, seed: int = 0
) -> Array:
    """Σc S(α·relu(Ḡ))·A, α = mean(G²)/(2·mean(G²) + S(A)·mean(G³)), means over n noisy pictures.

    std: of the noise, as a share of the range of the model's input (Smilkov et al. 2017). A is that of the clean picture.
    """
    check(n=n, std=std)
    spread = std * (x.max(axis=_space(x, 1), keepdims=True) - x.min(axis=_space(x, 1), keepdims=True))
    random = generator(seed)
    powers = [np.zeros(activations.shape, np.float64) for _ in range(3)]
    for _ in steps(range(n), "noisy pictures"):
        noise = random.normal(size=x.shape[1:]).astype(x.dtype)
        gradients = trace(x + spread * noise, range(len(x)))[1].astype(np.float64)
        for k, power in enumerate(powers):
            power += gradients ** (k + 1) / n
    first, second, third = powers
    below = 2 * second + relu(total(activations)) * third
    alpha = np.divide(second, below, out=np.zeros_like(second), where=below > 0)
    weights = (alpha * relu(first)).sum(axis=_space(activations))
    return weigh(weights.astype(activations.dtype), activations)


def _space(array: Array, first: int = 2) -> tuple[int, ...]:
    return tuple(range(first, array.ndim))
