"""The command's help, made into reStructuredText for sphinx-click: examples stay as typed, `code` is code."""

from __future__ import annotations

import re
from typing import Any

import click
from docstrings import escaped

BRACKETS = "<[{($", ">]})$"
"""What sphinx-click cuts off a metavar, at both of its ends."""


def _marked(line: str) -> str:
    """Turn single backticks into literals and escape the rest."""
    return re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", escaped(line))


def description(_: Any, __: click.Context, lines: list[str]) -> None:
    """Lines behind `\\b` are examples: sphinx-click has put a bar ahead of each."""
    found: list[str] = []
    for line in lines:
        if not line.startswith("| "):
            found.append(_marked(line))
            continue
        if not found or not found[-1].startswith("    "):
            found += ["", ".. code-block:: text", ""]
        found.append(f"    {line[2:]}")
    lines[:] = found


def options(_: Any, context: click.Context, lines: list[str]) -> None:
    """Help is prose; metavars are shown whole."""
    metavars = [p.metavar for p in context.command.params if isinstance(p, click.Option) and p.metavar]
    whole = {f"<{metavar.lstrip(BRACKETS[0]).rstrip(BRACKETS[1])}>": metavar for metavar in metavars}
    for place, line in enumerate(lines):
        if line.startswith(".. option::"):
            for cut, metavar in whole.items():
                line = line.replace(cut, metavar)
            lines[place] = line
        elif not line.strip().startswith(":"):
            lines[place] = _marked(line)


def setup(app: Any) -> dict[str, bool]:
    app.setup_extension("sphinx_click")
    app.connect("sphinx-click-process-description", description)
    app.connect("sphinx-click-process-options", options)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
