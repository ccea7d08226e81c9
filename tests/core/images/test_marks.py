"""Boxes, labels and outlines: drawn where they belong, on a copy, and inside the image."""

from __future__ import annotations

import numpy as np
import pytest

from xcam.images.marks import CHOSEN, OTHER, Box, with_boxes, with_outline


@pytest.mark.parametrize("side", [40, 300, 1500])
def test_the_chosen_box_is_drawn_thick_and_others_thin(side: int) -> None:
    image = np.full((side, side, 3), 90, np.uint8)
    a, b, c, d = (side // 4, side // 2, 3 * side // 4, 7 * side // 8)
    out = with_boxes(image, [Box((a, b, c, d), chosen=True), Box((1, 1, a, a))])
    assert (image == 90).all()
    assert out[b, (a + c) // 2].tolist() == list(CHOSEN)
    assert out[d - 1, (a + c) // 2].tolist() == list(CHOSEN)
    assert out[1, a // 2].tolist() == list(OTHER)
    assert out[(b + d) // 2, (a + c) // 2].tolist() == [90] * 3
    width = (out[:, (a + c) // 2] == CHOSEN).all(axis=1).sum() / 2
    assert width == pytest.approx(max(1, round(side / 300)), abs=2)


@pytest.mark.parametrize("corners", [(5, 5, 30, 30), (60, 60, 110, 120), (-50, -9, 20, 20), (90, 90, 99, 99)])
@pytest.mark.parametrize("label", ["cat 0.90", "a label that is longer than this image is wide 0.12"])
def test_a_label_is_inside_the_image_and_in_letters_that_can_be_read(corners: tuple[int, ...], label: str) -> None:
    image = np.full((100, 100, 3), 90, np.uint8)
    out = with_boxes(image, [Box(corners, label, True)])  # type: ignore[arg-type]
    rows = np.flatnonzero((out == 24).all(axis=2).any(axis=1))
    assert len(rows) >= (9 if len(label) < 9 else 4)


def test_an_outline_is_around_the_region() -> None:
    image, mask = np.full((60, 60, 3), 90, np.uint8), np.zeros((60, 60), bool)
    mask[20:40, 10:50] = True
    out = with_outline(image, mask)
    white = (out == CHOSEN).all(axis=2)
    assert white[20, 10:50].all()
    assert not white[25:35, 15:45].any()
    assert not white[:15].any()
