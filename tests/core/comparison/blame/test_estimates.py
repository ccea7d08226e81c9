"""Estimates from gradients."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

import blocks
import xcam


def scores(result: xcam.Blame) -> list[float]:
    return [c.scores.mean for c in result.stretches]


def test_where_only_linear_layers_follow_estimates_are_swaps() -> None:
    models = [blocks.network(), blocks.network("second", b3=lambda w: w * 1.01, fc=lambda w: w + 0.05)]
    exact, fast = (xcam.blame(models, blocks.images(), fast=fast) for fast in (False, True))
    np.testing.assert_allclose(scores(fast)[-3:], scores(exact)[-3:], atol=0.02 * exact.scores.mean)


def test_they_rank_small_errors_as_swaps_do() -> None:
    rng = np.random.default_rng(3)
    keys = [f"{kind}{k}" for kind in "ab" for k in range(blocks.BLOCKS)]
    sizes = dict(zip(keys, rng.uniform(1e-3, 3e-2, len(keys)), strict=True))
    changes = {
        key: (lambda w, s=size: w + s * np.sin(np.arange(w.size)).reshape(w.shape)) for key, size in sizes.items()
    }
    models = [blocks.network(), blocks.network("second", **changes)]
    exact, fast = (scores(xcam.blame(models, blocks.images(), fast=fast)) for fast in (False, True))
    assert stats.spearmanr(np.abs(exact), np.abs(fast)).statistic > 0.8
    assert sum(fast) == pytest.approx(sum(exact))


def test_two_forward_passes_and_one_backward_pass() -> None:
    first, second = blocks.network(), blocks.network("second", b1=lambda w: w * 1.2)
    xcam.blame([first, second], blocks.images(), fast=True)
    passes = [[p for p in model.passes if p in ("trace", "gradients")] for model in (first, second)]
    assert passes == [["trace"], ["gradients"]]
