"""Regions in which the energy of maps is concentrated: pure functions of maps float32 [N, h, w] ≥ 0."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from xcam.images import opencv

Floats = npt.NDArray[np.float32]

HOT = 0.2
"""The hottest fifth of a map, as in the overlap of two maps."""
RING = 0.1
"""Width of the border as a share of each side: about that of a frame, or of the effect of padding; at least one cell."""
CORNER = 0.25
"""Size of a corner as a share of each side: about that of a watermark or a date."""
CORNERS = ("top left", "top right", "bottom left", "bottom right")


def share(cams: Floats, region: npt.NDArray[np.bool_]) -> Floats:
    """S(A·M)/S(A): the share of each map's energy in a region [h, w]; 0 for an all-zero map. [N, h, w] → [N]."""
    total = cams.sum(axis=(1, 2), dtype=np.float64)
    inside = cams[:, region].sum(axis=1, dtype=np.float64)
    return np.divide(inside, total, out=np.zeros_like(total), where=total > 0).astype(np.float32)


def excess(shares: Floats, expected: float) -> Floats:
    """(s − e)/(1 − e): 0 for the share e of a uniform map, 1 if all energy is in the region, negative for less than e.

    It makes regions of different sizes comparable. 0 where e is 1: such a region is the whole map.
    """
    return (shares - np.float32(expected)) / np.float32(1 - expected) if expected < 1 else np.zeros_like(shares)


def concentration(cams: Floats) -> tuple[Floats, float]:
    """Return the share of each map's energy in its hottest fifth [N], and that of a uniform map: k/(h·w), k = h·w/5."""
    flat = cams.reshape(len(cams), -1)
    cells = flat.shape[1]
    k = max(1, round(HOT * cells))
    hottest = np.partition(flat, cells - k, axis=1)[:, cells - k :].sum(axis=1, dtype=np.float64)
    total = flat.sum(axis=1, dtype=np.float64)
    shares = np.divide(hottest, total, out=np.zeros_like(total), where=total > 0)
    return shares.astype(np.float32), k / cells


def ring(size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the border of a map [h, w]: a tenth of each side wide in whole cells, at least one."""
    border = np.ones(size, bool)
    top, left = (max(1, int(RING * side)) for side in size)
    border[top : size[0] - top, left : size[1] - left] = False
    return border


def corners(size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the four corners of a map, a quarter of each side wide, in the order of CORNERS: [4, h, w]."""
    height, width = (max(1, round(CORNER * side)) for side in size)
    regions = np.zeros((4, *size), bool)
    for k, (rows, columns) in enumerate(
        (a, b) for a in (slice(height), slice(-height, None)) for b in (slice(width), slice(-width, None))
    ):
        regions[k, rows, columns] = True
    return regions


def grid(cams: Floats, size: tuple[int, int]) -> Floats:
    """Resize maps [N, h, w] to [N, *size]: by area where it is coarser, bilinear where it is finer."""
    cv2 = opencv.load()
    for axis, new in zip((1, 2), size, strict=True):
        old = cams.shape[axis]
        if new != old:  # resizing is linear: its effect on one axis follows from that on unit vectors
            interpolation = cv2.INTER_AREA if new < old else cv2.INTER_LINEAR
            matrix = cv2.resize(np.eye(old, dtype=np.float32), (old, new), interpolation=interpolation)
            cams = np.moveaxis(np.tensordot(cams, matrix, axes=(axis, 1)), -1, axis)
    return cams
