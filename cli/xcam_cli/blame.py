"""`xcam blame`: which layers of a converted model cause its difference, and how much each of them costs."""

from __future__ import annotations

import math
import sys
from typing import Any

import click

from xcam_cli.compare import ORDER
from xcam_cli.images import expand_images
from xcam_cli.model_spec import ModelSpec, open_all
from xcam_cli.options import (
    SHARED_OPTIONS,
    collected_warnings,
    print_warnings,
    score_option,
    shared_options,
    stdout_to_stderr,
)
from xcam_cli.output import as_json, print_json, print_table
from xcam_cli.progress_bar import ProgressBar

SHOWN = 12
"""Stretches that are printed."""


@click.command()
@click.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    metavar="[BACKEND:]MODEL[@LAYER]",
    help="Two: torch:net.pt2, net.onnx@features.29. The first is the reference.",
)
@click.option(
    "-l", "--layer", metavar="LAYER", help="The explained layer, for models without @LAYER. Default: aligned."
)
@click.option("-t", "--target", metavar="CLASS", help="Default: the first model's top class.")
@click.option("--method", default="gradcam", show_default=True, metavar="NAME", help="See `xcam methods`.")
@score_option
@click.option("--fast", is_flag=True, help="Only estimate, from forward and backward passes of the whole models.")
@click.option("--causes/--no-causes", default=True, help="Seek the causes of named locations, which takes longest.")
@click.option(
    "--level",
    type=click.FloatRange(0, 1, True, True),
    default=0.95,
    show_default=True,
    help="Confidence level of the intervals.",
)
@click.option("--require", type=click.Choice(ORDER[:2]), help="Exit with status 1 when the verdict is worse.")
@click.option("--report", metavar="OUT.html", help="Write an HTML page.")
@click.option("--node-data", metavar="OUT.json", help="Write the contributions for Google's Model Explorer.")
@shared_options
@as_json
@click.argument("images", nargs=-1, metavar="IMAGE…")
def blame(models: tuple[str, ...], images: tuple[str, ...], **options: Any) -> None:
    """Find where the second model's difference from the first comes from, on each IMAGE (a file, a folder, a pattern).

    \b
    xcam blame -m torch:net.pt2 -m net.onnx image.jpg
    xcam blame -m float.onnx -m int8.onnx --report blame.html images/

    The first model's values are put into the second, one location after another: a location is a pair of
    corresponding layers through which everything passes. The share of the difference in class scores and heatmaps that
    this removes, from one location to the next, is the contribution of the stretch between them.
    Exit status: 0; 1 when the verdict is worse than --require; 2 when an image failed, or for bad usage.
    """
    import xcam
    from xcam import progress
    from xcam.report.rendering import check_path

    specs = [ModelSpec.parse(text) for text in models]
    if len(specs) != 2:
        raise click.UsageError(f"blame takes two models, not {len(specs)}; give -m A -m B, the reference first")
    layer, require, in_json = (options.pop(name) for name in ("layer", "require", "as_json"))
    report, node_data = options.pop("report"), options.pop("node_data")
    page = check_path(report) if report else None
    nodes = xcam.Blame.check_node_data_path(node_data) if node_data else None
    paths = expand_images(list(images))
    load_options = {key: options.pop(key) for key in SHARED_OPTIONS}
    with ProgressBar() as bar, progress.listening(bar.update), collected_warnings() as texts:
        opened = open_all(specs, **load_options)
        with stdout_to_stderr():
            result = xcam.blame(opened, paths, layer=[spec.layer or layer for spec in specs], **options)
    print_warnings(texts)
    if in_json:
        print_json(result.to_dict())
    else:
        print_blame(result)
    for path, reason in result.failed:
        click.echo(f"xcam: {reason if path in reason else f'{path}: {reason}'}", err=True)
    for file, save in ((page, result.save), (nodes, result.save_node_data)):
        if file is not None:
            save(file)
            click.echo(f"wrote {file}", err=in_json)
    if result.failed:
        sys.exit(2)
    if require is not None and ORDER.index(result.verdict) > ORDER.index(require):
        sys.exit(1)


def print_blame(result: Any) -> None:
    """Print the whole difference, the contributions with the largest first, and the named locations with causes."""
    a, b = result.names
    click.echo(f"{b} against {a}: {result.verdict}, on {len(result.images)} image{'s'[: len(result.images) > 1]}")
    click.echo(
        f"difference of the class scores {_number(result.scores)}, lost correlation of the heatmaps {_number(result.heatmap)}"
    )
    for sentence in result.sentences:
        click.echo(sentence)
    click.echo()
    print_table(
        ["from", "to", "class scores", "heatmap", "local error", ""],
        [
            [
                c.start,
                c.second,
                _share(c.scores, result.scores),
                _share(c.heatmap, result.heatmap),
                _number(c.error),
                "  ".join([*(["named"] if c.named else []), *(["interacts"] if c.interacts else [])]),
            ]
            for c in result.ranked[:SHOWN]
        ],
    )
    if len(result.stretches) > SHOWN:
        click.echo(f"… and {len(result.stretches) - SHOWN} more; --json and --report show all")
    click.echo()
    for finding in result.findings:
        click.echo(f"note: {finding}")
    for c in result.named:
        click.echo(
            f"{c.second} ({c.first} in {a}) has an error of its own: local error {_number(c.error)}; it causes "
            f"{_share(c.scores, result.scores)} of the difference of the class scores and {_share(c.heatmap, result.heatmap)} "
            "of that of the heatmaps"
        )
        if c.cause is not None:
            click.echo(f"  cause: {c.cause.text} ({c.cause.evidence})")
            click.echo(f"  {c.cause.remedy}")
        elif result.has_causes:
            click.echo("  cause: none of the known ones fits")
        for note in c.notes:
            click.echo(f"  note: {note}")


def _number(interval: Any) -> str:
    return "–" if math.isnan(interval.mean) else f"{interval.mean:.2g}"


def _share(part: Any, whole: Any) -> str:
    """Return a part in percent of the whole, with its interval."""
    if math.isnan(part.mean) or math.isnan(whole.mean) or not whole.mean > 1e-9:
        return "–"
    mean, low, high = (f"{value / whole.mean:z.0%}" for value in (part.mean, part.low, part.high))
    return mean if math.isnan(part.low) else f"{mean} ({low} … {high})"
