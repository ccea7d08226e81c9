"""Matching two sequences of values in order, by their values first, and by their labels where values do not decide.

Pure functions of arrays. Values are compared by fingerprints, a fixed choice of at most `SIZE` of their numbers, so that
all pairs of one shape are one product of matrices.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache

import numpy as np

from xcam.contract import Array

SIZE = 2048
"""The length of a fingerprint."""
LARGEST = float(np.finfo(np.float32).max)
TINY = 1e-7
"""Distances below this are rounding."""


def fingerprint(values: Array) -> Array:
    """Return at most `SIZE` numbers [d] float64 of a value; infinite ones are the largest float32, NaN is zero."""
    flat = values.ravel()[_choice(values.size)].astype(np.float64)
    return np.nan_to_num(flat, posinf=LARGEST, neginf=-LARGEST)


@lru_cache(maxsize=1024)
def _choice(size: int) -> Array:
    """Return the indices of a fingerprint: a random choice, because a regular one could meet one position only."""
    return np.sort(np.random.default_rng(0).choice(size, min(size, SIZE), replace=False, shuffle=False))


def distances(first: Sequence[Array], second: Sequence[Array]) -> tuple[Array, Array]:
    """Compare fingerprints of one length.

    Args:
        first: n fingerprints [d].
        second: m fingerprints [d].

    Returns:
        [n, m] float32 each: the distance relative to the larger norm, 0…2; and what no scale and offset explain of one by the
        other, sqrt(1 − correlation²), 0…1, which is 1 where the correlation is negative or a value is constant. Both are
        0 for equal values.
    """
    x, y = np.stack(first), np.stack(second)
    largest = max(float(np.abs(x).max(initial=0)), float(np.abs(y).max(initial=0))) or 1.0
    x, y = x / largest, y / largest
    products = x @ y.T
    powers = (x * x).sum(axis=1)[:, None], (y * y).sum(axis=1)[None]
    total = np.maximum(*powers)
    square = np.maximum(powers[0] + powers[1] - 2 * products, 0)
    near = np.sqrt(np.divide(square, total, out=np.zeros_like(square), where=total > 0))
    size = x.shape[1]
    means = x.mean(axis=1)[:, None], y.mean(axis=1)[None]
    variances = [
        np.where(p - size * m * m > 1e-12 * p, p - size * m * m, 0) for p, m in zip(powers, means, strict=True)
    ]
    norm = np.sqrt(variances[0] * variances[1])
    correlation = np.divide(products - size * means[0] * means[1], norm, out=np.zeros_like(norm), where=norm > 0)
    unexplained = np.sqrt(1 - np.clip(correlation, 0, 1) ** 2)
    unexplained[near < TINY * 10] = 0
    return near.astype(np.float32), unexplained.astype(np.float32)


def moments(values: Array) -> Array:
    """Return six moments of a value [N, C, positions], at some positions: they are the same in any order of the channels."""
    step = -(-values.size // (8 * SIZE))
    flat = np.nan_to_num(values[:, :, ::step].ravel().astype(np.float64), posinf=LARGEST, neginf=-LARGEST)
    if not flat.size:
        return np.zeros(6)
    largest = float(np.abs(flat).max()) or 1.0
    unit = flat / largest
    square = unit * unit
    powers = unit.mean(), np.abs(unit).mean(), np.sqrt(square.mean()), np.cbrt((square * unit).mean())
    return largest * np.array([*powers, unit.min(), unit.max()])


def same_moments(first: Array, second: Array, tolerance: float = 1e-4) -> Array:
    """Return [n, m] bool: whether moments [n, 6] and [m, 6] agree, relative to the largest magnitude."""
    sizes = np.maximum(np.abs(first).max(axis=1)[:, None], np.abs(second).max(axis=1)[None])
    result = np.ones(sizes.shape, bool)
    for x, y in zip(first.T, second.T, strict=True):
        result &= np.abs(x[:, None] - y[None]) <= tolerance * sizes
    return result


def shared(first: Sequence[Collection[str]], second: Sequence[Collection[str]]) -> Array:
    """Return [n, m] bool: whether two collections have an element in common."""
    result = np.zeros((len(first), len(second)), bool)
    columns: dict[str, list[int]] = {}
    for j, elements in enumerate(second):
        for element in elements:
            columns.setdefault(element, []).append(j)
    rows: dict[str, list[int]] = {}
    for i, elements in enumerate(first):
        for element in elements:
            rows.setdefault(element, []).append(i)
    for element in rows.keys() & columns.keys():
        result[np.ix_(rows[element], columns[element])] = True
    return result


def in_order(gain: Array) -> list[tuple[int, int]]:
    """Return the pairs in increasing order of both whose gains have the largest sum (Needleman and Wunsch 1970).

    Of equal sums, the one with the earliest pairs.

    Args:
        gain: [n, m]; pairs of gain 0 are not possible.
    """
    n, m = gain.shape
    takes = np.zeros((n, m), bool)
    skips = np.zeros((n, m), bool)  # whether the row is skipped
    best = np.zeros(m + 1)
    for i in range(n - 1, -1, -1):
        taken = np.where(gain[i] > 0, best[1:] + gain[i], -1)
        row = np.append(np.maximum(taken, best[:-1]), 0.0)
        row = np.maximum.accumulate(row[::-1])[::-1]
        takes[i] = taken == row[:-1]
        skips[i] = best[:-1] == row[:-1]
        best = row
    pairs = []
    i = j = 0
    while i < n and j < m:
        if takes[i, j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif skips[i, j]:
            i += 1
        else:
            j += 1
    return pairs
