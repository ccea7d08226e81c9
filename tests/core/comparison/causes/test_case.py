"""Judging a suspicion: on the images of the fit and on another one; the order of several causes; other images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from xcam.comparison.causes.case import Suspicion, Undone, judge, other_images, ranked
from xcam.comparison.diagnosis import Diagnosis

A = np.random.default_rng(0).normal(size=(1, 4, 6)).astype(np.float32)


def test_the_share_that_is_left() -> None:
    noise = np.random.default_rng(1).normal(size=A.shape)
    assert Undone(A, A, A + noise).left == 0
    assert Undone(A, A + 0.3 * noise, A + noise).left == pytest.approx(0.3, abs=1e-5)
    assert Undone(A, A + 1e-7, A + 1e-5 * noise).left == 0  # rounding
    assert Undone(A, A, A + 1e-7 * noise).left == np.inf  # no difference
    assert Undone(A, A * np.nan, A + noise).left == np.inf
    assert Undone(A[:0], A[:0], A[:0]).left == np.inf


@pytest.mark.parametrize(
    ("fitted", "further", "proof"),
    [(0.0, 0.01, "rerun"), (0.01, 0.05, "fit"), (0.05, 0.0, "fit"), (0.0, 0.5, None), (0.5, 0.0, None)],
)
def test_a_cause_is_judged_on_another_image_too(fitted: float, further: float, proof: str | None) -> None:
    undo: Any = lambda left: Undone(A, A + left, A + 1)  # noqa: E731
    cases: Any = [fitted]
    result = judge(Suspicion("rgb-bgr", "text", undo), cases, further)  # type: ignore[arg-type]
    assert (result and result.proof) == proof
    if result is not None:
        assert result.left == pytest.approx(max(fitted, further), abs=1e-5)


def test_the_order_of_causes() -> None:
    def cause(code: str, proof: Any, left: float | None) -> Diagnosis:
        return Diagnosis(code, code, proof, left)

    many, few = cause("channel-scale", "rerun", 0.001), cause("constant-factor", "rerun", 0.002)
    worse, fit = cause("activation", "rerun", 0.015), cause("interpolation", "fit", 0.03)
    half = cause("half-precision", "fit", None)
    results = [(half, 0), (fit, 0), (worse, 0), (many, 20), (few, 1)]
    assert ranked(results) == [few, many, worse, fit, half]


@pytest.mark.parametrize("variant", [0, 1])
def test_other_images_do_not_depend_on_the_scaling(variant: int) -> None:
    x = np.random.default_rng(0).uniform(0, 1, (2, 3, 8, 10)).astype(np.float32)
    mean = np.float32([0.4, 0.5, 0.6])[:, None, None]
    one = other_images(x, (2, 3), variant)
    other = other_images(np.moveaxis((x - mean) / 0.2, 1, -1), (1, 2), variant)
    np.testing.assert_allclose(np.moveaxis(other, -1, 1) * 0.2 + mean, one, atol=1e-6)
    assert np.abs(one.std((2, 3)) / x.std((2, 3)) - 1).min() > 0.05
    assert one.min() >= 0
    assert one.max() <= 1


def test_other_images_of_integers_are_only_moved() -> None:
    x = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    other = other_images(x, (1, 2), 0)
    assert other.dtype == np.uint8
    assert (other != x).any()
    np.testing.assert_array_equal(np.sort(other.ravel()), np.sort(x.ravel()))
