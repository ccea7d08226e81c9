"""Remove and debias: pixels are removed so that their outline carries no information. Rong et al. 2022.

A removed pixel becomes the weighted mean of its eight neighbours, removed or not, plus a little noise: one sparse linear
system for each image and share, solved exactly.
"""

from __future__ import annotations

import importlib

import numpy as np

from xcam.errors import InputError
from xcam.evaluation.inputs import curves, order, unrolled
from xcam.evaluation.registry import measure
from xcam.methods.inputs import Runner, generator
from xcam.methods.maps import Array

SOLVER = "scipy.sparse.linalg"
NEIGHBOURS = {(dy, dx): 1 / 12 if dy and dx else 1 / 6 for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx}
"""Weights of the neighbours, by offset: direct neighbours count twice as much as diagonal ones."""
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of the pixels that are removed."""


@measure(
    "road",
    better="higher",
    source="Rong et al. 2022",
    passes="10 forward, 10 solved systems",
    bounds=(-0.5, 0.5),
    requires=SOLVER,
)
def road(heatmap: Array, x: Array, score: Runner, *, noise: float = 0.01, seed: int = 0) -> Array:
    """(LeRF − MoRF)/2: half the difference of the scores without the lowest and without the highest pixels of the map.

    NaN for a constant image.

    Args:
        heatmap: Maps [N, H, W].
        x: Images [N, channels, H, W].
        score: The target's value for changed images.
        noise: The standard deviation of the noise, as a share (0…1) of the range of the image's values.
        seed: The seed of the noise and of the order of equal values.

    Raises:
        InputError: The noise is out of range.
    """
    least, most = (_without(heatmap, x, score, noise, seed, lowest) for lowest in (True, False))
    return np.asarray((least - most) / 2)


@measure(
    "road-morf",
    better="lower",
    source="Rong et al. 2022",
    passes="5 forward, 5 solved systems",
    default=False,
    requires=SOLVER,
)
def most_relevant_first(heatmap: Array, x: Array, score: Runner, *, noise: float = 0.01, seed: int = 0) -> Array:
    """The mean score without the highest pixels (MoRF), 10 to 90 % of them: low for a faithful map."""
    return _without(heatmap, x, score, noise, seed, lowest=False)


@measure(
    "road-lerf",
    better="higher",
    source="Rong et al. 2022",
    passes="5 forward, 5 solved systems",
    default=False,
    requires=SOLVER,
)
def least_relevant_first(heatmap: Array, x: Array, score: Runner, *, noise: float = 0.01, seed: int = 0) -> Array:
    """The mean score without the lowest pixels (LeRF), 10 to 90 % of them: high for a faithful map."""
    return _without(heatmap, x, score, noise, seed, lowest=True)


def _without(heatmap: Array, x: Array, score: Runner, noise: float, seed: int, lowest: bool) -> Array:
    if not 0 <= noise <= 1:
        raise InputError(
            f"cannot use noise={noise}: it is a share of the range of the image's values; give a number from 0 to 1"
        )
    indices = order(-heatmap if lowest else heatmap, seed)
    size = indices.shape[1]
    grain = generator(seed).normal(size=x.shape[1:]).astype(x.dtype)
    spread = np.ptp(x, axis=(1, 2, 3)).astype(x.dtype)

    def change(row: int, count: int) -> Array:
        flat = np.zeros(size, bool)
        flat[indices[row, :count]] = True
        removed = flat.reshape(heatmap.shape[1:])
        return np.where(removed, imputed(x[row], removed) + x.dtype.type(noise) * spread[row] * grain, x[row])

    means = curves(score, x, [round(share * size) for share in SHARES], change, "ROAD").mean(axis=1)
    return np.where(spread > 0, means, np.nan)


def imputed(x: Array, removed: Array) -> Array:
    """Fill the removed pixels of an image from their neighbours (Rong et al. 2022).

    Each filled pixel v solves v = Σ w·neighbour / Σ w over the neighbours within the image, some of which are filled
    pixels too. Where no pixel is left, all become the mean of their channel.

    Args:
        x: The image [channels, H, W].
        removed: The removed pixels, boolean [H, W].
    """
    # Imported here, because scipy comes with the extra `batch`: see Measure.require.
    linalg, sparse = importlib.import_module(SOLVER), importlib.import_module("scipy.sparse")
    height, width = removed.shape
    flat, gone = unrolled(x), removed.ravel()
    if not gone.any():
        return x
    if gone.all():
        return np.broadcast_to(flat.mean(axis=1)[:, None, None], x.shape).astype(x.dtype)
    unknowns = np.flatnonzero(gone)
    number = np.full(gone.size, -1)
    number[unknowns] = np.arange(len(unknowns))
    rows, columns = np.divmod(unknowns, width)
    total = np.zeros(len(unknowns))
    known = np.zeros((len(unknowns), len(x)))
    entries: list[tuple[Array, Array, Array]] = []
    for (dy, dx), weight in NEIGHBOURS.items():
        inside = (rows + dy >= 0) & (rows + dy < height) & (columns + dx >= 0) & (columns + dx < width)
        equations, neighbours = np.flatnonzero(inside), (unknowns + dy * width + dx)[inside]
        total[equations] += weight
        coupled = gone[neighbours]
        known[equations[~coupled]] += weight * flat[:, neighbours[~coupled]].T
        entries.append((equations[coupled], number[neighbours[coupled]], np.full(int(coupled.sum()), -weight)))
    entries.append((np.arange(len(unknowns)), np.arange(len(unknowns)), total))
    i, j, weights = (np.concatenate(part) for part in zip(*entries, strict=True))
    system = sparse.csc_matrix((weights, (i, j)), shape=(len(unknowns), len(unknowns)))
    # Symmetric with a dominant diagonal: this ordering is several times as fast, and no less exact.
    solved = linalg.splu(system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    result = flat.copy()
    result[:, unknowns] = solved.solve(known).T
    return result.reshape(x.shape)
