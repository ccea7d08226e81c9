"""Timing functions in alternation, so that a drift of the machine's speed affects all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest


def ratios(
    title: str, functions: Mapping[str, Callable[[], Any]], rounds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run each function once in every round; print the median of each, and its ratio to the first one's."""
    for function in functions.values():
        for _ in range(3):
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    base = next(iter(medians.values()))
    with capsys.disabled():
        print(f"\n{title}, medians of {rounds}")
        for name, median in medians.items():
            print(f"  {name:28} {1000 * median:8.1f} ms   {median / base:5.2f}×")
