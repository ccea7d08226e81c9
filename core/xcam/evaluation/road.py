"""Remove and debias: places are taken away so that their outline tells the model nothing. Rong et al. 2022.

A place that is taken away becomes the weighted mean of its eight neighbours, taken away or not, plus a little noise:
one sparse linear system for each picture and share, solved exactly.
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
"""Weights of the neighbours, by their offsets: those beside a place count twice as much as those at its corners."""
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Of the places, taken away."""


@measure(
    "road",
    better="higher",
    source="Rong et al. 2022",
    passes="10 forward, 10 solved systems",
    bounds=(-0.5, 0.5),
    requires=SOLVER,
)
def road(heatmap: Array, x: Array, score: Runner, *, noise: float = 0.01, seed: int = 0) -> Array:
    """(LeRF − MoRF)/2: by how much the score stays better without the lowest places than without the highest.

    noise: its standard deviation, as a share of the range of the picture's values. NaN for a picture that is the same
    everywhere.
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
    """The mean score without the highest places (MoRF), 10 to 90 % of them: low where the map is right."""
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
    """The mean score without the lowest places (LeRF), 10 to 90 % of them: high where the map is right."""
    return _without(heatmap, x, score, noise, seed, lowest=True)


def _without(heatmap: Array, x: Array, score: Runner, noise: float, seed: int, lowest: bool) -> Array:
    if not 0 <= noise <= 1:
        raise InputError(f"noise is {noise}; give a share of the range of the picture's values, 0 to 1")
    places = order(-heatmap if lowest else heatmap, seed)
    size = places.shape[1]
    grain = generator(seed).normal(size=x.shape[1:]).astype(x.dtype)
    spread = np.ptp(x, axis=(1, 2, 3)).astype(x.dtype)

    def change(row: int, count: int) -> Array:
        gone = np.zeros(size, bool)
        gone[places[row, :count]] = True
        away = gone.reshape(heatmap.shape[1:])
        return np.where(away, imputed(x[row], away) + x.dtype.type(noise) * spread[row] * grain, x[row])

    found = curves(score, x, [round(share * size) for share in SHARES], change, "ROAD").mean(axis=1)
    return np.where(spread > 0, found, np.nan)


def imputed(x: Array, away: Array) -> Array:
    """The picture [channels, H, W] with the places of `away` [H, W] filled in from their neighbours. Rong et al. 2022.

    Each filled place v solves v = Σ w·neighbour / Σ w, over the neighbours that lie within the picture; among them are
    other places that are filled in. Where nothing is left to fill in from, places become the channel's mean.
    """
    # Here, because the extra `batch` brings them: see Measure.require.
    linalg, sparse = importlib.import_module(SOLVER), importlib.import_module("scipy.sparse")
    height, width = away.shape
    flat, gone = unrolled(x), away.ravel()
    if not gone.any():
        return x
    if gone.all():
        return np.broadcast_to(flat.mean(axis=1)[:, None, None], x.shape).astype(x.dtype)
    places = np.flatnonzero(gone)
    number = np.full(gone.size, -1)
    number[places] = np.arange(len(places))
    y, z = np.divmod(places, width)
    total = np.zeros(len(places))
    known = np.zeros((len(places), len(x)))
    entries: list[tuple[Array, Array, Array]] = []
    for (dy, dx), weight in NEIGHBOURS.items():
        inside = (y + dy >= 0) & (y + dy < height) & (z + dx >= 0) & (z + dx < width)
        mine, theirs = np.flatnonzero(inside), (places + dy * width + dx)[inside]
        total[mine] += weight
        away_too = gone[theirs]
        known[mine[~away_too]] += weight * flat[:, theirs[~away_too]].T
        entries.append((mine[away_too], number[theirs[away_too]], np.full(int(away_too.sum()), -weight)))
    entries.append((np.arange(len(places)), np.arange(len(places)), total))
    rows, columns, weights = (np.concatenate(part) for part in zip(*entries, strict=True))
    system = sparse.csc_matrix((weights, (rows, columns)), shape=(len(places), len(places)))
    # Symmetric with a dominant diagonal: the ordering for such systems is several times as fast, and no less exact.
    solved = linalg.splu(system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    found = flat.copy()
    found[:, places] = solved.solve(known).T
    return found.reshape(x.shape)
