"""`xcam [explain]`: pictures in, heatmaps out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xcam_cli.bar import Bar
from xcam_cli.options import heard, model_options, open_model, score_option, tell, unheard
from xcam_cli.plan import Plan, places_of, planned

if TYPE_CHECKING:
    from xcam import Explanation

_DRAWING = (
    click.option(
        "--method",
        "methods",
        multiple=True,
        metavar="NAME",
        help="See `xcam methods`. Several, or all, are drawn side by side.  [default: gradcam]",
    ),
    click.option("-O", "--option", "settings", multiple=True, metavar="NAME=VALUE", help="An option of the method."),
    score_option,
    click.option("--augment", is_flag=True, help="The mean over the picture, its mirror image, and scaled values."),
    click.option("--normalize", type=click.Choice(["max", "minmax", "none"]), default="max", show_default=True),
    click.option("--colormap", default="jet", show_default=True, metavar="NAME"),
    click.option("--alpha", type=click.FloatRange(0, 1), default=0.5, show_default=True, metavar="A"),
    click.option("--blend", type=click.Choice(["mix", "add"]), default="mix", show_default=True),
    click.option("--style", type=click.Choice(["heat", "contour", "signed"]), default="heat", show_default=True),
    click.option("--signed", is_flag=True, help="Short for --style signed: red for the class, blue against it."),
    click.option("--grid", is_flag=True, help="One picture for all classes of an image."),
    click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output."),
)


def drawing_options(command: Any) -> Any:
    """The options that say how a map is made and drawn."""
    for option in reversed(_DRAWING):
        command = option(command)
    return command


@click.command()
@model_options
@click.option(
    "-l",
    "--layer",
    "layers",
    multiple=True,
    metavar="LAYER",
    help="Default: the last with space; see `xcam layers`. Several are drawn side by side, or fused.",
)
@click.option("--fuse", type=click.Choice(["mean", "max", "product"]), help="One map of several layers.")
@click.option(
    "-t",
    "--target",
    "targets",
    multiple=True,
    metavar="CLASS",
    help="Index, name, or its beginning; top3; tiger-zebra: why this and not that; finer:tiger. Default: the top class.",
)
@drawing_options
@click.option("-o", "--output", metavar="OUT", help="A .jpg, .png or .npz file, or a folder. Default: IMAGE.cam.jpg.")
@click.option("--report", metavar="OUT.html", help="Write a page, with classes, methods and layers as tabs.")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE…")
def explain(
    backend: str | None,
    model: str | None,
    layers: tuple[str, ...],
    targets: tuple[str, ...],
    fuse: str | None,
    output: str | None,
    report: str | None,
    images: tuple[str, ...],
    **options: Any,
) -> None:
    """Draw where the model looked, on each IMAGE.

    \b
    xcam --backend keras image.jpg
    xcam -m model.keras -l conv5 -t tiger -o tiger.png image.jpg
    xcam -m model.onnx -t top3 --method gradcam --method layercam image.jpg
    """
    plan, opening = planned(layers, targets, fuse, options)
    places = places_of(images, plan, output)
    page = _page(report, images)
    opened = open_model(backend, model, **opening)
    found = run(opened, [Path(image) for image in images], plan, places, kept=page is not None)
    if page is not None:
        from xcam.report.rendering import write_single

        write_single(found, page)
        click.echo(f"wrote {page}", err=plan.as_json)


def _page(report: str | None, images: tuple[str, ...]) -> Path | None:
    """Where the page goes. Raises InputError."""
    from xcam.comparison.result import KEPT
    from xcam.errors import InputError
    from xcam.report.rendering import check_place

    if report is None:
        return None
    if len(images) > KEPT:
        raise InputError(f"a page holds {KEPT} pictures at most, and {len(images)} are named; make several pages")
    return check_place(report)


def run(model: Any, images: list[Path], plan: Plan, places: list[list[Path]], kept: bool = False) -> list[Any]:
    """Explain, save and tell. What was made is returned where it is to be kept, on small pictures if they are many."""
    import xcam
    from xcam import progress
    from xcam.explanation.explain import BATCH

    methods = _able(model, plan.methods)
    documents: list[dict[str, Any]] = []
    made: list[Any] = []
    told: list[str] = []
    with Bar() as bar, progress.listening(bar.told):
        for start in progress.steps(range(0, len(images), BATCH), "pictures"):  # thousands are never held at once
            part = slice(start, start + BATCH)
            try:
                with heard(told) as warned, unheard():
                    rows = _explained(model, images[part], plan, methods)
            except xcam.XcamError:
                if plan.as_json and documents:  # what was written is told, though the rest failed
                    _emit(documents)
                raise
            bar.hide()
            tell(warned)
            told += warned
            for row, paths in zip(rows, places[part], strict=True):
                _write(row, paths, plan, model, documents)
                made += _kept(row, whole=len(images) == 1) if kept else []
    if plan.as_json:
        _emit(documents)
    return made


def _kept(row: list[Any], whole: bool) -> list[Any]:
    """What the page needs of one picture: one copy of it for all maps, and none larger than is shown."""
    image = row[0].image if whole else row[0].shrunk().image
    return [replace(e, image=image) for e in row]


def _explained(model: Any, images: list[Path], plan: Plan, methods: list[str]) -> list[list[Any]]:
    """For each picture what was asked for: methods, in each the layers, in each the classes."""
    import xcam

    rows: list[list[Any]] = [[] for _ in images]
    fuse: Any = plan.fuse
    for method in methods:
        for layer in plan.places:
            wanted = [plan.wanted for _ in images]
            found = xcam.explain(model, images, layer=layer, target=wanted, method=method, fuse=fuse, **plan.how)
            for row, made in zip(rows, found, strict=True):
                for e in made if isinstance(made, list) else [made]:
                    row.append(replace(e, image=row[0].image) if row else e)  # one copy of a picture, not one a map
    return rows


def _able(model: Any, names: tuple[str, ...]) -> list[str]:
    """The methods that were named; for `all`, those that the backend can do at no more than Score-CAM's cost."""
    import xcam
    from xcam.explanation.context import lacking

    if "all" not in names:
        return list(names)
    fit = [method for method in xcam.list_methods().values() if not lacking(model, method)]
    left = [method.name for method in fit if "n·C" in method.passes]
    if left:
        click.echo(f"xcam: left out for their cost: {', '.join(left)}; name them to have them", err=True)
    return [method.name for method in fit if method.name not in left]


