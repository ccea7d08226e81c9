"""The page on writing a backend: its steps work in an empty folder, and its code is that of examples/xcam-numpy."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from example import NUMPY
from fresh import Fresh
from xcam.images import reading, writing
from xcam.models import demo

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "write-a-backend.md"
BLOCK = re.compile(r"^```\{code-block\} (\w+)\n((?::\w+:[^\n]*\n)*)\n?(.*?)^```$", re.MULTILINE | re.DOTALL)


def _run_page() -> Any:
    """Return the runner of the other pages, which reads console blocks."""
    spec = importlib.util.spec_from_file_location("run_page", Path(__file__).with_name("run_page.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("run_page", module)
    spec.loader.exec_module(module)
    return module


def blocks() -> Iterator[tuple[str, str, str]]:
    """Yield the kind, the caption (a file name) and the text of each block."""
    for kind, options, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        caption = re.search(r":caption: (\S+)", options)
        yield kind, caption[1] if caption else "", text


def joined(parts: list[str]) -> str:
    """Join the parts of a file: one blank line between methods, two between parts without indentation."""
    text = parts[0]
    for part in parts[1:]:
        text += ("\n" if part.startswith(" ") else "\n\n") + part
    return text


def test_its_code_is_the_example() -> None:
    parts: dict[str, list[str]] = defaultdict(list)
    for _, file, text in blocks():
        if file:
            parts[file].append(text)
    files = [p for p in NUMPY.rglob("*") if p.suffix in (".py", ".toml")]
    assert set(parts) == {p.relative_to(NUMPY).as_posix() for p in files}
    for file, texts in parts.items():
        assert joined(texts) == (NUMPY / file).read_text(encoding="utf-8"), file


def test_the_backend_is_short() -> None:
    """About 90 lines of code, as the example's README states; docstrings and blank lines are not counted."""
    text = (NUMPY / "xcam_numpy" / "backend.py").read_text(encoding="utf-8")
    code = re.sub(r'^\s*""".*?"""$', "", text, flags=re.MULTILINE | re.DOTALL)
    assert 60 < sum(bool(line.strip()) for line in code.splitlines()) < 100


@pytest.mark.slow
def test_its_steps_give_a_backend_that_passes_the_suite(tmp_path: Path) -> None:
    run_page, fresh, folder = _run_page(), Fresh(tmp_path / "venv"), tmp_path / "empty"
    folder.mkdir()
    parts: dict[str, list[str]] = defaultdict(list)
    ran = []
    writing.write(folder / "photo.jpg", reading.read(demo.image_paths()[0]))
    for kind, file, text in blocks():
        if file:
            parts[file].append(text)
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(joined(parts[file]), encoding="utf-8")
        elif kind == "console":
            for command, expected in run_page.commands(text):
                out = fresh.run(command, folder)
                ran.append(command)
                if expected.strip():
                    run_page.compare(expected, out, command)
    assert ran[:3] == ["pip install -e .", "xcam backends", "python -m pytest -q"]
    assert reading.read(folder / "red.png").shape[2] == 3
