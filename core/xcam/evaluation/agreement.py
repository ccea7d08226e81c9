"""Average drop, coherency, complexity: three measures that can each be gamed, and their harmonic mean. Poppi 2021."""

from __future__ import annotations

import numpy as np

from xcam.evaluation.perturbation import average_drop
from xcam.evaluation.registry import measure
from xcam.methods.maps import Array


@measure("coherency", better="higher", source="Poppi et al. 2021", passes="1 explanation", ranks=False)
def coherency(heatmap: Array, masked_heatmap: Array) -> Array:
    """(1 + ρ)/2, with ρ the Pearson correlation of the map and the map of the image seen through it.

    For a constant map, ρ counts as 0.
    """
    a, b = (m.reshape(len(m), -1).astype(np.float64) for m in (heatmap, masked_heatmap))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    rho = np.divide((a * b).sum(axis=1), norm, out=np.zeros(len(a)), where=norm > 1e-12)
    return np.asarray((1 + np.clip(rho, -1, 1)) / 2)


@measure("complexity", better="lower", source="Poppi et al. 2021", ranks=False)
def complexity(heatmap: Array) -> Array:
    """‖map‖₁ divided by the number of pixels: the mean of the map. 0 for an empty map."""
    return np.asarray(np.abs(heatmap).mean(axis=(1, 2), dtype=np.float64))


@measure("adcc", better="higher", source="Poppi et al. 2021", passes="2 forward, 1 explanation")
def adcc(heatmap: Array, masked_heatmap: Array, clean: Array, masked: Array) -> Array:
    """3 / (1/coherency + 1/(1 − complexity) + 1/(1 − drop)): the harmonic mean; 0 where one of the three is 0."""
    parts = np.stack([coherency(heatmap, masked_heatmap), 1 - complexity(heatmap), 1 - average_drop(clean, masked)])
    with np.errstate(divide="ignore"):
        return np.asarray(3 / (1 / np.maximum(parts, 0)).sum(axis=0))
