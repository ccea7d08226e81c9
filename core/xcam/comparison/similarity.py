"""The similarity of two heatmaps. scipy and scikit-image come with the extra `report`."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xcam.comparison.data import Measures, Verdict
from xcam.contract import Array
from xcam.errors import BackendError
from xcam.explanation.result import Explanation
from xcam.images.framing import frame
from xcam.methods import maps

LOGITS, HEATMAPS = 1e-4, 1e-3
"""The limits of `identical`: class scores relative to their largest magnitude, heatmaps absolute (the tolerances)."""
CORRELATED = 0.99
"""The correlation from which heatmaps of the same class are `equivalent`."""
SIDE = 128
"""The longer side, in pixels, at which heatmaps are compared. Layers have far fewer positions."""
SCORES = 0.1
"""The difference of the class scores up to which models whose heatmaps are zero are `equivalent`."""
HIGHEST = 0.2
"""The share of a heatmap that `overlap` compares."""


def measure(first: Explanation, second: Explanation, logits: float) -> Measures:
    """Return the measures of two explanations of one image.

    Two heatmaps that are zero everywhere show no region that could agree: the verdict follows from the class scores, and
    is `equivalent` at best.

    Args:
        first: An explanation.
        second: Another one.
        logits: The result of `score_error` for both.
    """
    a, b = _maps(first, second)
    largest = float(np.abs(a - b).max())
    pearson = correlation(a, b)
    same_target = first.label == second.label if _have_labels(first, second) else first.index == second.index
    same_top = _same_top_class(first, second)
    if not a.any() and not b.any():
        nan = math.nan
        agree: Verdict = "equivalent" if same_top and same_target and logits <= SCORES else "different"
        return Measures(0.0, nan, nan, nan, nan, nan, logits, same_top, agree, both_zero=True)
    return Measures(
        largest=largest,
        pearson=pearson,
        spearman=_spearman(a, b),
        ssim=_ssim(a, b),
        overlap=_overlap(a, b),
        distance=_distance(a, b),
        logits=logits,
        same_class=same_top,
        verdict=verdict(largest, pearson, logits, same_top and same_target),
    )


def verdict(largest: float, pearson: float, logits: float, same_class: bool) -> Verdict:
    """Return `identical` within the tolerances, `equivalent` for the same class and correlated maps, else `different`."""
    if same_class and largest <= HEATMAPS and not logits > LOGITS:
        return "identical"
    return "equivalent" if same_class and pearson >= CORRELATED else "different"


def correlation(a: Array, b: Array) -> float:
    """Return Pearson's correlation; for constant maps, 1 where they are equal and 0 where they are not."""
    x, y = (np.ravel(v).astype(np.float64) for v in (a, b))
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x * x).sum() * (y * y).sum()))  # no BLAS: waking its threads takes longer than the sum
    return float(np.clip((x * y).sum() / norm, -1, 1)) if norm > 0 else float(np.allclose(a, b))


def rms(values: Array) -> float:
    """Return the root of the mean square; 0 for no values."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if np.size(values) else 0.0


def score_error(first: Explanation, second: Explanation, labels: tuple[Any, Any]) -> float:
    """Return the largest difference of the class scores, relative to their largest magnitude.

    Args:
        first: An explanation.
        second: Another one.
        labels: The labels of both models; where they differ, the common labels are compared.

    Returns:
        The relative difference; NaN where the classes do not correspond.
    """
    a, b = first.outputs, second.outputs
    if labels[0] is not None and labels[1] is not None and list(labels[0]) != list(labels[1]):
        common = [name for name in labels[0] if name in set(labels[1])]
        if not common:
            return float("nan")
        a = a[[list(labels[0]).index(name) for name in common]]
        b = b[[list(labels[1]).index(name) for name in common]]
    if a.shape != b.shape:
        return float("nan")
    return float(np.abs(a - b).max() / max(float(np.abs(a).max()), 1e-12))


def _maps(*explanations: Explanation) -> list[Array]:
    """Return the heatmaps at the size of the comparison, of the part of the image that all models saw."""
    frames = [e.frame or frame(e.image.shape, (1, 1), None) for e in explanations]
    frames = [f.resized(compared_size(e.image.shape)) for f, e in zip(frames, explanations, strict=True)]
    seen = np.logical_and.reduce([f.mask for f in frames])
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    if not len(rows):
        return [np.zeros((2, 2), np.float32) for _ in explanations]
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return [
        f.map_to_image(maps.normalize(e.positive[None], e.normalize)[0])[part]
        for f, e in zip(frames, explanations, strict=True)
    ]


def compared_size(shape: Sequence[int]) -> tuple[int, int]:
    """Return the height and width at which heatmaps of an image [H, W, …] are compared."""
    factor = SIDE / max(shape[:2])
    return max(2, round(shape[0] * factor)), max(2, round(shape[1] * factor))


def _have_labels(first: Explanation, second: Explanation) -> bool:
    return not (first.label.isdigit() or second.label.isdigit())


def _same_top_class(first: Explanation, second: Explanation) -> bool:
    """Return whether the top class of the first is the second's top class within rounding; by label where both have."""
    if first.outputs.ndim != 1 or second.outputs.ndim != 1:
        return first.label == second.label
    index = int(first.scores.argmax())
    if first.labels is not None and second.labels is not None:
        if first.labels[index] not in second.labels:
            return False
        index = list(second.labels).index(first.labels[index])
    elif first.outputs.shape != second.outputs.shape:
        return False
    outputs = second.outputs
    return bool(outputs.max() - outputs[index] <= LOGITS * np.abs(outputs).max())


def _spearman(a: Array, b: Array) -> float:
    stats = _import("scipy.stats")
    return correlation(stats.rankdata(a), stats.rankdata(b))


def _ssim(a: Array, b: Array) -> float:
    """Return the structural similarity (Wang et al. 2004) of values in 0…1."""
    window = min(7, *a.shape)
    window -= 1 - window % 2
    if window < 3:
        return correlation(a, b)
    return float(_import("skimage.metrics").structural_similarity(a, b, data_range=1.0, win_size=window))


def _overlap(a: Array, b: Array) -> float:
    """Return the intersection over union of the highest fifth of each map, without positions where a map is zero."""
    first, second = (v >= max(float(np.quantile(v, 1 - HIGHEST)), 1e-9) for v in (a, b))
    union = np.logical_or(first, second).sum()
    return float(np.logical_and(first, second).sum() / union) if union else 1.0


def _distance(a: Array, b: Array) -> float:
    peaks = [np.array(np.unravel_index(int(v.argmax()), v.shape)) for v in (a, b)]
    return float(np.linalg.norm(peaks[0] - peaks[1]) / np.hypot(*a.shape))


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BackendError(
            f'cannot compare: {name.partition(".")[0]} is not installed; run: pip install "xcam-explain[report]"'
        ) from error
