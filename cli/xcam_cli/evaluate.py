"""`xcam evaluate`: methods ranked by measures of trust, for a model and images."""

from __future__ import annotations

import math
import os
import sys
from typing import Any

import click

from xcam_cli.images import Annotation, expand_images, read_annotations
from xcam_cli.options import (
    collected_warnings,
    model_options,
    open_model,
    print_warnings,
    score_option,
    stdout_to_stderr,
)
from xcam_cli.output import as_json, print_json, print_table
from xcam_cli.progress_bar import ProgressBar


def _list(context: click.Context, _: click.Parameter, requested: bool) -> None:
    if requested and not context.resilient_parsing:
        import xcam

        rows = [
            [m.name, m.summary, m.better, m.passes, "" if m.default else "when named", m.source]
            for m in xcam.list_measures().values()
        ]
        print_table(["measure", "definition", "better", "cost in addition to the explanation", "", "source"], rows)
        context.exit()


@click.command()
@model_options
@click.option("-l", "--layer", metavar="LAYER", help="Default: the last with spatial axes.")
@click.option("-t", "--target", "targets", multiple=True, metavar="CLASS", help="Default: each image's top class.")
@click.option(
    "--method", "methods", multiple=True, metavar="NAME", help="Repeat for several; or all. Default: gradcam."
)
@click.option("--measure", "measures", multiple=True, metavar="NAME", help="Default: all but the costliest; or all.")
@click.option(
    "--list", is_flag=True, expose_value=False, is_eager=True, callback=_list, help="List the measures and exit."
)
@score_option
@click.option(
    "--table",
    "file",
    metavar="BOXES.csv|.parquet",
    help="Columns path and x0, y0, x1, y1 (pixels), or path and mask; optionally class.",
)
@click.option("--floor/--no-floor", default=True, help="Also evaluate `random`, as the baseline.")
@click.option(
    "--level",
    type=click.FloatRange(0, 1, True, True),
    default=0.95,
    show_default=True,
    help="Confidence level of the intervals.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of all random numbers.")
@click.option(
    "--stages", type=click.IntRange(1), default=4, show_default=True, help="Stages of the randomisation test."
)
@click.option("--report", metavar="OUT.html", help="Write an HTML page.")
@as_json
@click.argument("images", nargs=-1, metavar="IMAGE…")
def evaluate(images: tuple[str, ...], file: str | None, report: str | None, as_json: bool, **options: Any) -> None:
    """Rank methods on each IMAGE (a file, a folder, a pattern) by measures of trust, with confidence intervals.

    \b
    xcam evaluate -m model.onnx --method gradcam --method layercam images/
    xcam evaluate -b onnx -m demo --method all --table boxes.csv --report trust.html

    A * marks a method whose interval of the difference from `random` excludes zero.
    Exit status: 0; 2 when an image failed, or for bad usage.
    """
    import xcam
    from xcam import progress
    from xcam.report.rendering import check_path

    page = check_path(report) if report else None
    targets = options.pop("targets")
    if len(targets) > 1:
        raise click.UsageError(f"one class is evaluated on all images, not {len(targets)}; run the command for each")
    table = read_annotations(file) if file else {}
    paths = expand_images(list(images)) if images or not file else list(table)
    annotations = _annotations(paths, table, file)
    selected = {key: options.pop(key) for key in ("layer", "score", "floor", "level", "seed", "stages")}
    if annotations:
        selected["boxes"] = [annotation.boxes or None for annotation in annotations]
        selected["masks"] = [annotation.mask for annotation in annotations]
    methods, measures = options.pop("methods") or ("gradcam",), options.pop("measures")
    with ProgressBar() as bar, progress.listening(bar.update), collected_warnings() as texts:
        model = open_model(options.pop("backend"), options.pop("model"), **options)
        selected["target"] = targets[0] if targets else _classes(model, paths, annotations)
        selected["methods"] = _methods(methods, model)
        selected["measures"] = _measures(measures, model, bool(annotations))
        with stdout_to_stderr():
            evaluation = xcam.evaluate(model, paths, **selected)
    print_warnings(texts)
    if as_json:
        print_json(evaluation.to_dict())
    else:
        print_evaluation(evaluation)
    for path, reason in evaluation.failed:
        click.echo(f"xcam: {reason if path in reason else f'{path}: {reason}'}", err=True)
    if page is not None:  # last, so that the measures are printed even where the page cannot be written
        evaluation.save(page)
        if not as_json:
            click.echo(f"wrote {page}")
    if evaluation.failed:
        sys.exit(2)


