"""Measures that remove pixels from the image, or restore them, and record the target's value.

For a class, this value is its probability, as in the papers.
"""

from __future__ import annotations

import numpy as np

from xcam.errors import InputError, nearest
from xcam.evaluation.inputs import curves, order, unrolled
from xcam.evaluation.registry import measure
from xcam.images import opencv
from xcam.methods.inputs import Runner, check
from xcam.methods.maps import Array

BASELINES = ("mean", "zero", "blur")
BLUR = 0.05
"""The standard deviation of the blur, as a share of the longer side: shapes disappear, colours remain."""


@measure("deletion", better="lower", source="Petsiuk et al. 2018 (RISE)", passes="steps + 1 forward")
def deletion(
    heatmap: Array, x: Array, score: Runner, *, steps: int = 32, baseline: str = "mean", seed: int = 0
) -> Array:
    """Area under the score while pixels are removed, highest map values first: low for a faithful map.

    Args:
        heatmap: Maps [N, H, W].
        x: Images [N, channels, H, W].
        score: The target's value for changed images.
        steps: The number of steps from the image to the baseline.
        baseline: The value of removed pixels: `mean` of each channel over the image, `zero`, or the image's `blur`. The
            authors use zero, which is the mean of their data, because their model's input is standardised.
        seed: The seed of the order of equal values.
    """
    return _area(_curve(x, _baseline(x, baseline), heatmap, score, steps, seed))


@measure("insertion", better="higher", source="Petsiuk et al. 2018 (RISE)", passes="steps + 1 forward")
def insertion(
    heatmap: Array, x: Array, score: Runner, *, steps: int = 32, baseline: str = "blur", seed: int = 0
) -> Array:
    """Area under the score while pixels are inserted into the blurred image, highest map values first: high for a faithful map.

    The arguments are those of `deletion`.
    """
    return _area(_curve(_baseline(x, baseline), x, heatmap, score, steps, seed))


@measure("average-drop", better="lower", source="Chattopadhay et al. 2018", passes="2 forward", ranks=False)
def average_drop(clean: Array, masked: Array) -> Array:
    """max(0, y − o)/y: the share of the score y that is lost when the image is seen through its map, o. A map of ones gives 0.

    The paper gives it in percent. It is 1 for an empty map and for negative o, and NaN where y is not positive (never
    for a probability).
    """
    lost = np.clip(clean - masked, 0, np.abs(clean))
    return np.divide(lost, clean, out=np.full(len(clean), np.nan), where=clean > 0)


@measure("increase", better="higher", source="Chattopadhay et al. 2018", passes="2 forward")
def increase(clean: Array, masked: Array) -> Array:
    """1[o > y]: whether the score rises when the image is seen through its map. The mean is the share of such images."""
    return np.asarray(masked > clean, np.float64)


def _curve(start: Array, end: Array, heatmap: Array, score: Runner, steps: int, seed: int) -> Array:
    """Return the scores [N, steps + 1] from `start` to `end`, the highest map values first."""
    check(steps=steps)
    indices = order(heatmap, seed)
    size = indices.shape[1]

    def change(row: int, count: int) -> Array:
        image = start[row].copy()
        changed = indices[row, :count]
        unrolled(image)[:, changed] = unrolled(end[row])[:, changed]
        return image

    return curves(score, start, [round(k * size / steps) for k in range(steps + 1)], change, "deletion and insertion")


def _area(curve: Array) -> Array:
    """Integrate over an interval of length 1 by the trapezoidal rule."""
    return np.asarray((curve[:, :-1] + curve[:, 1:]).mean(axis=1) / 2)


def _baseline(x: Array, baseline: str) -> Array:
    """Return the images [N, channels, H, W] with all pixels removed."""
    if baseline not in BASELINES:
        raise InputError(f"unknown baseline {baseline!r}; {nearest(baseline, BASELINES)}")
    if baseline == "zero":
        return np.zeros_like(x)
    if baseline == "mean":
        return np.ascontiguousarray(np.broadcast_to(x.mean(axis=(2, 3), keepdims=True), x.shape))
    cv2 = opencv.load()
    sigma = BLUR * max(x.shape[2:])
    return np.stack([[cv2.GaussianBlur(channel, (0, 0), sigma) for channel in image] for image in x])
