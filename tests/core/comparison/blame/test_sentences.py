"""A blame as text."""

from __future__ import annotations

from typing import Any

import numpy as np

import blocks
import xcam
from xcam.comparison.blame import sentences


def result(count: int = 1, fast: bool = False, **changes: Any) -> xcam.Blame:
    return xcam.blame([blocks.network(), blocks.network("second", **changes)], blocks.images(count), fast=fast)


def second_row(w: Any) -> Any:
    mask = np.zeros_like(w)
    mask[1] = 1
    return mask


def test_no_difference() -> None:
    same = result()
    assert sentences.headline(same) == "No difference"
    assert sentences.sentences(same) == [
        "Class scores and heatmaps of both models agree within rounding on the one image."
    ]


def test_locations_are_named_with_their_shares() -> None:
    both = result(2, b1=lambda w: w * 1.3, a3=lambda w: w * 1.05)
    assert sentences.headline(both) == "2 locations of second (numpy) have errors of their own"
    assert sentences.sentences(both)[0].startswith("Share of the difference of the class scores: b1 (9")


def test_a_location_may_differ_while_the_models_agree() -> None:
    quiet = result(b0=lambda w: w * (1 + 6e-4 * second_row(w)))
    assert quiet.verdict == "identical"
    assert sentences.headline(quiet) == "1 location of second (numpy) has an error of its own"
    assert "although values inside differ by more" in sentences.sentences(quiet)[0]


def test_estimates_are_called_estimates() -> None:
    text = " ".join(sentences.sentences(result(fast=True, b1=lambda w: w * 1.3)))
    assert "The largest estimated contribution is that of join1" in text
    assert "All contributions are estimates from gradients" in text