def _annotations(paths: list[str], table: dict[str, Annotation], file: str | None) -> list[Annotation]:
    """Return the annotation of each image; an empty list without a table. Raises InputError."""
    from xcam.errors import InputError

    if file is None:
        return []
    by_real_path = {os.path.realpath(path): annotation for path, annotation in table.items()}
    annotations = [by_real_path.get(os.path.realpath(path), Annotation()) for path in paths]
    if not any(annotation.boxes or annotation.mask for annotation in annotations):
        others = " and the others" if len(paths) > 1 else ""
        raise InputError(f"{file} has no row for {paths[0]}{others}; write paths relative to the table's own folder")
    return annotations


def _classes(model: Any, paths: list[str], annotations: list[Annotation]) -> list[int | None] | None:
    """Return the class index of each image from the table; None without classes. Raises InputError."""
    from xcam.errors import InputError
    from xcam.targets.parsing import class_index

    def index(path: str, label: str | None) -> int | None:
        if label is None:
            return None
        try:
            if (position := class_index(label, model.labels)) < 0:
                raise InputError(
                    f"class {label} is negative; give an index from 0, or an empty cell for the top class"
                )
        except InputError as error:
            raise InputError(f"the class of {path}: {error}") from error
        return position

    if not any(annotation.label for annotation in annotations):
        return None
    return [index(path, annotation.label) for path, annotation in zip(paths, annotations, strict=True)]


def _methods(names: tuple[str, ...], model: Any) -> list[str]:
    """Return the named methods; for `all`, those that the backend supports. Raises InputError."""
    import xcam
    from xcam.explanation.context import lacking
    from xcam.methods.registry import get

    for name in {*names} - {"all"}:
        get(name)
    if "all" not in names:
        return list(dict.fromkeys(names))
    return [name for name, method in xcam.list_methods().items() if not lacking(model, method)]


def _measures(names: tuple[str, ...], model: Any, located: bool) -> list[str] | None:
    """Return the named measures; for `all`, those whose inputs are available. Raises InputError."""
    import xcam
    from xcam.contract.abilities import Randomizable, supports
    from xcam.evaluation.registry import get

    for name in {*names} - {"all"}:
        get(name)
    if "all" not in names:
        return list(dict.fromkeys(names)) or None
    available = {"masks": located, "shuffled": supports(model, Randomizable)}
    return [name for name, m in xcam.list_measures().items() if all(available.get(need, True) for need in m.inputs)]


def print_evaluation(evaluation: Any) -> None:
    """Print the measures by method, the best method first, and the ranking."""
    order = [rank.method for rank in evaluation.ranking]
    rows = []
    for measure in evaluation.measures:
        cells = [evaluation.row(method, measure.name) for method in order]
        rows.append(
            [
                measure.name,
                measure.better,
                *(
                    f"{format_mean(row, len(evaluation.images))}{' *' if row.above and measure.ranks else ''}"
                    for row in cells
                ),
            ]
        )
    print_table(["measure", "better", *order], rows)
    click.echo()
    floor = "random" in order
    for rank in evaluation.ranking:
        if math.isnan(rank.mean_rank):
            click.echo(f"{rank.method}: not ranked, because no ranking measure has a value")
            continue
        text = f"{rank.method}: mean rank {rank.mean_rank:.1f} of {len(order)}"
        if floor and rank.method != "random":
            text += f"; better than random by {rank.above} of {rank.of} {'measure' if rank.of == 1 else 'measures'}"
            text += f", worse by {rank.below}" if rank.below else ""
        click.echo(text)
    for note in evaluation.notes:
        click.echo(f"note: {note}")


def format_mean(row: Any, images: int) -> str:
    """Format a mean with its interval (which needs two images) and, where some images have no value, their number."""
    if math.isnan(row.mean):
        return "–"
    text = f"{row.mean:.3f}" + ("" if math.isnan(row.low) else f" [{row.low:.3f}, {row.high:.3f}]")
    return text if row.n == images else f"{text} (of {row.n})"
