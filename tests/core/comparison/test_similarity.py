"""Similarity measures of two maps and the verdict, compared with values computed by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from xcam import ClassScore, Explanation
from xcam.comparison.similarity import correlation, measure, verdict


def explanation(cam: Any, outputs: tuple[float, ...] = (2.0, 1.0), labels: Any = None) -> Explanation:
    scores = np.array(outputs)
    return Explanation(
        image=np.zeros((128, 128, 3), np.uint8),
        cam=np.asarray(cam, np.float32),
        outputs=scores,
        scores=scores,
        target=ClassScore(0),
        index=0,
        label="0",
        score=2.0,
        layer="conv",
        method="gradcam",
        backend="none",
        model="none",
        labels=labels,
    )


def blocks(*rows: str) -> Any:
    """Return a map of 128×128 pixels from tenths on a coarse grid."""
    coarse = np.array([[int(c) / 9 for c in row] for row in rows])
    return np.kron(coarse, np.ones((128 // coarse.shape[0], 128 // coarse.shape[1])))


def test_a_map_against_itself() -> None:
    e = explanation(blocks("9000", "0000", "0000", "0000"))
    result = measure(e, e, 0.0)
    assert (result.largest, result.distance, result.overlap, result.verdict) == (0.0, 0.0, 1.0, "identical")
    assert result.pearson == pytest.approx(1)
    assert result.ssim == pytest.approx(1)


def test_the_highest_fifth_and_the_distance_of_the_peaks() -> None:
    """The highest fifth of 16 fields is the bright one: the maps share none, half or all of it."""
    a = explanation(blocks("9900", "0000", "0000", "0000"))
    half = explanation(blocks("0990", "0000", "0000", "0000"))
    apart = explanation(blocks("0000", "0000", "0000", "0099"))
    assert measure(a, apart, 0.0).overlap == 0
    assert measure(a, half, 0.0).overlap == pytest.approx(1 / 3)
    faint = explanation(blocks("9911", "1111", "1111", "1111"))
    assert measure(a, faint, 0.0).overlap < 0.6, "one's faint ground counts for no more than its share"
    ramp = np.tile(np.linspace(0, 1, 128), (128, 1))
    assert measure(explanation(ramp), explanation(ramp[:, ::-1]), 0.0).overlap == 0
    assert measure(explanation(ramp), explanation(ramp.T), 0.0).overlap == pytest.approx(1 / 9, abs=0.01)
    assert measure(a, apart, 0.0).distance == pytest.approx(math.hypot(96, 64) / math.hypot(128, 128), abs=1e-6)


@pytest.mark.parametrize(
    ("largest", "pearson", "logits", "same", "expected"),
    [
        (9e-4, 1.0, 9e-5, True, "identical"),
        (1.1e-3, 1.0, 0.0, True, "equivalent"),
        (1e-6, 1.0, 1.1e-4, True, "equivalent"),
        (1e-6, 1.0, float("nan"), True, "identical"),
        (0.3, 0.991, 0.5, True, "equivalent"),
        (0.3, 0.989, 0.0, True, "different"),
        (1e-6, 1.0, 0.0, False, "different"),
    ],
)
def test_verdicts(largest: float, pearson: float, logits: float, same: bool, expected: str) -> None:
    assert verdict(largest, pearson, logits, same) == expected


@pytest.mark.parametrize(
    ("outputs", "logits", "expected"),
    [
        ((2.0, 1.0), 0.0, "equivalent"),
        ((2.0, 1.0), 0.09, "equivalent"),
        ((2.0, 1.0), 0.11, "different"),
        ((2.0, 1.0), math.nan, "different"),
        ((1.0, 2.0), 0.0, "different"),
    ],
)
def test_maps_that_are_zero(outputs: tuple[float, ...], logits: float, expected: str) -> None:
    """Two maps of zeros do not agree about a region: the class scores decide."""
    first, second = explanation(np.zeros((4, 4))), explanation(np.full((4, 4), -1.0), outputs)
    result = measure(first, second, logits)
    assert (result.verdict, result.both_zero, result.largest) == (expected, True, 0.0)
    assert all(math.isnan(v) for v in (result.pearson, result.spearman, result.ssim, result.overlap, result.distance))
    result = measure(first, explanation(blocks("9000", "0000", "0000", "0000")), 0.0)
    assert (result.verdict, result.both_zero) == ("different", False)


def test_correlation_of_maps_without_variation() -> None:
    flat, ramp = np.ones((4, 4)), np.arange(16.0).reshape(4, 4)
    assert correlation(flat, flat) == 1
    assert correlation(flat, ramp) == 0
    assert correlation(ramp, -3 * ramp) == pytest.approx(-1)


@pytest.mark.parametrize(
    ("first", "second", "labels", "same"),
    [
        ((3.0, 1.0, 2.0), (1.0, 0.0, 0.5), (None, None), True),
        ((3.0, 1.0, 2.0), (1.0, 0.0, 5.0), (None, None), False),
        ((3.0, 1.0, 2.0), (1.0, 0.0, 1.00009), (None, None), True),  # a tie but for rounding
        ((3.0, 1.0, 2.0), (1.0, 0.0, 1.0002), (None, None), False),
        ((3.0, 1.0, 2.0), (3.0, 1.0), (None, None), False),
        ((3.0, 1.0, 2.0), (1.0, 2.0, 3.0), (["a", "b", "c"], ["b", "c", "a"]), True),
        ((3.0, 1.0, 2.0), (3.0, 1.0, 2.0), (["a", "b", "c"], ["b", "c", "a"]), False),
        ((3.0, 1.0, 2.0), (1.0, 3.0), (["a", "b", "c"], ["b", "a"]), True),
        ((3.0, 1.0, 2.0), (3.0, 1.0), (["a", "b", "c"], ["b", "c"]), False),
    ],
)
def test_the_likeliest_class(first: Any, second: Any, labels: Any, same: bool) -> None:
    cam = blocks("9000", "0000", "0000", "0000")
    a, b = (explanation(cam, outputs, names) for outputs, names in zip((first, second), labels, strict=True))
    assert measure(a, b, 0.0).same_class is same
