"""Whether a map points at the object, where somebody has said where the object is (a box, a mask).

At each picture's own size; NaN for a picture without a mask. A map that is zero everywhere points at nothing: 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from xcam.errors import InputError
from xcam.evaluation.inputs import Masks
from xcam.evaluation.registry import measure
from xcam.images import opencv
from xcam.methods.maps import Array

TOLERANCE = 0.03
"""15 pixels, on the pictures of about 500 that the paper has."""


@measure("pointing", better="higher", source="Zhang et al. 2018")
def pointing_game(heatmaps: Sequence[Array], masks: Masks, *, tolerance: float = TOLERANCE) -> Array:
    """1 where the map's highest place lies on the object, or no farther from it than `tolerance`; else 0.

    tolerance: a share of the picture's longer side. Of several highest places the one in their middle counts; a map
    that is the same everywhere points nowhere: 0.
    """
    if not 0 <= tolerance <= 1:
        raise InputError(f"tolerance is {tolerance}; give a share of the picture's longer side, 0 to 1")

    def hit(heatmap: Array, mask: Array) -> float:
        highest = np.argwhere(heatmap == heatmap.max())
        if len(highest) == heatmap.size:
            return 0.0
        y, x = highest[np.square(highest - highest.mean(axis=0)).sum(axis=1).argmin()]
        return float(_farness(mask)[y, x] <= tolerance * max(mask.shape))

    return _each(hit, heatmaps, masks)


@measure(
    "energy",
    better="higher",
    source="Wang et al. 2020 (energy-based pointing game); Arras et al. 2022 (relevance mass accuracy)",
)
def energy(heatmaps: Sequence[Array], masks: Masks) -> Array:
    """Σ of the map on the object / Σ of the map: the share of it that lies where it should."""
    return _each(
        lambda heatmap, mask: float(heatmap[mask].sum(dtype=np.float64) / heatmap.sum(dtype=np.float64)),
        heatmaps,
        masks,
    )


@measure("relevance-rank", better="higher", source="Arras et al. 2022 (relevance rank accuracy)", default=False)
def relevance_rank(heatmaps: Sequence[Array], masks: Masks) -> Array:
    """Of the K highest places, K being the object's size, the share that lies on the object.

    Where some of several equal places belong to the K, each of them counts for the same part of itself.
    """

    def share(heatmap: Array, mask: Array) -> float:
        count = int(mask.sum())
        last = np.partition(heatmap, heatmap.size - count, axis=None)[-count]
        above, equal = heatmap > last, heatmap == last
        return float((mask[above].sum() + (count - above.sum()) * mask[equal].mean()) / count)

    return _each(share, heatmaps, masks)


def _each(measured: Callable[[Array, Array], float], heatmaps: Sequence[Array], masks: Masks) -> Array:
    found = np.full(len(heatmaps), np.nan)
    for k, (heatmap, mask) in enumerate(zip(heatmaps, masks, strict=True)):
        if mask is not None and mask.any():
            found[k] = measured(heatmap, mask) if heatmap.max() > 0 else 0.0
    return found


def _farness(mask: Array) -> Array:
    """How far each place is from the nearest place of the mask, in pixels; 0 on it."""
    cv2 = opencv.load()
    return np.asarray(cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE))
