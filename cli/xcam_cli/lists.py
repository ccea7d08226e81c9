"""`xcam layers`, `xcam methods`, `xcam backends`: what there is."""

from __future__ import annotations

import json
from typing import Any

import click

from xcam_cli.options import models_options, open_model, unheard

as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")


def table(headings: list[str], rows: list[list[str]]) -> None:
    """A table on standard output; plain, one row on a line, where that is not a terminal."""
    import sys

    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = None if sys.stdout.isatty() else 10_000
    grid = Table(*headings, box=box.SIMPLE, pad_edge=False, show_edge=False)
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    Console(width=width, soft_wrap=width is not None).print(grid)


def emit(rows: list[dict[str, Any]]) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(rows, indent=2, ensure_ascii=False))


@click.command()
@as_json
def backends(as_json: bool) -> None:
    """List the backends: available, missing (and what installs them), or broken."""
    import xcam

    with unheard():  # a plugin's own code runs here
        rows = [[p.name, p.state, p.distribution, p.remedy] for p in xcam.list_backends().values()]
    if as_json:
        emit([dict(zip(("name", "state", "from", "remedy"), row, strict=True)) for row in rows])
        return
    table(["backend", "state", "from", "what to do"], rows)


@click.command()
@as_json
def methods(as_json: bool) -> None:
    """List the methods with what they need, their options and their source."""
    import xcam

    found = xcam.list_methods().values()
    if as_json:
        emit(
            [
                {
                    "name": m.name,
                    "summary": m.summary,
                    "inputs": m.inputs,
                    "passes": m.passes,
                    "options": dict(m.options),
                    "source": m.source,
                }
                for m in found
            ]
        )
        return
    rows = [
        [m.name, m.summary, m.passes, ", ".join(f"{k}={v}" for k, v in m.options.items()), m.source] for m in found
    ]
    table(["method", "map, before ReLU", "passes", "options", "source"], rows)


@click.command()
@models_options
@as_json
@click.option("--all", "all_", is_flag=True, help="Values inside layers too.")
def layers(backend: str | None, models: tuple[str, ...], as_json: bool, all_: bool, **options: Any) -> None:
    """List a model's layers in execution order; the default is marked. Of two models: which layer is which."""
    from xcam.errors import ModelError
    from xcam.models.layers import find

    if len(models) > 1:
        _side_by_side(backend, models, as_json, options)
        return
    opened = open_model(backend, models[0] if models else None, **options)
    with unheard():
        found = [layer for layer in opened.layers if all_ or not layer.inner]
        try:
            chosen = find(opened, None).name
        except ModelError:
            chosen = None
    if as_json:
        emit(
            [
                {
                    "name": layer.name,
                    "kind": layer.kind,
                    "shape": layer.shape,
                    "has_space": layer.has_space,
                    "default": layer.name == chosen,
                }
                for layer in found
            ]
        )
        return
    rows = [
        [
            layer.name,
            layer.kind,
            "×".join("?" if n is None else str(n) for n in layer.shape),
            "default" if layer.name == chosen else "" if layer.has_space else "no space",
        ]
        for layer in found
    ]
    table(["layer", "kind", "shape (channels first)", ""], rows)


def _side_by_side(backend: str | None, models: tuple[str, ...], as_json: bool, options: dict[str, Any]) -> None:
    """The layers of two models that hold the same, found from their values on noise."""
    from xcam.comparison.compare import corresponding
    from xcam_cli.compare import Spec

    specs = [Spec.read(word) for word in models]
    opened = [open_model(spec.backend or backend, spec.model, **options) for spec in specs]
    with unheard():
        found = corresponding(opened)
    if as_json:
        emit([{"first": a, "second": b, "error": error} for a, b, error in found])
        return
    table([f"{m.name} ({m.backend})" for m in opened] + ["error"], [[a, b, f"{error:.1e}"] for a, b, error in found])
