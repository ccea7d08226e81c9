"""The wheel holds every package and data file, and nothing else; no text names the distribution xcam, which is another project."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("xcam_explain-*.whl"))).namelist()


def test_the_wheel_holds_all_tracked_files_of_the_packages(wheel: list[str]) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "core", "backends", "cli"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    expected = {path.split("/", 1)[1] for path in tracked}
    packaged = {name for name in wheel if ".dist-info/" not in name}
    assert expected <= packaged
    backends = {"xcam_keras", "xcam_torch", "xcam_onnx", "xcam_openvino"}
    assert {name.split("/")[0] for name in packaged} == {"xcam", "xcam_cli", *backends}
    demo = {"xcam/models/demo/network.npz", "xcam/models/demo/detector.npz"}
    assert demo | {"xcam/py.typed", "xcam/models/data/imagenet.txt"} <= packaged


def test_no_message_says_pip_install_xcam() -> None:
    for path in [*ROOT.glob("**/*.py"), *ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        if path == Path(__file__) or any(part == "build" or part.startswith(".venv") for part in path.parts):
            continue
        assert not re.search("pip install xcam(?!-explain|_)", path.read_text("utf-8")), path


def test_the_folders_of_packages_are_not_packages() -> None:
    for folder in ("core", "backends", "cli"):
        assert not (ROOT / folder / "__init__.py").exists()
