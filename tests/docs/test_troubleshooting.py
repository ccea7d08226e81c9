"""Messages of the page on troubleshooting that none of its blocks can cause: they are those of xcam."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

import xcam
from xcam.models import demo
from xcam_cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")


def shown(start: str) -> str:
    """Return a pattern for the line of the page that begins with `start`; `...` matches anything."""
    line = next(line for line in PAGE.splitlines() if line.startswith(start))
    return re.escape(line).replace(r"\.\.\.", ".*")


class Narrow:
    """The demo network, with memory for `most` images at once."""

    def __init__(self, most: int) -> None:
        self._model, self._most = xcam.load("demo", "onnx"), most

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def trace(self, x: Any, *rest: Any) -> Any:
        if len(x) > self._most:
            raise MemoryError("Unable to allocate 9.31 GiB")
        return self._model.trace(x, *rest)


def test_memory_that_runs_out_halves_the_batch() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        explanations = xcam.explain(Narrow(4), [demo.image_paths()[0]] * 8)
    assert [e.label for e in explanations] == ["disc"] * 8
    (warning,) = caught
    assert re.fullmatch(shown("out of memory with 8 images"), str(warning.message))


def test_memory_that_runs_out_with_one_image(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    narrow = Narrow(0)
    monkeypatch.setattr(xcam, "load", lambda *_, **__: narrow)
    with pytest.raises(SystemExit) as stop:
        main(["-b", "onnx", "-m", "demo", "-o", "out.png", str(demo.image_paths()[0])])
    assert stop.value.code == 2
    assert re.fullmatch(shown("xcam: out of memory ("), capsys.readouterr().err.strip())
