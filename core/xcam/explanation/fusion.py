"""Several layers' maps as one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np

from xcam.errors import InputError, ZeroHeatmapWarning, keywords_checked, nearest
from xcam.explanation.result import Explanation
from xcam.methods import maps

Fusion = Literal["mean", "max", "product"]


def check_fusion(how: object) -> None:
    """Raises InputError for an unknown word."""
    if how not in get_args(Fusion):
        raise InputError(f"no fusion {how!r}; {nearest(str(how), get_args(Fusion))}")


@keywords_checked()
def fuse(explanations: Sequence[Explanation], how: Fusion = "mean") -> Explanation:
    """Fuse the maps of several layers, for one image and one target.

    Each map is divided by its maximum after ReLU and enlarged to the size of the largest layer. The maps are then
    combined at each position.

    Args:
        explanations: One or more, of the same image and the same target.
        how: `mean`, `max` or `product`.

    Raises:
        InputError: The explanations differ in image or target.

    Warns:
        ZeroHeatmapWarning: The fused map is zero everywhere, though no layer's map is.
    """
    check_fusion(how)
    if not explanations:
        raise InputError("there is nothing to fuse; give one explanation or more")
    first = explanations[0]
    for e in explanations[1:]:
        if e.label != first.label or not np.array_equal(e.image, first.image):
            raise InputError(
                f"{e.label!r} at {e.layer} is another picture or class than {first.label!r} at {first.layer}; fuse maps "
                "of one picture and one target"
            )
    height = max(e.cam.shape[0] for e in explanations)
    width = max(e.cam.shape[1] for e in explanations)
    small = [maps.normalize(e.positive[None], "max")[0] for e in explanations]
    stack = np.stack([maps.resize(cam, (height, width)) for cam in small])
    cam = stack.mean(axis=0) if how == "mean" else stack.max(axis=0) if how == "max" else stack.prod(axis=0)
    if not cam.max() > 0 and all(e.cam.max() > 0 for e in explanations):
        warnings.warn(
            f"the {how} of {len(explanations)} layers is zero everywhere, though no layer's map is: they never meet "
            "(try mean)",
            ZeroHeatmapWarning,
            stacklevel=2,
        )
    return replace(first, cam=cam, layer=f" {how} ".join(e.layer for e in explanations))


def joined(found: Sequence[Any], how: Fusion) -> Any:
    """`fuse`, through lists of equal shape: what `explain` returned for each layer."""
    if isinstance(found[0], Explanation):
        return fuse(found, how)
    return [joined(same, how) for same in zip(*found, strict=True)]
