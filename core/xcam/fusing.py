"""Several layers' maps as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np

from xcam import maps
from xcam.errors import InputError, nearest
from xcam.explanation import Explanation

Fusion = Literal["mean", "max", "product"]


def fuse(explanations: Sequence[Explanation], how: Fusion = "mean") -> Explanation:
    """One explanation of several of the same picture and target: their maps after ReLU, each divided by its maximum and
    enlarged to the largest layer's size, then joined place by place. Raises InputError.
    """
    if how not in get_args(Fusion):
        raise InputError(f"no fusion {how!r}; {nearest(str(how), get_args(Fusion))}")
    if not explanations:
        raise InputError("there is nothing to fuse; give one explanation or more")
    height = max(e.cam.shape[0] for e in explanations)
    width = max(e.cam.shape[1] for e in explanations)
    small = [maps.normalize(e.positive[None], "max")[0] for e in explanations]
    stack = np.stack([maps.resize(cam, (height, width)) for cam in small])
    cam = stack.mean(axis=0) if how == "mean" else stack.max(axis=0) if how == "max" else stack.prod(axis=0)
    return replace(explanations[0], cam=cam, layer=f" {how} ".join(e.layer for e in explanations))


def joined(found: Sequence[Any], how: Fusion) -> Any:
    """`fuse`, through lists of equal shape: what `explain` returned for each layer."""
    if isinstance(found[0], Explanation):
        return fuse(found, how)
    return [joined(same, how) for same in zip(*found, strict=True)]
