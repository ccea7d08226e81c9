"""What holds for every command: help is quick, errors are short, and Ctrl-C leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from typed import Result


def test_debug_shows_the_whole_story(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "xcam_cli", "absent.png", "-b", "keras", "-m", "demo"]
    plain = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (plain.returncode, plain.stdout) == (2, "")
    assert plain.stderr == "xcam: cannot read absent.png: no such file; check the path\n"
    deep = subprocess.run([*words, "--debug"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Traceback" in deep.stderr


def test_help_is_quick() -> None:
    command = Path(sys.executable).with_name("xcam")
    times = []
    for _ in range(3):
        before = os.times()
        subprocess.run([command, "--help"], check=True, capture_output=True, env=os.environ)
        after = os.times()  # of the processor: a busy machine does not change it
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(times) < 0.5


def test_ctrl_c_leaves_no_half_written_file(
    run: Callable[..., Result], picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = picture.with_name("scene.cam.jpg")
    place.write_bytes(b"old")
    before = sorted(tmp_path.iterdir())

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for where in ("xcam.contract.files.os.replace", "xcam.images.reading.read"):
        with monkeypatch.context() as patch:
            patch.setattr(where, stop)
            result = run("-b", "onnx", "-m", "demo", picture)
        assert (result.status, result.out, result.err.strip()) == (130, "", "xcam: stopped")
        assert sorted(tmp_path.iterdir()) == before
        assert place.read_bytes() == b"old"
