"""`xcam evaluate`: which method's maps can be trusted, on this model and these pictures?"""

from __future__ import annotations

import math
import os
import sys
from typing import Any

import click

from xcam_cli.bar import Bar
from xcam_cli.lists import table
from xcam_cli.options import heard, model_options, open_model, score_option, tell, unheard
from xcam_cli.pictures import Told, expanded, told


def _list(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        import xcam

        rows = [
            [m.name, m.summary, m.better, m.passes, "" if m.default else "when named", m.source]
            for m in xcam.list_measures().values()
        ]
        table(["measure", "what it is", "better", "besides the explanation", "", "source"], rows)
        context.exit()


@click.command()
@model_options
@click.option("-l", "--layer", metavar="LAYER", help="Default: the last that has space.")
@click.option("-t", "--target", "targets", multiple=True, metavar="CLASS", help="Default: each picture's top class.")
@click.option(
    "--method", "methods", multiple=True, metavar="NAME", help="Give it several times. Default: gradcam. Or all."
)
@click.option("--measure", "measures", multiple=True, metavar="NAME", help="Default: all but the costliest. Or all.")
@click.option(
    "--list", is_flag=True, expose_value=False, is_eager=True, callback=_list, help="List the measures, and stop."
)
@score_option
@click.option(
    "--table",
    "file",
    metavar="BOXES.csv|.parquet",
    help="Columns path and x0, y0, x1, y1 (pixels), or path and mask; class, if need be.",
)
@click.option("--floor/--no-floor", default=True, help="Evaluate `random` too, which others have to beat.")
@click.option(
    "--level", type=click.FloatRange(0, 1, True, True), default=0.95, show_default=True, help="Of intervals."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all that is drawn.")
@click.option("--stages", type=click.IntRange(1), default=4, show_default=True, help="Of the randomisation test.")
@click.option("--report", metavar="OUT.html", help="Write a page for a person.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@click.argument("images", nargs=-1, metavar="IMAGE…")
def evaluate(images: tuple[str, ...], file: str | None, report: str | None, as_json: bool, **options: Any) -> None:
    """Rank methods on each IMAGE (a picture, a folder, a pattern) by measures of trust, with confidence intervals.

    \b
    xcam evaluate -m model.onnx --method gradcam --method layercam pictures/
    xcam evaluate -b onnx -m demo --method all --table boxes.csv --report trust.html

    A * stands where a method is better than `random` by an interval that does not reach zero.
    Exit status: 0; 2 when a picture failed, or for bad usage.
    """
    import xcam
    from xcam import progress
    from xcam.report.rendering import check_place

    place = check_place(report) if report else None
    targets = options.pop("targets")
    if len(targets) > 1:
        raise click.UsageError(f"one class is evaluated on all pictures, not {len(targets)}; run it for each")
    known = {os.path.realpath(path): one for path, one in told(file).items()} if file else {}
    pictures = expanded(list(images)) if images or not file else list(told(file))
    truth = _truth(pictures, known, file)
    asked = {key: options.pop(key) for key in ("layer", "score", "floor", "level", "seed", "stages")}
    if truth:
        asked["boxes"] = [one.boxes or None for one in truth]
        asked["masks"] = [one.mask for one in truth]
    methods, measures = options.pop("methods") or ("gradcam",), options.pop("measures")
    with Bar() as bar, progress.listening(bar.told), heard() as warned:
        model = open_model(options.pop("backend"), options.pop("model"), **options)
        asked["target"] = targets[0] if targets else _classes(model, pictures, truth)
        with unheard():
            found = xcam.evaluate(
                model, pictures, methods=_methods(methods, model), measures=_measures(measures, model, bool(truth)), **asked
            )
    tell(warned)
    if as_json:
        import json

        click.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False, default=float))
    else:
        say(found)
    for path, why in found.failed:
        click.echo(f"xcam: {why if path in why else f'{path}: {why}'}", err=True)
    if place is not None:  # last: what was measured is told, whatever becomes of the page
        found.save(place)
        if not as_json:
            click.echo(f"wrote {place}")
    if found.failed:
        sys.exit(2)


def _truth(pictures: list[str], known: dict[str, Told], file: str | None) -> list[Told]:
    """What the table says of each picture; nothing without a table. Raises InputError."""
    from xcam.errors import InputError

    if file is None:
        return []
    found = [known.get(os.path.realpath(path), Told()) for path in pictures]
    if not any(one.boxes or one.mask for one in found):
        raise InputError(
            f"{file} says nothing of {pictures[0]}{' and the others' if len(pictures) > 1 else ''}; its paths start at "
            "its own folder"
        )
    return found


def _classes(model: Any, pictures: list[str], truth: list[Told]) -> list[int | None] | None:
    """The class that the table tells for each picture. Raises InputError."""
    from xcam.errors import InputError
    from xcam.targets.parsing import class_index

    def index(path: str, told: str | None) -> int | None:
        if told is None:
            return None
        try:
            if (found := class_index(told, model.labels)) < 0:
                raise InputError(f"no class {told}; give an index from 0 on, or an empty cell for the top class")
        except InputError as error:
            raise InputError(f"the class of {path}: {error}") from error
        return found

    if not any(one.label for one in truth):
        return None
    return [index(path, one.label) for path, one in zip(pictures, truth, strict=True)]


def _methods(names: tuple[str, ...], model: Any) -> list[str]:
    import xcam
    from xcam.explanation.context import lacking
    from xcam.methods.registry import get

    for name in {*names} - {"all"}:
        get(name)
    if "all" not in names:
        return list(dict.fromkeys(names))
    return [name for name, method in xcam.list_methods().items() if not lacking(model, method)]


def _measures(names: tuple[str, ...], model: Any, located: bool) -> list[str] | None:
    import xcam
    from xcam.evaluation.registry import get

    for name in {*names} - {"all"}:
        get(name)
    if "all" not in names:
        return list(dict.fromkeys(names)) or None
    able = {"masks": located, "shuffled": hasattr(model, "with_shuffled_weights")}
    return [name for name, m in xcam.list_measures().items() if all(able.get(need, True) for need in m.inputs)]


def say(found: Any) -> None:
    """The answer for a person: measures by methods, the best method first."""
    order = [rank.method for rank in found.ranking]
    rows = []
    for measure in found.measures:
        cells = [found.row(method, measure.name) for method in order]
        rows.append(
            [
                measure.name,
                measure.better,
                *(
                    f"{number(row, len(found.images))}{' *' if row.above and measure.ranks else ''}"
                    for row in cells
                ),
            ]
        )
    table(["measure", "better", *order], rows)
    click.echo()
    beaten = "" if "random" not in order else "; better than random by"
    for rank in found.ranking:
        floor = beaten and rank.method != "random"
        if math.isnan(rank.mean_rank):
            click.echo(f"{rank.method}: no rank, because no measure that ranks has a value")
            continue
        click.echo(
            f"{rank.method}: mean rank {rank.mean_rank:.1f} of {len(order)}"
            + (f"{beaten} {rank.above} of {rank.of} {'measure' if rank.of == 1 else 'measures'}" if floor else "")
            + (f", worse by {rank.below}" if floor and rank.below else "")
        )
    for note in found.notes:
        click.echo(f"note: {note}")


def number(row: Any, pictures: int) -> str:
    """A mean with its interval, which two pictures or more have, and on how many pictures it rests if not on all."""
    if math.isnan(row.mean):
        return "–"
    text = f"{row.mean:.3f}" + ("" if math.isnan(row.low) else f" [{row.low:.3f}, {row.high:.3f}]")
    return text if row.n == pictures else f"{text} (of {row.n})"
