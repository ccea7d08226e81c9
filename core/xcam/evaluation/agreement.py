"""Average drop, coherency, complexity: three measures that each can be cheated, and one number that cannot. Poppi 2021."""

from __future__ import annotations

import numpy as np

from xcam.evaluation.perturbation import average_drop
from xcam.evaluation.registry import measure
from xcam.methods.maps import Array


@measure("coherency", better="higher", source="Poppi et al. 2021", passes="1 explanation", ranks=False)
def coherency(heatmap: Array, again: Array) -> Array:
    """(1 + ρ)/2, ρ the correlation (Pearson) of the map with the map of the picture seen through it.

    Of a map that is the same everywhere ρ is taken for 0.
    """
    a, b = (m.reshape(len(m), -1).astype(np.float64) for m in (heatmap, again))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    rho = np.divide((a * b).sum(axis=1), norm, out=np.zeros(len(a)), where=norm > 1e-12)
    return np.asarray((1 + np.clip(rho, -1, 1)) / 2)


@measure("complexity", better="lower", source="Poppi et al. 2021", ranks=False)
def complexity(heatmap: Array) -> Array:
    """‖map‖₁ over the number of places: the map's mean. 0 for an empty one."""
    return np.asarray(np.abs(heatmap).mean(axis=(1, 2), dtype=np.float64))


@measure("adcc", better="higher", source="Poppi et al. 2021", passes="2 forward, 1 explanation")
def adcc(heatmap: Array, again: Array, clean: Array, masked: Array) -> Array:
    """3 / (1/coherency + 1/(1 − complexity) + 1/(1 − drop)): the harmonic mean; 0 where one of the three is 0."""
    parts = np.stack([coherency(heatmap, again), 1 - complexity(heatmap), 1 - average_drop(clean, masked)])
    with np.errstate(divide="ignore"):
        return np.asarray(3 / (1 / np.maximum(parts, 0)).sum(axis=0))
