"""Fusing the maps of several layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np

from xcam.errors import InputError, ZeroHeatmapWarning, keywords_checked, nearest, warn
from xcam.explanation.result import Explanation
from xcam.methods import maps

Fusion = Literal["mean", "max", "product"]


def check_fusion(fusion: object) -> None:
    """Raise InputError where `fusion` is not a fusion."""
    if fusion not in get_args(Fusion):
        raise InputError(f"unknown fusion {fusion!r}; {nearest(str(fusion), get_args(Fusion))}")


@keywords_checked()
def fuse(explanations: Sequence[Explanation], fusion: Fusion = "mean") -> Explanation:
    """Fuse the maps of several layers, for one image and one target.

    Each map is divided by its maximum after ReLU and enlarged to the size of the largest layer. The maps are then
    combined at each position.

    Args:
        explanations: One or more, of the same image and the same target.
        fusion: `mean`, `max` or `product`.

    Raises:
        InputError: The explanations differ in image or target.

    Warns:
        ZeroHeatmapWarning: The fused map is zero everywhere, though no layer's map is.
    """
    check_fusion(fusion)
    if not explanations:
        raise InputError("there is nothing to fuse; give one explanation or more")
    first = explanations[0]
    for e in explanations[1:]:
        inputs = (e.image, first.image) if e.values is None or first.values is None else (e.values, first.values)
        if e.label != first.label or not np.array_equal(*inputs):
            raise InputError(
                f"{e.label!r} at {e.layer} is another image or class than {first.label!r} at {first.layer}; fuse maps "
                "of one image and one target"
            )
        if e.frame != first.frame:
            raise InputError(
                f"the maps at {e.layer} and {first.layer} cover different parts of the image, or of other sizes; fuse maps of one "
                "fit and size of the input"
            )
    size = [max(lengths) for lengths in zip(*(e.cam.shape for e in explanations), strict=True)]
    small = [maps.normalize(e.positive[None], "max")[0] for e in explanations]
    stack = np.stack([maps.resize(cam, size) for cam in small])
    cam = stack.mean(axis=0) if fusion == "mean" else stack.max(axis=0) if fusion == "max" else stack.prod(axis=0)
    if not cam.max() > 0 and all(e.cam.max() > 0 for e in explanations):
        warn(
            f"the {fusion} of {len(explanations)} layers is zero everywhere, though no layer's map is: the maps do not "
            "overlap (try mean)",
            ZeroHeatmapWarning,
        )
    return replace(first, cam=cam, layer=f" {fusion} ".join(e.layer for e in explanations))


def fuse_all(results: Sequence[Any], fusion: Fusion) -> Any:
    """Fuse the results of `explain` for several layers, which may be nested lists of equal shape."""
    if isinstance(results[0], Explanation):
        return fuse(results, fusion)
    return [fuse_all(same, fusion) for same in zip(*results, strict=True)]
