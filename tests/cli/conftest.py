"""Fixtures for tests of the command."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from typed import Result
from xcam.models import demo
from xcam_cli import main


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Run `xcam ARGUMENTS…` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: object) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Result(int(stop.value.code or 0), out, err)

    return command


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return Path(shutil.copy(demo.image_paths()[0], tmp_path / "scene.png"))
