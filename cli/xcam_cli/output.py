"""Tables and JSON documents on standard output."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")


def print_table(headings: list[str], rows: list[list[str]]) -> None:
    """Print a table; without a terminal, each row is one line, however long."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = None if sys.stdout.isatty() else 10_000
    table = Table(*headings, box=box.SIMPLE, pad_edge=False, show_edge=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(width=width, soft_wrap=width is not None).print(table)


def print_json(document: Any) -> None:
    """Print one JSON document; NumPy scalars become floats."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, default=float))
