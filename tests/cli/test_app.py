"""All commands: quick help, one-line errors, and no partial files after Ctrl-C."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from typed import Result


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "xcam_cli", "absent.png", "-b", "keras", "-m", "demo"]
    plain = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (plain.returncode, plain.stdout) == (2, "")
    assert plain.stderr == "xcam: cannot read absent.png: no such file; check the path\n"
    deep = subprocess.run([*arguments, "--debug"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Traceback" in deep.stderr


def test_help_is_quick() -> None:
    """Help imports only click. Imports are checked, as measured times depend on the machine."""
    code = """
import sys
before = {name.partition(".")[0] for name in sys.modules}
from xcam_cli import main
try:
    main(["--help"])
finally:
    print(*sorted({name.partition(".")[0] for name in sys.modules} - before - sys.stdlib_module_names))
"""
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1].split() == ["click", "click_default_group", "xcam_cli"]


def test_ctrl_c_leaves_no_partial_file(
    run: Callable[..., Result], image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = image.with_name("scene.cam.jpg")
    path.write_bytes(b"old")
    before = sorted(tmp_path.iterdir())

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for name in ("xcam.contract.files.os.replace", "xcam.images.reading.read"):
        with monkeypatch.context() as patch:
            patch.setattr(name, stop)
            result = run("-b", "onnx", "-m", "demo", image)
        assert (result.status, result.out, result.err.strip()) == (130, "", "xcam: stopped")
        assert sorted(tmp_path.iterdir()) == before
        assert path.read_bytes() == b"old"
