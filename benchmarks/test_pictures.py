"""The overlay of a JPEG of 12 megapixels, from its bytes, without writing. The limit is 160 ms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from xcam.images import reading, writing
from xcam.images.overlay import overlay
from xcam.images.resizing import resize
from xcam.methods import maps


def test_twelve_megapixels(benchmark: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = cv2.resize(
        rng.integers(0, 255, (75, 100, 3), dtype=np.uint8), (4000, 3000), interpolation=cv2.INTER_CUBIC
    )
    image = cv2.add(image, rng.integers(0, 30, image.shape, dtype=np.uint8))
    path = tmp_path / "large.jpg"
    writing.write(path, image)
    cam = rng.random((14, 14), dtype=np.float32)

    def run() -> Any:
        pixels = reading.read(path)
        resize(pixels, (224, 224))
        height, width = pixels.shape[:2]
        return overlay(pixels, maps.resize(cam, (height, width)))

    benchmark.pedantic(run, rounds=30, warmup_rounds=3)
