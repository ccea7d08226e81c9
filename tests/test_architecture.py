"""ARCHITECTURE.md and CONTRIBUTING.md name existing paths; modules and their tests have the same names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MIRRORED = {
    "core/xcam": "tests/core",
    "core/xcam/methods": "tests/core/methods",
    "backends/xcam_onnx/autodiff/rules": "tests/backends/onnx/rules",
}
COVERED = {
    **dict.fromkeys(
        (f"comparison/causes/{name}" for name in ("functions", "kernels", "paths", "scene", "values")),
        "comparison/causes/test_search",
    ),
    **dict.fromkeys(
        (f"comparison/blame/{name}" for name in ("causes", "conclusions", "data", "examine", "result", "subject")),
        "comparison/blame/test_blame",
    ),
    "comparison/correspondence": "comparison/test_compare",
    "comparison/data": "comparison/test_compare",
    "comparison/images": "comparison/test_compare",
    "explanation/recognition": "../across/test_tasks",
    "explanation/scales": "../across/test_tasks",
    "comparison/mending/judge": "comparison/mending/test_repair",
    "comparison/mending/result": "comparison/mending/test_repair",
    "comparison/inputs": "comparison/test_compare",
    "comparison/result": "comparison/test_compare",
    "contract/model_validation": "contract/test_validation",
    "contract/types": "contract/test_validation",
    "contract/violations": "contract/test_validation",
    "dataset/cluster": "dataset/test_killed",
    "evaluation/run": "evaluation/test_evaluate",
    "explanation/axes": "explanation/test_samples",
    "explanation/fitting": "explanation/test_samples",
    "explanation/settings": "explanation/test_explain",
    "models/demo/draw": "models/demo/test_scenes",
    "targets/protocol": "targets/test_outputs",
    **dict.fromkeys(
        (f"testing/{name}" for name in ("assertions", "networks", "reference", "side_effects", "suite", "values")),
        "testing/test_conformance",
    ),
}
"""Modules of the core whose tests are in another file."""


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
    modules = [path.relative_to(ROOT / code).with_suffix("") for path in (ROOT / code).rglob("[a-z]*.py")]
    files = [COVERED.get(module.as_posix(), module.with_name(f"test_{module.name}").as_posix()) for module in modules]
    assert modules
    assert [file for file in files if not (ROOT / tests / f"{file}.py").is_file()] == []


def test_no_module_with_a_test_file_of_its_own_is_listed_as_covered_elsewhere() -> None:
    for module in map(Path, COVERED):
        assert (ROOT / "core/xcam" / module.with_suffix(".py")).is_file(), module
        assert not (ROOT / "tests/core" / module.with_name(f"test_{module.name}.py")).is_file(), module
