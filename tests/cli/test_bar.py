"""The bar on standard error."""

from __future__ import annotations

import io
import sys

import pytest


def test_the_bar_leaves_standard_output_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins while the model's words go to standard error, and ends when they no longer do."""
    from xcam_cli.bar import Bar
    from xcam_cli.options import unheard

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    out = sys.stdout
    bar = Bar()
    bar.told("pictures", 1, 3)
    assert sys.stderr.getvalue() == "", "nothing in the first two seconds"  # type: ignore[attr-defined]
    monkeypatch.setattr(Bar, "PATIENCE", 0.0)
    with unheard():
        bar.told("pictures", 1, 3)
    bar.hide()
    assert sys.stdout is out
    assert "pictures" in sys.stderr.getvalue()  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    bar.told("pictures", 2, 3)
    assert sys.stderr.getvalue() == "", "nobody watches"  # type: ignore[attr-defined]


def test_the_rate_is_that_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of the time since the command began, and anew where a task begins to count again."""
    from xcam_cli import bar as module

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    clock = iter((0.0, 100.0, 102.0, 110.0, 110.5, 111.0))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = module.Bar()
    rates = []
    for done in (0, 4, 0, 1, 3):
        bar.told("steps", done, 8)
        rates.append(bar._shown.tasks[0].fields["rate"])
    bar.hide()
    assert rates == ["0/s", "2/s", "0/s", "2/s", "3/s"]
