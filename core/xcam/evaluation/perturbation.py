"""Measures that take places away from the picture, or give them back, and watch the target's value.

That of a class is its probability, as in the papers.
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
"""The standard deviation of the blur, as a share of the picture's longer side: shapes are gone, colours are left."""


@measure("deletion", better="lower", source="Petsiuk et al. 2018 (RISE)", passes="steps + 1 forward")
def deletion(
    heatmap: Array, x: Array, score: Runner, *, steps: int = 32, baseline: str = "mean", seed: int = 0
) -> Array:
    """Area under the score while the highest places are taken away, one step after the other: low where the map is right.

    What is taken away becomes the `baseline`: each channel's `mean` over the picture, `zero`, or the picture's `blur`.
    Zero is what the authors use; it is their data's mean, because their model's input is standardised.
    """
    return _area(_curve(x, _ground(x, baseline), heatmap, score, steps, seed))


@measure("insertion", better="higher", source="Petsiuk et al. 2018 (RISE)", passes="steps + 1 forward")
def insertion(
    heatmap: Array, x: Array, score: Runner, *, steps: int = 32, baseline: str = "blur", seed: int = 0
) -> Array:
    """Area under the score while the highest places are put into the blurred picture: high where the map is right."""
    return _area(_curve(_ground(x, baseline), x, heatmap, score, steps, seed))


@measure("average-drop", better="lower", source="Chattopadhay et al. 2018", passes="2 forward", ranks=False)
def average_drop(clean: Array, masked: Array) -> Array:
    """max(0, y − o)/y: how much of the score y is lost when the picture is seen through its map, o. A map of ones: 0.

    A share, where the paper gives percent; 1, all of it, through an empty map, and where o is below zero. NaN where y
    is not positive, which a probability always is.
    """
    lost = np.clip(clean - masked, 0, np.abs(clean))
    return np.divide(lost, clean, out=np.full(len(clean), np.nan), where=clean > 0)


@measure("increase", better="higher", source="Chattopadhay et al. 2018", passes="2 forward")
def increase(clean: Array, masked: Array) -> Array:
    """1[o > y]: whether the score rises when the picture is seen through its map; the mean is the share of pictures."""
    return np.asarray(masked > clean, np.float64)


def _curve(start: Array, end: Array, heatmap: Array, score: Runner, steps: int, seed: int) -> Array:
    """[N, steps + 1] scores on the way from `start` to `end`, the highest places first."""
    check(steps=steps)
    places = order(heatmap, seed)
    size = places.shape[1]

    def change(row: int, count: int) -> Array:
        made = start[row].copy()
        there = places[row, :count]
        unrolled(made)[:, there] = unrolled(end[row])[:, there]
        return made

    return curves(score, start, [round(k * size / steps) for k in range(steps + 1)], change, "deletion and insertion")


def _area(curve: Array) -> Array:
    """By the trapezoidal rule, over a way of length 1."""
    return np.asarray((curve[:, :-1] + curve[:, 1:]).mean(axis=1) / 2)


def _ground(x: Array, baseline: str) -> Array:
    """What the pictures [N, channels, H, W] are where nothing is left of them. Raises InputError."""
    if baseline not in BASELINES:
        raise InputError(f"no baseline {baseline!r}; {nearest(baseline, BASELINES)}")
    if baseline == "zero":
        return np.zeros_like(x)
    if baseline == "mean":
        return np.ascontiguousarray(np.broadcast_to(x.mean(axis=(2, 3), keepdims=True), x.shape))
    cv2 = opencv.load()
    width = BLUR * max(x.shape[2:])
    return np.stack([[cv2.GaussianBlur(channel, (0, 0), width) for channel in picture] for picture in x])
