"""`xcam batch`: a set of images, explained into a table."""

from __future__ import annotations

import json
from typing import Any

import click

from xcam_cli.options import (
    collected_warnings,
    default_model,
    model_options,
    print_warnings,
    score_option,
    stdout_to_stderr,
)
from xcam_cli.output import as_json
from xcam_cli.progress_bar import ProgressBar


@click.command()
@model_options
@click.option(
    "-o", "--output", "out", required=True, metavar="OUT", help="A folder: OUT/table, OUT/overlays, OUT/run.json."
)
@click.option("-l", "--layer", metavar="LAYER", help="Default: the last with spatial axes; see `xcam layers`.")
@click.option(
    "-t",
    "--target",
    "targets",
    multiple=True,
    metavar="CLASS",
    help="As for `xcam explain`; @class: the class in the table. Default: the top class.",
)
@click.option("--method", default="gradcam", show_default=True, metavar="NAME", help="See `xcam methods`.")
@click.option("-O", "--option", "settings", multiple=True, metavar="NAME=VALUE", help="An option of the method.")
@score_option
@click.option(
    "--measure",
    "measures",
    multiple=True,
    metavar="NAME",
    help="Add a column with this measure; see `xcam evaluate --list`.",
)
@click.option("--maps/--no-maps", default=True, help="Keep the raw maps in the table.  [default: maps]")
@click.option("--overlays", is_flag=True, help="Write overlays too.")
@click.option("--report", is_flag=True, help="Write OUT/report.html: suspicious results, sorted for review.")
@click.option("--batch", default=8, show_default=True, type=click.IntRange(1), help="Images in one forward pass.")
@click.option(
    "--part", default=256, show_default=True, type=click.IntRange(1), help="Images in one part of the table."
)
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Ray workers. Default: one per machine, or GPU.")
@click.option(
    "--gpus-per-worker", type=click.FloatRange(0), default=0, metavar="G", help="For Ray; 0.5: two workers share one."
)
@click.option("--address", metavar="ADDRESS", help="A Ray cluster; auto: the one that this machine belongs to.")
@as_json
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT…")
def batch(
    backend: str | None,
    model: str | None,
    out: str,
    inputs: tuple[str, ...],
    targets: tuple[str, ...],
    settings: tuple[str, ...],
    report: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Explain every image of a set: folders, patterns, tables, shards.

    \b
    xcam batch images/ -m model.onnx -o out
    xcam batch validation.csv -m model.keras -o out --measure deletion --report
    xcam batch 'shards/*.tar' -m model.onnx -o out --engine ray --workers 4

    A table (.csv, .parquet) has a column path, and optionally class, x0, y0, x1, y1 and mask. A run that was stopped
    continues when it is started again. An image that cannot be read is a row with its error. Exit status 0; 2 for bad
    usage.
    """
    import xcam
    from xcam import progress
    from xcam_cli.plan import parse_method_options

    backend, model = default_model(backend, model)
    keys = (
        "weights",
        "preprocess",
        "size",
        "fit",
        "channels",
        "labels",
        "output",
        "device",
        "layout",
        "task",
        "boxes",
    )
    load_options = {key: options.pop(key) for key in keys}
    load_options["threads"] = options.pop("threads")
    load_options |= {"inputs": options.pop("other_inputs"), "image_input": options.pop("image_input")}
    load_options |= {name: options.pop(name) for name in ("texts", "embeddings")}
    if targets == ("@class",):
        options["target"] = "@class"
    elif targets:
        options["target"] = list(targets)
    options["method_options"] = parse_method_options(settings, (options["method"],))
    with ProgressBar() as bar, progress.listening(bar.update), collected_warnings() as texts, stdout_to_stderr():
        result = xcam.batch(
            model, inputs, out=out, backend=backend, load_options=load_options, rivals=report, **options
        )
        page = result.report() if report else None
    print_warnings(texts)
    if as_json:
        document = {"images": result.images, "failed": result.failed, "table": result.table}
        click.echo(json.dumps(document | ({"report": page} if page else {}), ensure_ascii=False))
        return
    failed = f", {result.failed} of which failed (column error)" if result.failed else ""
    click.echo(f"{result.images} {'image' if result.images == 1 else 'images'}{failed}")
    click.echo(f"wrote {result.table}")
    if page:
        click.echo(f"wrote {page}")
