"""Writing of image files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from xcam import InputError
from xcam.images import reading, writing
from xcam.images.writing import left_out, overlays


def test_the_suffix_determines_the_format(tmp_path: Path, rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    for suffix in (".png", ".BMP", ".tif"):
        writing.write(tmp_path / f"a{suffix}", image)
        np.testing.assert_array_equal(reading.read(tmp_path / f"a{suffix}"), image)
    data = writing.encoded(image, ".jpg")
    expected = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    assert data == expected


def test_images_that_cannot_be_written(tmp_path: Path) -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    with pytest.raises(InputError, match=r"none does not exist; create it first"):
        writing.write(tmp_path / "none" / "a.png", image)
    with pytest.raises(InputError, match=r"unknown image format '\.gif'"):
        writing.write(tmp_path / "a.gif", image)
    with pytest.raises(InputError, match=r"a\.webp: 20000×2 pixels are too many for \.webp; use \.png"):
        writing.write(tmp_path / "a.webp", np.zeros((2, 20_000, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_overlays_of_other_images_among_the_paths() -> None:
    paths = [
        "d/a.png",
        "d/a.cam.jpg",
        "d/a.cam.tiger.jpg",
        "d/a.cam.cam.jpg",
        "a.cam.jpg",
        "d/b.cam.jpg",
        "d/a.cam.png",
    ]
    assert overlays(paths) == ["d/a.cam.jpg", "d/a.cam.tiger.jpg", "d/a.cam.cam.jpg"]
    assert overlays(["a.cam.jpg"]) == []
    assert overlays(["a.JPG", "a.cam.jpg", "a.txt", "b.txt", "b.cam.jpg"]) == ["a.cam.jpg"]
    assert overlays(["signal.npy", "signal.cam.jpg"]) == ["signal.cam.jpg"]
    batch = ["d/a.png", "d/out/overlays/00000000-a.cam.jpg", "d/overlays/00000001-c.cam.jpg", "d/00000002-a.cam.jpg"]
    assert overlays(batch) == ["d/out/overlays/00000000-a.cam.jpg"]
    assert left_out(overlays(paths)) == (
        "left out 3 overlays of earlier runs (a.cam.jpg, a.cam.tiger.jpg, a.cam.cam.jpg); name an overlay alone to explain it"
    )
    assert left_out(["d/a.cam.jpg"]).startswith("left out 1 overlay of earlier runs (a.cam.jpg); ")
    assert "(0, 1, 2, …)" in left_out(list("0123"))
