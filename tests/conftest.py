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
    """Leave the seeds to `pytest_runtest_setup`: pytest-randomly draws the order of the tests, not their values."""
    config.option.randomly_reset_seed = False


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Name the order also in quiet runs, which have no header: CI's failures are repeated with it."""
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
    """A random generator of the test's own: a shared one would give values that depend on the tests run before."""
    return np.random.default_rng(2)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A JPEG of 240×320 pixels (height × width)."""
    image = scene(np.random.default_rng(1), [3, 5], 320).image[40:280]
    path = tmp_path / "photo.jpg"
    writing.write(path, image)
    return path


@pytest.fixture
def demo_picture() -> Path:
    """The image that `xcam demo` explains."""
    return demo.image_paths()[0]
