"""What several tests need: pictures, and a clean folder to write to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xcam.images import writing
from xcam.models import demo
from xcam.models.demo.scenes import scene


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A JPEG of 240×320 pixels (height × width)."""
    image = scene(np.random.default_rng(1), [3, 5], 320).image[40:280]
    path = tmp_path / "photo.jpg"
    writing.write(path, image)
    return path


@pytest.fixture
def demo_picture() -> Path:
    """The picture that `xcam demo` explains."""
    return demo.pictures()[0]
