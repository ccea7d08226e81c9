"""Methods that look for the direction in which activations vary most. They ask for no class."""

from __future__ import annotations

from xcam.methods.maps import Array, principal
from xcam.methods.registry import method


@method("eigencam", source="Muhammad and Yeasin 2020", passes="1 forward")
def eigencam(activations: Array, *, centred: bool = True) -> Array:
    """The first principal component of A, its C channels as variables and its places as observations.

    centred: each channel's mean is taken off first, as pytorch-grad-cam does; the paper's code leaves it on.
    """
    return principal(activations, centred)


@method("eigengradcam", source="pytorch-grad-cam, EigenGradCAM")
def eigengradcam(activations: Array, gradients: Array, *, centred: bool = True) -> Array:
    """The first principal component of G·A: Eigen-CAM that asks for a class."""
    return principal(gradients * activations, centred)
