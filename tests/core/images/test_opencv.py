"""OpenCV: its log level, and its absence."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from xcam.images import reading, writing


def test_threads_restore_the_log_level(tmp_path: Path) -> None:
    writing.write(tmp_path / "a.jpg", np.zeros((20, 30, 3), np.uint8))
    before = cv2.utils.logging.getLogLevel()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: reading.read(tmp_path / "a.jpg"), range(200)))
    assert cv2.utils.logging.getLogLevel() == before


def test_a_missing_shared_library_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"OpenCV cannot be loaded: .*pip install --no-deps opencv-python-headless"):
        reading.read(__file__)
