"""Where the energy of maps lies: pure functions over maps float32 [N, h, w] ≥ 0."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from xcam.images import opencv

Floats = npt.NDArray[np.float32]

HOT = 0.2
"""The hottest fifth of a map, as in xcam.measures.overlap."""
RING = 0.1
"""Of each side, one cell at least: as wide as a frame, or as what a few 3×3 convolutions see of the padding."""
CORNER = 0.25
"""Of each side: a watermark or a date takes about so much."""
CORNERS = ("top left", "top right", "bottom left", "bottom right")


def share(cams: Floats, where: npt.NDArray[np.bool_]) -> Floats:
    """S(A·M)/S(A): the share of each map's energy that lies in `where` [h, w]; 0 for a map that is zero. [N, h, w] → [N]."""
    total = cams.sum(axis=(1, 2), dtype=np.float64)
    inside = cams[:, where].sum(axis=1, dtype=np.float64)
    return np.divide(inside, total, out=np.zeros_like(total), where=total > 0).astype(np.float32)


def excess(found: Floats, expected: float) -> Floats:
    """(s − e)/(1 − e): 0 where a share s is the one e that a uniform map has, 1 where all lies there; below 0 for less.

    It makes shares of places of different size comparable. 0 where e is 1: such a place is the whole map.
    """
    return (found - np.float32(expected)) / np.float32(1 - expected) if expected < 1 else np.zeros_like(found)


def concentration(cams: Floats) -> tuple[Floats, float]:
    """The share of each map's energy in its hottest fifth of cells [N], and that of a uniform map: k/(h·w), k = h·w/5."""
    flat = cams.reshape(len(cams), -1)
    cells = flat.shape[1]
    k = max(1, round(HOT * cells))
    hottest = np.partition(flat, cells - k, axis=1)[:, cells - k :].sum(axis=1, dtype=np.float64)
    total = flat.sum(axis=1, dtype=np.float64)
    found = np.divide(hottest, total, out=np.zeros_like(total), where=total > 0)
    return found.astype(np.float32), k / cells


def ring(size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The outer ring of a map [h, w], a tenth of each side wide in whole cells, at least one."""
    found = np.ones(size, bool)
    top, left = (max(1, int(RING * side)) for side in size)
    found[top : size[0] - top, left : size[1] - left] = False
    return found


def corners(size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The four corners of a map, a quarter of each side wide, in the order of CORNERS: [4, h, w]."""
    high, wide = (max(1, round(CORNER * side)) for side in size)
    found = np.zeros((4, *size), bool)
    for k, (rows, columns) in enumerate(
        (a, b) for a in (slice(high), slice(-high, None)) for b in (slice(wide), slice(-wide, None))
    ):
        found[k, rows, columns] = True
    return found


def grid(cams: Floats, size: tuple[int, int]) -> Floats:
    """Maps [N, h, w] on a grid [N, *size]: by area where it is coarser, bilinear where it is finer."""
    cv2 = opencv.load()
    for axis, new in zip((1, 2), size, strict=True):
        old = cams.shape[axis]
        if new != old:  # resizing is linear: what it does to a side is what it does to the unit vectors
            how = cv2.INTER_AREA if new < old else cv2.INTER_LINEAR
            matrix = cv2.resize(np.eye(old, dtype=np.float32), (old, new), interpolation=how)
            cams = np.moveaxis(np.tensordot(cams, matrix, axes=(axis, 1)), -1, axis)
    return cams
