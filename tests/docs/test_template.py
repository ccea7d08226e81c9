"""The template of a backend: a generated project can be installed and passes its tests without changes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import copier
import pytest

from example import EXAMPLES, NUMPY
from fresh import Fresh

ANSWERS = {
    "files": {"name": "mine", "module": "numpy", "suffixes": ".mine .m2"},
    "live": {"name": "other", "module": "click.core", "description": 'Says "other", and \\ too.'},
}


@pytest.fixture(params=ANSWERS)
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / request.param
    copier.run_copy(str(EXAMPLES / "template"), folder, data=ANSWERS[request.param], defaults=True, quiet=True)
    return folder


def code(path: Path, start: str = "") -> str:
    """Return the code of a file without marks, with the names of the example."""
    text = re.sub(r" *# YOURS.*\n", "\n", path.read_text(encoding="utf-8"))
    for old, new in (("Mine", "Numpy"), ("Other", "Numpy"), ("mine", "numpy"), ("other", "numpy")):
        text = re.sub(rf'\b(xcam_|")?{old}(Model|\b)', lambda m, n=new: f"{m[1] or ''}{n}{m[2]}", text)
    text = text.replace("xcam_numpy.framework", "xcam_numpy.graph")
    return "\n".join(line for line in text[text.index(start) :].splitlines() if line.strip())


def test_it_is_the_example_with_other_names(project: Path) -> None:
    (package,) = project.glob("xcam_*")
    assert code(package / "backend.py", "class NumpyModel") == code(
        NUMPY / "xcam_numpy/backend.py", "class NumpyModel"
    )
    assert code(project / "tests/ops.py") == code(NUMPY / "tests/ops.py")
    graph = code(NUMPY / "xcam_numpy/graph.py", "@dataclass")
    assert code(package / "framework.py", "@dataclass").startswith(graph)


def test_a_generated_project_is_formatted(project: Path) -> None:
    ruff = [sys.executable, "-m", "ruff"]
    for arguments in (
        ["format", "--check", "--isolated", "--line-length=118"],
        ["check", "--isolated", "--ignore=I001"],
    ):
        done = subprocess.run([*ruff, *arguments, str(project)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout
    names = {p.relative_to(project).as_posix() for p in project.rglob("*") if p.is_file()}
    assert ("tests/test_files.py" in names) == (project.name == "files")
    assert not any("{" in name or name.endswith(".jinja") for name in names)


@pytest.mark.slow
def test_a_generated_project_passes_its_tests(project: Path, tmp_path: Path) -> None:
    fresh = Fresh(tmp_path / "venv")
    fresh.run("pip install -e .", project)
    name = ANSWERS[project.name]["name"]
    assert re.search(rf"^{name} +available +xcam-{name}", fresh.run("xcam backends", project), re.MULTILINE)
    output = fresh.run("python -m pytest -q", project)
    assert ("136 passed, 17 skipped" if project.name == "files" else "133 passed, 17 skipped") in output


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "My-Frame"}, "Lower-case letters and digits"),
        ({"name": "mine", "module": "two names"}, "An import name"),
        ({"name": "mine", "suffixes": "mine"}, "For example: .msgpack"),
    ],
)
def test_an_answer_that_cannot_be_used(tmp_path: Path, data: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        copier.run_copy(str(EXAMPLES / "template"), tmp_path / "made", data=data, defaults=True, quiet=True)
    assert not (tmp_path / "made").exists()
