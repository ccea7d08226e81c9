"""The progress bar on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any


class ProgressBar:
    """A bar with an estimate of the time left, for work of more than two seconds on a terminal."""

    DELAY = 2.0
    """Seconds until the bar appears."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self._progress: Any = None
        self._tasks: dict[str, Any] = {}
        self._since: dict[str, tuple[float, int]] = {}
        """The time at which the count of each task started, and the steps done so far."""

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.hide()

    def update(self, task: str, done: int, total: int) -> None:
        """Show that `done` of `total` steps of a task are complete."""
        now = self._clock()
        start, previous = self._since.get(task, (now, 0))
        self._since[task] = (now if done < previous else start), done  # the count restarts for each batch
        if total < 2 or not sys.stderr.isatty() or now - self._start < self.DELAY:
            return
        if self._progress is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            # Not redirected: rich would restore the standard output of this moment, which may be a redirected one.
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
            )
            console = Console(stderr=True)
            self._progress = Progress(
                *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
            )
            self._progress.start()
        if task not in self._tasks:
            self._tasks[task] = self._progress.add_task(task, total=total, rate="")
        rate = done / max(now - self._since[task][0], 1e-3)
        self._progress.update(self._tasks[task], completed=done, total=total, rate=f"{rate:.3g}/s")

    def hide(self) -> None:
        """Remove the bar, so that other lines can be printed."""
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._tasks = None, {}
