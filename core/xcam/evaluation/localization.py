"""Whether a map points at the object, where a box or a mask of the object is given.

Measured at the size of each image; NaN for an image without a mask. An all-zero map points at nothing: 0.
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
"""15 pixels of an image of about 500, as in the paper."""


@measure("pointing", better="higher", source="Zhang et al. 2018")
def pointing_game(heatmaps: Sequence[Array], masks: Masks, *, tolerance: float = TOLERANCE) -> Array:
    """1 where the map's maximum is on the object, or at most `tolerance` away from it; else 0.

    Of several maxima, the one nearest to their centre counts. A constant map points nowhere: 0.

    Args:
        heatmaps: One map [h, w] for each image.
        masks: The object's mask for each image, or None.
        tolerance: A share of the image's longer side, 0…1.

    Raises:
        InputError: The tolerance is out of range.
    """
    if not 0 <= tolerance <= 1:
        raise InputError(
            f"cannot use tolerance={tolerance}: it is a share of the image's longer side; give a number from 0 to 1"
        )

    def hit(heatmap: Array, mask: Array) -> float:
        maxima = np.argwhere(heatmap == heatmap.max())
        if len(maxima) == heatmap.size:
            return 0.0
        y, x = maxima[np.square(maxima - maxima.mean(axis=0)).sum(axis=1).argmin()]
        return float(_distance(mask)[y, x] <= tolerance * max(mask.shape))

    return _per_image(hit, heatmaps, masks)


@measure(
    "energy",
    better="higher",
    source="Wang et al. 2020 (energy-based pointing game); Arras et al. 2022 (relevance mass accuracy)",
)
def energy(heatmaps: Sequence[Array], masks: Masks) -> Array:
    """Σ of the map on the object / Σ of the map: the share of the map that is on the object."""
    return _per_image(
        lambda heatmap, mask: float(heatmap[mask].sum(dtype=np.float64) / heatmap.sum(dtype=np.float64)),
        heatmaps,
        masks,
    )


@measure("relevance-rank", better="higher", source="Arras et al. 2022 (relevance rank accuracy)", default=False)
def relevance_rank(heatmaps: Sequence[Array], masks: Masks) -> Array:
    """The share of the K highest pixels that are on the object, with K the object's size in pixels.

    Where only some of several equal values are among the K, each of them counts with the same fraction.
    """

    def share(heatmap: Array, mask: Array) -> float:
        count = int(mask.sum())
        last = np.partition(heatmap, heatmap.size - count, axis=None)[-count]
        above, equal = heatmap > last, heatmap == last
        return float((mask[above].sum() + (count - above.sum()) * mask[equal].mean()) / count)

    return _per_image(share, heatmaps, masks)


def _per_image(value: Callable[[Array, Array], float], heatmaps: Sequence[Array], masks: Masks) -> Array:
    result = np.full(len(heatmaps), np.nan)
    for k, (heatmap, mask) in enumerate(zip(heatmaps, masks, strict=True)):
        if mask is not None and mask.any():
            result[k] = value(heatmap, mask) if heatmap.max() > 0 else 0.0
    return result


def _distance(mask: Array) -> Array:
    """Return the distance of each pixel to the nearest pixel of the mask, in pixels; 0 on the mask."""
    cv2 = opencv.load()
    return np.asarray(cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE))
