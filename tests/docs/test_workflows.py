"""Workflows, hooks, Makefile and pyproject.toml are consistent: they name commands, files and versions that exist."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

import xcam

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))


def _workflow(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _steps(path: Path) -> Iterator[dict[str, Any]]:
    for job in _workflow(path)["jobs"].values():
        yield from job["steps"]


def _commands(path: Path) -> str:
    return "\n".join(step["run"] for step in _steps(path) if "run" in step)


def test_both_workflows_are_here() -> None:
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "release.yml"]
    assert {"core", "demo", "fix", "lint", "quick", "test", "wheel"} <= TARGETS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_commands_call_targets_files_and_extras_that_exist(path: Path) -> None:
    commands = _commands(path) + (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert set(re.findall(r"^(?:- run: )?make ([\w-]+)", commands, re.MULTILINE)) <= TARGETS
    files = re.findall(r"(?:(?<=\s)|(?<=\.\./))(?:tests|\.ci|core|cli|docs)/[\w./-]+", commands)
    assert files
    assert [name for name in files if not (ROOT / name).exists()] == []
    extras = {extra for group in re.findall(r"-e \"\.\[([\w,-]+)\]", commands) for extra in group.split(",")}
    assert extras <= set(PROJECT["optional-dependencies"])
    cached = {step["with"]["cache-dependency-path"] for step in _steps(path) if "cache" in step.get("with", {})}
    assert all((ROOT / name).is_file() for name in cached)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_permissions_are_the_least_and_actions_have_a_version(path: Path) -> None:
    workflow = _workflow(path)
    assert workflow["permissions"] == {"contents": "read"}
    more = {name: job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job}
    assert more == ({"publish": {"id-token": "write"}} if path.name == "release.yml" else {})
    used = [step["uses"] for step in _steps(path) if "uses" in step]
    assert all(re.search(r"@(v\d+|release/v\d+|[0-9a-f]{40})$", name) for name in used), used
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())


def test_the_python_versions_are_those_of_the_classifiers() -> None:
    prefix = "Programming Language :: Python :: 3."
    versions = [name.removeprefix(prefix[:-2]) for name in PROJECT["classifiers"] if name.startswith(prefix)]
    jobs = _workflow(ROOT / ".github/workflows/ci.yml")["jobs"]
    assert jobs["core"]["strategy"]["matrix"]["python"] == versions
    assert jobs["test"]["strategy"]["matrix"]["python"] == versions
    assert PROJECT["requires-python"] == f">={versions[0]}"
    for path in WORKFLOWS:
        named = {
            str(step["with"]["python-version"]) for step in _steps(path) if "python-version" in step.get("with", {})
        }
        assert named <= {*versions, "${{ matrix.python }}"}


def test_make_core_and_the_workflow_run_the_same_tests() -> None:
    def pytest_of(text: str) -> str:
        match = re.search(r"-m pytest (.*?tests/backends/onnx)", text, re.DOTALL)
        assert match
        return " ".join(match[1].replace("\\\n", " ").split())

    recipe = MAKEFILE.partition("\ncore:")[2]
    assert pytest_of(recipe) == pytest_of(_commands(ROOT / ".github/workflows/ci.yml"))
    extras = r'-e "(\.\[[\w,]+\])"'
    installed = re.search(extras, MAKEFILE.partition("\n.venv-core/.test:")[2])
    assert installed
    assert re.findall(extras, _commands(ROOT / ".github/workflows/ci.yml")) == [installed[1]]


def test_the_version_is_written_once() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert "version" not in PROJECT
    source = (ROOT / PYPROJECT["tool"]["hatch"]["version"]["path"]).read_text(encoding="utf-8")
    assert re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE) == [xcam.__version__]
    assert metadata.version(PROJECT["name"]) == xcam.__version__


def test_a_release_checks_its_tag_and_tests_its_wheel_before_it_is_published() -> None:
    path = ROOT / ".github/workflows/release.yml"
    workflow = _workflow(path)
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads the key `on` as true
    wheel = PROJECT["name"].replace("-", "_")
    assert f'test -f "dist/{wheel}-${{GITHUB_REF_NAME#v}}-py3-none-any.whl"' in _commands(path)
    assert "tests/wheel_smoke.py" in _commands(path)
    assert workflow["jobs"]["publish"]["needs"] == "build"
    assert not any("password" in step.get("with", {}) for step in _steps(path))


def test_the_hooks_run_tools_of_the_project() -> None:
    config = _workflow(ROOT / ".pre-commit-config.yaml")
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    recipe = MAKEFILE.partition("\nlint:")[2].partition("\n\n")[0]
    for hook in config["repos"][0]["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].startswith(".venv/bin/")
        tool = hook["entry"].removeprefix(".venv/bin/").split()
        assert f"$(BIN)/{' '.join(tool[:2]) if tool[0] == 'ruff' else tool[0]}" in recipe
