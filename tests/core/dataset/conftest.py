"""Sets of images that several tests read."""

from __future__ import annotations

from pathlib import Path

import pytest

from sets import write_set


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images."""
    path = tmp_path_factory.mktemp("set")
    write_set(path, 12)
    return path


@pytest.fixture(scope="session")
def mixed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty images, two of them broken."""
    path = tmp_path_factory.mktemp("mixed")
    write_set(path, 20, broken=2)
    return path
