"""Embedded images."""

from __future__ import annotations

import base64
from pathlib import Path

import cv2
import numpy as np
import pytest

from report_pages import explained, written
from xcam.report import thumbnails


def test_a_small_drawing_is_kept_without_loss() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[8:24, 8:24] = (250, 10, 10)
    embedded = thumbnails.embed(image)
    kind, data = embedded.uri.split(";base64,")
    assert kind == "data:image/png"
    assert (embedded.width, embedded.height) == (32, 32)
    back = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(back, image)


@pytest.mark.parametrize("shape", [(2, 5000), (5000, 2), (2, 2)])
def test_extreme_shapes(tmp_path: Path, shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 90, np.uint8)
    assert "data:image/" in written(tmp_path, [explained(image, np.ones((3, 3)))])


def test_many_images_shrink() -> None:
    assert thumbnails.side_for(1) == thumbnails.side_for(12) == 512
    assert thumbnails.side_for(48) == 256
    assert thumbnails.side_for(10_000) == 192


def test_a_map_is_transparent_where_it_is_nan() -> None:
    values = np.full((20, 30), 1, np.float32)
    values[:, :10] = np.nan
    data = thumbnails.heat(values).removeprefix("data:image/png;base64,")
    drawn = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_UNCHANGED)
    assert drawn.shape == (20, 30, 4)
    assert not drawn[:, :10, 3].any()
    assert (drawn[:, 10:] == (0, 0, 128, 255)).all()  # BGR and opacity: the last colour of jet
