"""The progress bar on standard error."""

from __future__ import annotations

import io
import sys

import pytest


def test_the_bar_leaves_standard_output_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts while standard output is redirected and ends after that."""
    from xcam_cli.options import stdout_to_stderr
    from xcam_cli.progress_bar import ProgressBar

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    out = sys.stdout
    bar = ProgressBar()
    bar.update("images", 1, 3)
    assert sys.stderr.getvalue() == "", "nothing in the first two seconds"  # type: ignore[attr-defined]
    monkeypatch.setattr(ProgressBar, "DELAY", 0.0)
    with stdout_to_stderr():
        bar.update("images", 1, 3)
    bar.hide()
    assert sys.stdout is out
    assert "images" in sys.stderr.getvalue()  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    bar.update("images", 2, 3)
    assert sys.stderr.getvalue() == "", "not a terminal"  # type: ignore[attr-defined]


def test_the_rate_is_that_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """It excludes the time before the task, and restarts when the count does."""
    from xcam_cli.progress_bar import ProgressBar

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    clock = iter((0.0, 100.0, 102.0, 110.0, 110.5, 111.0))
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = ProgressBar(clock=lambda: next(clock))
    rates = []
    for done in (0, 4, 0, 1, 3):
        bar.update("steps", done, 8)
        rates.append(bar._progress.tasks[0].fields["rate"])
    bar.hide()
    assert rates == ["0/s", "2/s", "0/s", "2/s", "3/s"]
