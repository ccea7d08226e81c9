"""How far a long calculation has come, on standard error."""

from __future__ import annotations

import sys
import time
from typing import Any


class Bar:
    """A bar with an estimate on standard error, for what takes more than two seconds while somebody watches."""

    PATIENCE = 2.0

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._shown: Any = None
        self._tasks: dict[str, Any] = {}
        self._since: dict[str, tuple[float, int]] = {}
        """For each task, when it began to count, and how far it is."""

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.hide()

    def told(self, what: str, done: int, of: int) -> None:
        """A step was taken."""
        now = time.monotonic()
        began, before = self._since.get(what, (now, 0))
        self._since[what] = (now if done < before else began), done  # it counts anew for each batch
        if of < 2 or not sys.stderr.isatty() or now - self._start < self.PATIENCE:
            return
        if self._shown is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            # Not redirected: rich would put back the standard output that it found, which is `unheard`'s.
            pace = TextColumn("{task.fields[rate]}")
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                pace,
                TimeRemainingColumn(),
            )
            shown = Progress(
                *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
            )
            self._shown = shown
            self._shown.start()
        if what not in self._tasks:
            self._tasks[what] = self._shown.add_task(what, total=of, rate="")
        rate = done / max(now - self._since[what][0], 1e-3)
        self._shown.update(self._tasks[what], completed=done, total=of, rate=f"{rate:.3g}/s")

    def hide(self) -> None:
        """Make room for other lines."""
        if self._shown is not None:
            self._shown.stop()
        self._shown, self._tasks = None, {}