def _write(row: list[Any], paths: list[Path], plan: Plan, model: Any, documents: list[dict[str, Any]]) -> None:
    """Save what was made of one picture, and tell of it."""
    import xcam
    from xcam.images import writing

    if plan.together:
        writing.write(paths[0], xcam.grid(row, **plan.drawing))
        paths = paths * len(row)
    else:
        for explanation, path in zip(row, paths, strict=True):
            explanation.save(path, **plan.drawing)
    if plan.as_json:
        documents.extend(_document(e, path, model) for e, path in zip(row, paths, strict=True))
    elif plan.together:
        click.echo(f"{row[0].path}")
        for e in row:
            chance = f"{e.score:7.4g}" if e.index is None else f"{float(e.scores[e.index]):7.2%}"
            click.echo(f"  {chance}  {e.label}: {e.method} of {e.model} ({e.backend}) at {e.layer}")
        for note in row[0].notes:
            click.echo(f"  note: {note}")
        click.echo(f"  wrote {paths[0]}")
    else:
        for explanation, path in zip(row, paths, strict=True):
            _say(explanation, path, model)


def _emit(documents: list[dict[str, Any]]) -> None:
    click.echo(json.dumps(documents[0] if len(documents) == 1 else documents, indent=2, ensure_ascii=False))


def _best(explanation: Explanation, model: Any) -> list[tuple[str, int, float]]:
    from xcam.explanation.explain import label

    return [(label(model, i), i, float(explanation.scores[i])) for i in explanation.top(3)]


def _say(explanation: Explanation, path: Path, model: Any) -> None:
    """A few lines for a person."""
    click.echo(f"{explanation.path}")
    for name, i, score in _best(explanation, model):
        mark = "→" if i == explanation.index else " "
        click.echo(f"  {mark} {score:7.2%}  {name} ({i})")
    if explanation.index is None:
        click.echo(f"  → {explanation.score:7.4g}  {explanation.label}")
    elif explanation.index not in explanation.top(3):
        click.echo(
            f"  → {float(explanation.scores[explanation.index]):7.2%}  {explanation.label} ({explanation.index})"
        )
    for note in explanation.notes:
        click.echo(f"  note: {note}")
    click.echo(f"  {explanation.method} of {explanation.model} ({explanation.backend}) at {explanation.layer}")
    click.echo(f"  wrote {path}")


def _document(explanation: Explanation, path: Path, model: Any) -> dict[str, Any]:
    """The same for a program."""
    return {
        "image": str(explanation.path),
        "output": str(path),
        "class": explanation.label,
        "index": explanation.index,
        "score": explanation.score,
        "probability": None if explanation.index is None else float(explanation.scores[explanation.index]),
        "top": [{"class": name, "index": i, "probability": p} for name, i, p in _best(explanation, model)],
        "layer": explanation.layer,
        "method": explanation.method,
        "model": explanation.model,
        "backend": explanation.backend,
        "heatmap_max": float(replace(explanation).heatmap.max()),  # of a copy: large maps are not all kept
        "notes": list(explanation.notes),
    }
