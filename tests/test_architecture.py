"""ARCHITECTURE.md and CONTRIBUTING.md name existing paths; modules and their tests have the same names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MIRRORED = {
    "core/xcam/methods": "tests/core/methods",
    "backends/xcam_onnx/autodiff/rules": "tests/backends/onnx/rules",
}


def text(page: str) -> str:
    return re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_path_in_backticks_exists(page: str) -> None:
    """Paths are relative to the root; `*` matches any name."""
    names = re.findall(r"`([^`\s]+)`", text(page))
    paths = [name for name in names if "/" in name or re.search(r"\.(md|toml|txt)$", name)]
    assert paths
    assert [path for path in paths if not any(ROOT.glob(path.rstrip("/")))] == []


@pytest.mark.parametrize("code", MIRRORED)
def test_each_module_has_a_test_file_of_the_same_name(code: str) -> None:
    tests = MIRRORED[code]
    assert f"`{code}/`" in text("ARCHITECTURE.md")
    assert f"`{tests}/`" in text("ARCHITECTURE.md")
    modules = {path.stem for path in (ROOT / code).glob("[a-z]*.py")}
    assert {f"test_{name}" for name in modules} <= {path.stem for path in (ROOT / tests).glob("test_*.py")}
