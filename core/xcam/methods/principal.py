"""Principal components of the activations."""

from __future__ import annotations

from xcam.methods.maps import Array, principal
from xcam.methods.registry import method


@method("eigencam", source="Muhammad and Yeasin 2020", passes="1 forward")
def eigencam(activations: Array, *, centred: bool = True) -> Array:
    """First principal component of A, with channels as variables and positions as observations.

    It does not depend on the target. With `centred`, the mean of each channel is subtracted first, as in
    pytorch-grad-cam; the paper's code does not subtract it. For its sign see `xcam.methods.maps.principal`.
    """
    return principal(activations, centred)


@method("eigengradcam", source="pytorch-grad-cam, EigenGradCAM")
def eigengradcam(activations: Array, gradients: Array, *, centred: bool = True) -> Array:
    """First principal component of G·A: Eigen-CAM for a target."""
    return principal(gradients * activations, centred)
