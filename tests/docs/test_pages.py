"""Every block of the documentation and of README.md runs, and its output is the one on the page."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xcam
from xcam.images import reading

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    if "build" not in path.parts
)
NOT_RUN = 13
"""The most blocks that may not be run: those that need the network, or would install something."""


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


run_page = _load("run_page")


def _source(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def _runs(page: str) -> list[Any]:
    return [b for b in run_page.blocks(_source(page)) if not b.not_run and b.kind in ("python", "console")]


def _marked(page: str) -> Any:
    """Mark a page as slow if a block loads a large framework."""
    text = "\n".join(block.text for block in _runs(page)).lower()
    return pytest.param(
        page, marks=[pytest.mark.slow] if re.search("keras|torch|transformers|xcam demo", text) else []
    )


@pytest.mark.parametrize("page", [_marked(page) for page in PAGES if _runs(page)])
def test_every_block_of_the_page_runs(page: str, tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "run_page.py"), str(ROOT / page)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-5000:]
    for shown, written in run_page.images(ROOT / page, tmp_path).items():
        change = np.abs(reading.read(shown).astype(float) - reading.read(written))
        assert change.mean() < 2, f"{shown.name} has changed: run run_page.py {page} --keep, and look at it"


def test_few_blocks_are_not_run_and_each_has_a_reason() -> None:
    left = [(page, block.line, block.not_run) for page in PAGES for block in run_page.blocks(_source(page))]
    left = [(page, line, why) for page, line, why in left if why]
    assert all(len(why.split()) > 2 for *_, why in left), left
    assert len(left) <= NOT_RUN, left
    assert set(run_page.README_NOT_RUN.values()) <= {why for page, _, why in left if page == "README.md"}


def test_every_block_has_a_language() -> None:
    """A block without a language would be neither run nor highlighted."""
    known = {"python", "console", "text", "toml", "yaml", "json", "markdown"}
    wrong = [
        (page, block.line, block.kind)
        for page in PAGES
        for block in run_page.blocks(_source(page))
        if block.kind not in known
    ]
    assert wrong == []


def test_the_runner_sees_all_code() -> None:
    """Code in directives is not run here; the only page with such code has a separate test."""
    hidden = [
        page for page in PAGES if re.search(r"\{(code-block|code|sourcecode)\} *(python|console)", _source(page))
    ]
    assert hidden == ["docs/how-to/write-a-backend.md"]
    assert (HERE / "test_write_a_backend.py").is_file()


def test_distributions_and_extras_exist() -> None:
    """The distribution is xcam-explain, since `xcam` on the package index is another project; extras are in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for page in [*PAGES, "CONTRIBUTING.md"]:
        text = _source(page)
        assert not re.search(r"pip install [^\n`]*\bxcam(?!-explain)\b", text), page
        for extras in re.findall(r"(?:xcam-explain|\"\.|-e \"?\.)\[([\w,]+)\]", text):
            assert set(extras.split(",")) <= set(project["optional-dependencies"]), (page, extras)


def test_the_page_of_supported_models_is_complete() -> None:
    from xcam_onnx.autodiff import RULES

    text = _source("docs/reference/supported.md")
    assert f"gradients through {len(RULES)} operators" in text
    assert {name for name in xcam.list_methods() if f"`{name}`" not in text} == set()


def test_the_runner_detects_differences(tmp_path: Path) -> None:
    """Another output, an exception, a warning or another exit status is an error."""
    runner = run_page.Runner({})

    def run(page: str) -> None:
        for block in run_page.blocks(page):
            runner.run(block)

    run("```python\nprint(1 + 1)\n```\n\n```text\n2\n```\n\n```console\n$ xcam --version\nxcam ...\n```\n")
    warned = "import warnings, xcam\nwarnings.warn('away', xcam.XcamWarning)"
    for bad in (
        "```python\nprint(1 + 1)\n```\n```text\n3\n```\n",
        f"```python\n{warned}\n```\n",
        "```console\n$ xcam --version\nxcam nought\n```\n",
        "```console\n$ xcam nothing.jpg\n```\n",
        "```console\n$ xcam nothing.jpg\n...\n$ echo $?\n0\n```\n",
    ):
        with pytest.raises(run_page.PageError):
            run(bad)
    with pytest.raises(ZeroDivisionError):
        run("```python\n1 / 0\n```\n")
