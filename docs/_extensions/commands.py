"""The command's help as reStructuredText, for sphinx-click: examples stay literal, `code` becomes code."""

from __future__ import annotations

import re
from typing import Any

import click
from docstrings import escaped

BRACKETS = "<[{($", ">]})$"
"""Characters that sphinx-click removes from both ends of a metavar."""


def _marked(line: str) -> str:
    """Turn single backticks into literals and escape the rest."""
    return re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", escaped(line))


def description(_: Any, __: click.Context, lines: list[str]) -> None:
    """Turn examples into code blocks; sphinx-click puts a bar before the lines after `\\b`."""
    result: list[str] = []
    for line in lines:
        if not line.startswith("| "):
            result.append(_marked(line))
            continue
        if not result or not result[-1].startswith("    "):
            result += ["", ".. code-block:: text", ""]
        result.append(f"    {line[2:]}")
    lines[:] = result


def options(_: Any, context: click.Context, lines: list[str]) -> None:
    """Escape the help texts, and show metavars completely."""
    metavars = [p.metavar for p in context.command.params if isinstance(p, click.Option) and p.metavar]
    whole = {f"<{metavar.lstrip(BRACKETS[0]).rstrip(BRACKETS[1])}>": metavar for metavar in metavars}
    for index, line in enumerate(lines):
        if line.startswith(".. option::"):
            for cut, metavar in whole.items():
                line = line.replace(cut, metavar)
            lines[index] = line
        elif not line.strip().startswith(":"):
            lines[index] = _marked(line).replace(r"\*\*Required\*\*", "**Required**")  # sphinx-click's own markup


def setup(app: Any) -> dict[str, bool]:
    """Connect to sphinx-click."""
    app.setup_extension("sphinx_click")
    app.connect("sphinx-click-process-description", description)
    app.connect("sphinx-click-process-options", options)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
