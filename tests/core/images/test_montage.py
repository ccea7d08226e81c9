"""Several images in one: tiles, captions, notes."""

from __future__ import annotations

import numpy as np
import pytest

from xcam.images import montage


def constant(value: int, height: int = 200, width: int = 300) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_tiles_are_in_rows_under_their_captions() -> None:
    images = [constant(40), constant(80), constant(120)]
    sheet = montage.tiled(images, ["a", "b", "c"], columns=2)
    gap, line = montage.GAP, 30  # a tenth of 300
    assert sheet.shape == (2 * (200 + line + gap) + gap, 2 * (300 + gap) + gap, 3)
    for k, image in enumerate(images):
        top, left = gap + line + (k // 2) * (200 + line + gap), gap + (k % 2) * (300 + gap)
        np.testing.assert_array_equal(sheet[top : top + 200, left : left + 300], image)
        assert (sheet[top - line : top, left : left + 300] < 100).any(), "a caption"
    assert (sheet[-200:, 316:] == montage.BACKGROUND).all()


@pytest.mark.parametrize(("size", "expected"), [((40, 80), (80, 160)), ((1200, 600), (480, 240))])
def test_tiles_are_scaled_to_a_readable_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    sheet = montage.tiled([constant(7, *size)], [""])
    rows, columns = np.nonzero((sheet == 7).all(axis=2))
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == expected


def test_a_smaller_tile_keeps_its_aspect_ratio() -> None:
    sheet = montage.tiled([constant(7), constant(9, 100, 100)], ["", ""], columns=1)
    rows, columns = np.nonzero((sheet == 9).all(axis=2))
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (200, 200)


def test_characters_outside_ascii_are_replaced() -> None:
    assert montage.drawable("café naïve – 3×3 → −1") == "cafe naive - 3x3 -> -1"
    assert montage.drawable("猫 cat") == "? cat"
    plain, accented = (montage.tiled([constant(0)], [caption]) for caption in ("cafe", "café"))
    np.testing.assert_array_equal(plain, accented)


def test_notes_are_in_a_strip_below_the_image() -> None:
    image = constant(7)
    assert montage.with_notes(image, ()) is image
    noted = montage.with_notes(image, ("random weights", "seed 0"))
    np.testing.assert_array_equal(noted[:200], image)
    strip = noted[200:]
    assert 10 < len(strip) < 80
    assert (strip[0] == 32).all()
    assert (strip > 200).any()
    longer = montage.with_notes(image, ("random weights",) * 20)[200:]
    assert len(longer) < len(strip), "letters that fit the width"


def test_a_label_is_in_the_upper_left_corner_and_within_the_image() -> None:
    for height, width in ((200, 300), (30, 40)):
        labelled = montage.labelled(constant(120, height, width), "a long label 93%")
        rows, columns = np.nonzero((labelled != 120).any(axis=2))
        assert (rows.min(), columns.min()) == (0, 0)
        assert rows.max() < max(20, height / 8)
        assert (labelled > 200).any(), "white text"
        assert labelled.shape == (height, width, 3)
