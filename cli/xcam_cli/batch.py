"""`xcam batch`: a whole set of pictures, into a table."""

from __future__ import annotations

import json
from typing import Any

import click

from xcam_cli.bar import Bar
from xcam_cli.options import heard, model_options, own_model, score_option, tell, unheard


@click.command()
@model_options
@click.option("-o", "--output", required=True, metavar="OUT", help="A folder: OUT/table, OUT/pictures, OUT/run.json.")
@click.option("-l", "--layer", metavar="LAYER", help="Default: the last with space; see `xcam layers`.")
@click.option(
    "-t",
    "--target",
    "targets",
    multiple=True,
    metavar="CLASS",
    help="As for `xcam explain`; @class: the class that the table names. Default: the top class.",
)
@click.option("--method", default="gradcam", show_default=True, metavar="NAME", help="See `xcam methods`.")
@click.option("-O", "--option", "settings", multiple=True, metavar="NAME=VALUE", help="An option of the method.")
@score_option
@click.option("--measure", "measures", multiple=True, metavar="NAME", help="A column; see `xcam evaluate --list`.")
@click.option("--maps/--no-maps", default=True, help="The raw maps in the table.  [default: maps]")
@click.option("--pictures", is_flag=True, help="Write overlays too.")
@click.option("--report", is_flag=True, help="Write OUT/report.html: what looks wrong, sorted for a person.")
@click.option("--batch", default=8, show_default=True, type=click.IntRange(1), help="Pictures in one forward pass.")
@click.option(
    "--part", default=256, show_default=True, type=click.IntRange(1), help="Pictures in one part of the table."
)
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Of Ray. Default: one for each machine, or GPU.")
@click.option(
    "--gpus-per-worker", type=click.FloatRange(0), default=0, metavar="G", help="Of Ray; 0.5: two share one."
)
@click.option("--address", metavar="ADDRESS", help="Of a Ray cluster; auto: the one that this machine is in.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT…")
def batch(
    backend: str | None,
    model: str | None,
    output: str,
    inputs: tuple[str, ...],
    targets: tuple[str, ...],
    settings: tuple[str, ...],
    report: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Explain every picture of a set: folders, patterns, tables, shards.

    \b
    xcam batch photos/ -m model.onnx -o out
    xcam batch validation.csv -m model.keras -o out --measure deletion --report
    xcam batch 'shards/*.tar' -m model.onnx -o out --engine ray --workers 4

    A table (.csv, .parquet) has a column path, and if need be class, x0, y0, x1, y1 and mask. A run that was stopped goes
    on when it is started again. A picture that cannot be read is a row with its error. Exit status 0; 2 for bad usage.
    """
    import xcam
    from xcam import progress
    from xcam_cli.plan import settings_of

    backend, model = own_model(backend, model)
    loading = {key: options.pop(key) for key in ("weights", "preprocess", "size", "labels", "device", "layout")}
    loading["threads"] = options.pop("threads")
    if targets == ("@class",):
        options["target"] = "@class"
    elif targets:
        options["target"] = list(targets)
    options |= settings_of(settings, (options["method"],))
    with Bar() as bar, progress.listening(bar.told), heard() as warned, unheard():
        found = xcam.batch(model, inputs, output, backend, loading, rivals=report, **options)
        page = found.report() if report else None
    tell(warned)
    if as_json:
        told = {"pictures": found.pictures, "failed": found.failed, "table": found.table}
        click.echo(json.dumps(told | ({"report": page} if page else {}), ensure_ascii=False))
        return
    failed = f", {found.failed} of which failed (column error)" if found.failed else ""
    click.echo(f"{found.pictures} {'picture' if found.pictures == 1 else 'pictures'}{failed}")
    click.echo(f"wrote {found.table}")
    if page:
        click.echo(f"wrote {page}")
