"""Fixtures for all tests: images and a random generator."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xcam.images import writing
from xcam.models import demo
from xcam.models.demo.scenes import scene

pytest_plugins = ["without_frameworks"]


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest-randomly draw the order of the tests only; `pytest_runtest_setup` sets the seeds."""
    config.option.randomly_reset_seed = False


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the seed of the order in quiet runs too, which have no header: it reproduces a failure of CI."""
    if config.get_verbosity() < 0 and (seed := config.getoption("randomly_seed", None)) is not None:
        terminalreporter.write_line(f"--randomly-seed={seed}")


def pytest_runtest_setup() -> None:
    """Reset the global random generators, so that no value depends on the tests run before."""
    random.seed(0)
    np.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a new random generator; values of a shared one would depend on the tests run before."""
    return np.random.default_rng(2)


@pytest.fixture
def image_path(tmp_path: Path) -> Path:
    """Return the path of a JPEG of 240×320 pixels (height × width)."""
    image = scene(np.random.default_rng(1), [3, 5], 320).image[40:280]
    path = tmp_path / "photo.jpg"
    writing.write(path, image)
    return path


@pytest.fixture
def demo_image() -> Path:
    """Return the path of the image that `xcam demo` explains."""
    return demo.image_paths()[0]
