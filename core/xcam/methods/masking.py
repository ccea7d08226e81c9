"""Methods that mask the image with each channel and run the model on it. They need no gradients.

The mask H_c is channel c, resized to the image and scaled to 0…1 (minimum to 0, maximum to 1; a constant channel gives
0). The score is the target's value.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from xcam.errors import InputError, nearest
from xcam.methods.inputs import Runner, check, generator, scored
from xcam.methods.maps import Array, normalize, resize, weigh
from xcam.methods.registry import method
from xcam.progress import steps

PASSES = 16
"""The largest number of masked images in a batch: more need memory and hardly save time on a CPU."""
BASELINES = ("zero", "none")


@method("scorecam", source="Wang et al. 2020, Eq. 7–8", passes="1 + C forward")
def scorecam(
    activations: Array,
    x: Array,
    forward: Runner,
    *,
    baseline: str = "zero",
    softmax: bool = False,
    max_channels: int = 0,
) -> Array:
    """Σc w·A with w = score(x·H_c) − score(baseline): channels weighted by the score of the masked image.

    `baseline="zero"` is an input of zeros, as in the paper's increase of confidence; with `"none"` w = score(x·H_c), as
    in the authors' code. `softmax` applies a softmax over the channels to w, as in the paper's Algorithm 1 and in
    torch-cam. `max_channels` limits the channels to those of the largest energy ΣA²; 0 means all.
    """
    if baseline not in BASELINES:
        raise InputError(f"unknown baseline {baseline!r}; {nearest(str(baseline), BASELINES)}")
    weights = _weights(activations, x, forward, [(1.0, None)], 1, baseline, max_channels)
    return weigh(_shares(weights) if softmax else weights, activations)


@method("sscam", source="Wang, Naidu et al. 2020, Eq. 4", passes="1 + n·C forward")
def sscam(
    activations: Array,
    x: Array,
    forward: Runner,
    *,
    n: int = 35,
    std: float = 2.0,
    seed: int = 0,
    max_channels: int = 0,
) -> Array:
    """Σc w·A with w = mean of score(x·(H_c + δ)) − score(0) over n masks with noise δ: smoothed Score-CAM.

    δ is normal noise of standard deviation `std`. The defaults of n and std are the paper's: 35 times the cost of
    Score-CAM. The noise is twice the range of a mask, and can hide it: on scenes of the demo 30 % of the peaks are on the
    object, with std=0.2 97 %.
    """
    check(n=n, std=std)
    random = generator(seed)
    noisy = ((1.0, std * random.normal(size=x.shape[2:]).astype(x.dtype)) for _ in range(n))
    return weigh(_weights(activations, x, forward, noisy, n, "zero", max_channels), activations)


@method("iscam", source="Naidu et al. 2020, Eq. 5", passes="1 + n·C forward")
def iscam(activations: Array, x: Array, forward: Runner, *, n: int = 10, max_channels: int = 0) -> Array:
    """Σc w·A with w = mean of score(x·(i/n)·H_c) − score(0) over i = 1 … n: Score-CAM integrated over the mask."""
    check(n=n)
    scaled = (((i + 1) / n, None) for i in range(n))
    return weigh(_weights(activations, x, forward, scaled, n, "zero", max_channels), activations)


def _weights(
    a: Array,
    x: Array,
    forward: Runner,
    changes: Iterable[tuple[float, Array | None]],
    count: int,
    baseline: str,
    max_channels: int,
) -> Array:
    """Return [N, C]: the score of each masked image, averaged over the changes of the mask, minus the baseline's score.

    `changes` yields `count` pairs of a factor and noise [H, W] (or None) that are applied to every mask.
    """
    selected = [_strongest(row, max_channels) for row in a]
    weights = np.zeros(a.shape[:2], np.float64)
    base = forward(np.zeros_like(x), range(len(x))) if baseline == "zero" else np.zeros(len(x))
    for _, (factor, noise) in zip(steps(range(count), "variants of the masks"), changes, strict=True):
        for row, channels in enumerate(selected):

            def masked(
                part: slice,
                row: int = row,
                channels: Array = channels,
                factor: float = factor,
                noise: Array | None = noise,
            ) -> Array:
                masks = _masks(a[row, channels[part]], x.shape[2:]) * x.dtype.type(factor)
                return x[row] * (masks if noise is None else masks + noise)[:, None]

            scores = scored(forward, row, len(channels), masked, x[row].nbytes, "masked images", PASSES)
            weights[row, channels] += (scores - base[row]) / count
    return weights.astype(a.dtype)


def _strongest(a: Array, count: int) -> Array:
    """Return the `count` channels of [C, *space] with the largest energy, in ascending order; all for 0."""
    if not 0 <= count <= len(a):
        raise InputError(
            f"cannot use max_channels={count}; give 0 for all, or at most {len(a)}, the number of channels"
        )
    if not count:
        return np.arange(len(a))
    energy = (a.reshape(len(a), -1).astype(np.float64) ** 2).sum(axis=1)
    return np.sort(np.argsort(-energy, kind="stable")[:count])


def _masks(channels: Array, size: tuple[int, ...]) -> Array:
    """Return masks [K, *size] in 0…1 from channels [K, *space]: resized, then scaled."""
    if channels.ndim != len(size) + 1:
        raise InputError(
            f"cannot use channels as masks of the input: they have {channels.ndim - 1} spatial axes, and the input has "
            f"{len(size)}; choose another layer or method"
        )
    wide = np.stack([resize(channel, size) for channel in channels])
    return normalize(wide, "minmax")


def _shares(weights: Array) -> Array:
    """Return the softmax over channels of [N, C]."""
    e = np.exp(weights - weights.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))
