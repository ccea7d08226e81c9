"""Methods that show the model the picture through each channel as a mask. No gradient; as many passes as channels.

H_c is a channel, enlarged to the picture and stretched to 0…1 (a channel that is the same everywhere is 0, and so the
baseline). Scores are the target's value.
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
"""Masked pictures in one forward pass: more gain little on a CPU, and cost memory."""
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
    """Σc w·A, w = score(x·H_c) − score(baseline): how much a channel's part of the picture says for the target.

    baseline: `zero`, an input of zeros, as in the paper's increase of confidence; `none`: w = score(x·H_c), as in the
    authors' code. softmax: w goes through a softmax over the channels, as in the paper's algorithm 1 and in torch-cam.
    max_channels: only so many, those of the largest energy ΣA²; 0: all.
    """
    if baseline not in BASELINES:
        raise InputError(f"no baseline {baseline!r}; {nearest(str(baseline), BASELINES)}")
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
    """Σc w·A, w = mean over n of score(x·(H_c + δ)) − score(0), δ noise: Score-CAM, smoothed.

    n and std are the paper's: 35 times Score-CAM's cost, and noise of twice the width of a mask, which can drown it: on the
    demo's scenes 30 % of the peaks are right, and 97 % with std=0.2.
    """
    check(n=n, std=std)
    random = generator(seed)
    noisy = ((1.0, std * random.normal(size=x.shape[2:]).astype(x.dtype)) for _ in range(n))
    return weigh(_weights(activations, x, forward, noisy, n, "zero", max_channels), activations)


@method("iscam", source="Naidu et al. 2020, Eq. 5", passes="1 + n·C forward")
def iscam(activations: Array, x: Array, forward: Runner, *, n: int = 10, max_channels: int = 0) -> Array:
    """Σc w·A, w = mean over i = 1 … n of score(x·(i/n)·H_c) − score(0): Score-CAM, integrated from nothing to H_c."""
    check(n=n)
    grown = (((i + 1) / n, None) for i in range(n))
    return weigh(_weights(activations, x, forward, grown, n, "zero", max_channels), activations)


def _weights(
    a: Array,
    x: Array,
    forward: Runner,
    changes: Iterable[tuple[float, Array | None]],
    count: int,
    baseline: str,
    max_channels: int,
) -> Array:
    """For each channel, the mean over `count` changes (a factor, noise) of the score through its mask; less the baseline's."""
    chosen = [_strongest(row, max_channels) for row in a]
    weights = np.zeros(a.shape[:2], np.float64)
    least = forward(np.zeros_like(x), range(len(x))) if baseline == "zero" else np.zeros(len(x))
    for _, (factor, noise) in zip(steps(range(count), "changes of the masks"), changes, strict=True):
        for row, channels in enumerate(chosen):

            def masked(
                part: slice,
                row: int = row,
                channels: Array = channels,
                factor: float = factor,
                noise: Array | None = noise,
            ) -> Array:
                masks = _masks(a[row, channels[part]], x.shape[2:]) * x.dtype.type(factor)
                return x[row] * (masks if noise is None else masks + noise)[:, None]

            found = scored(forward, row, len(channels), masked, x[row].nbytes, "masked pictures", PASSES)
            weights[row, channels] += (found - least[row]) / count
    return weights.astype(a.dtype)


def _strongest(a: Array, count: int) -> Array:
    """The channels of one picture [C, *space] that have the largest energy, in order; all for 0."""
    if not 0 <= count <= len(a):
        raise InputError(f"max_channels is {count}; give 0 for all, or a number up to {len(a)}, the layer's channels")
    if not count:
        return np.arange(len(a))
    energy = (a.reshape(len(a), -1).astype(np.float64) ** 2).sum(axis=1)
    return np.sort(np.argsort(-energy, kind="stable")[:count])


def _masks(channels: Array, size: tuple[int, ...]) -> Array:
    """Channels [K, h, w] → masks [K, H, W] in 0…1: enlarged, then stretched."""
    if channels.ndim != 3 or len(size) != 2:
        raise InputError(
            "masks are pictures: choose a layer with two axes of space, or a method that masks the layer"
        )
    wide = np.stack([resize(channel, (size[0], size[1])) for channel in channels])
    return normalize(wide, "minmax")


def _shares(weights: Array) -> Array:
    """A softmax over channels."""
    e = np.exp(weights - weights.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))
