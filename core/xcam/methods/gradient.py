"""Methods that weight activations A by gradients G, both [N, C, *space]. They return maps [N, *space], before ReLU.

S is the sum over space, mean the mean over space, Σc the sum over channels. With `eigen_smooth`, the first principal
component of the weighted activations replaces their sum over channels, as in pytorch-grad-cam.
"""

from __future__ import annotations

import numpy as np

from xcam.methods.inputs import Hvp, Tracer, check, generator
from xcam.methods.maps import Array, pool, relu, total, weigh
from xcam.methods.registry import method
from xcam.progress import steps


@method("gradcam", source="Selvaraju et al. 2017, Eq. 1–2", reads="means")
def gradcam(activations: Array, gradients: Array, *, eigen_smooth: bool = False) -> Array:
    """Σc mean(G)·A: channels weighted by their mean gradients."""
    return weigh(pool(gradients), activations, eigen_smooth)


@method("gradcam++", source="Chattopadhay et al. 2018, Eq. 19")
def gradcam_plus_plus(activations: Array, gradients: Array, *, eigen_smooth: bool = False) -> Array:
    """Σc S(α·relu(G))·A with α = 1/(2 + max(S(A), 0)·G): objects of different sizes get similar weights.

    The paper's α = G²/(2G² + S(A)·G³), reduced by G²: small gradients do not underflow, and no ε is needed. The paper
    assumes A ≥ 0. For layers with negative values, a negative S(A) counts as 0, so that α has no pole.
    """
    positive = relu(gradients)
    alpha = 1 / (2 + relu(total(activations)) * positive)
    return weigh((alpha * positive).sum(axis=_space(activations)), activations, eigen_smooth)


@method("xgradcam", source="Fu et al. 2020, Eq. 7", reads="products")
def xgradcam(activations: Array, gradients: Array, *, eigen_smooth: bool = False) -> Array:
    """Σc (S(G·A)/S(A))·A: channels weighted by activation-weighted mean gradients; 0 where S(A) is 0."""
    divisor = activations.sum(axis=_space(activations))
    products = (gradients * activations).sum(axis=_space(activations))
    weights = np.divide(products, divisor, out=np.zeros_like(products), where=divisor != 0)
    return weigh(weights, activations, eigen_smooth)


@method("layercam", source="Jiang et al. 2021, Eq. 6–7")
def layercam(activations: Array, gradients: Array, *, eigen_smooth: bool = False) -> Array:
    """Σc relu(G)·A: each element weighted by its positive gradient."""
    return weigh(relu(gradients), activations, eigen_smooth)


@method("hirescam", source="Draelos and Carin 2020, Eq. 5")
def hirescam(activations: Array, gradients: Array, *, eigen_smooth: bool = False) -> Array:
    """Σc G·A: gradient times activation, element by element."""
    return weigh(gradients, activations, eigen_smooth)


@method("gradcam-elementwise", source="pytorch-grad-cam, GradCAMElementWise")
def gradcam_elementwise(activations: Array, gradients: Array) -> Array:
    """Σc relu(G·A): positive products of gradient and activation."""
    return np.asarray(relu(gradients * activations).sum(axis=1))


@method("shapleycam", source="Cai 2025, Eq. 12", passes="1 forward, 1 backward, 1 double backward")
def shapleycam(activations: Array, gradients: Array, hvp: Hvp, *, eigen_smooth: bool = False) -> Array:
    """Σc mean(G − ½·H·A)·A: Shapley values to second order, with H the Hessian of the score at the layer.

    H·A is computed by differentiating twice where the backend supports it (`hvp`), else from the difference of two
    gradients at A·(1 ± ε) with ε = 0.01. The difference has errors of 8 % and more where the tail has kinks (ReLU). For
    a piecewise linear tail and a logit H = 0, and the map is that of Grad-CAM; use `score="probability"` there.
    """
    return weigh(pool(gradients - 0.5 * hvp(activations)), activations, eigen_smooth)


@method("smoothgradcam++", source="Omeiza et al. 2019, Eq. 7–9", passes="1 + n forward, n backward")
def smooth_gradcam_plus_plus(
    activations: Array, x: Array, trace: Tracer, *, n: int = 8, std: float = 0.15, seed: int = 0
) -> Array:
    """Σc S(α·relu(Ḡ))·A with α = mean(G²)/(2·mean(G²) + S(A)·mean(G³)): Grad-CAM++ over n noisy images.

    Ḡ, mean(G²) and mean(G³) are means over the noisy images; A is that of the clean image. `std` is the standard
    deviation of the normal noise relative to the range of the model's input (Smilkov et al. 2017).
    """
    check(n=n, std=std)
    spread = std * (x.max(axis=_space(x, 1), keepdims=True) - x.min(axis=_space(x, 1), keepdims=True))
    random = generator(seed)
    powers = [np.zeros(activations.shape, np.float64) for _ in range(3)]
    for _ in steps(range(n), "noisy images"):
        noise = random.normal(size=x.shape[1:]).astype(x.dtype)
        gradients = trace(x + spread * noise, range(len(x)))[1].astype(np.float64)
        for k, power in enumerate(powers):
            power += gradients ** (k + 1) / n
    first, second, third = powers
    divisor = 2 * second + relu(total(activations)) * third
    alpha = np.divide(second, divisor, out=np.zeros_like(second), where=divisor > 0)
    weights = (alpha * relu(first)).sum(axis=_space(activations))
    return weigh(weights.astype(activations.dtype), activations)


def _space(array: Array, first: int = 2) -> tuple[int, ...]:
    return tuple(range(first, array.ndim))
