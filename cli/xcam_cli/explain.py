"""`xcam [explain]` and `xcam demo`: pictures in, heatmaps out."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xcam_cli.options import model_options, open_model, unheard

if TYPE_CHECKING:
    from xcam import Explanation

_DRAWING = (
    click.option("--method", default="gradcam", show_default=True, metavar="NAME", help="See `xcam methods`."),
    click.option("--score", type=click.Choice(["logit", "probability"]), default="logit", show_default=True),
    click.option("--normalize", type=click.Choice(["max", "minmax", "none"]), default="max", show_default=True),
    click.option("--colormap", default="jet", show_default=True, metavar="NAME"),
    click.option("--alpha", type=click.FloatRange(0, 1), default=0.5, show_default=True, metavar="A"),
    click.option("--blend", type=click.Choice(["mix", "add"]), default="mix", show_default=True),
    click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output."),
)


def drawing_options(command: Any) -> Any:
    """The options that say how a map is made and drawn."""
    for option in reversed(_DRAWING):
        command = option(command)
    return command


@click.command()
@model_options
@click.option("-l", "--layer", metavar="LAYER", help="Default: the last with space; see `xcam layers`.")
@click.option(
    "-t", "--target", "targets", multiple=True, metavar="CLASS", help="Index or name. Default: the top class."
)
@drawing_options
@click.option("-o", "--output", metavar="OUT", help="A .jpg, .png or .npz file, or a folder. Default: IMAGE.cam.jpg.")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE…")
def explain(
    backend: str | None,
    model: str | None,
    layer: str | None,
    targets: tuple[str, ...],
    output: str | None,
    images: tuple[str, ...],
    **options: Any,
) -> None:
    """Draw where the model looked, on each IMAGE.

    \b
    xcam --backend keras image.jpg
    xcam -m model.keras -l conv5 -t tiger -o tiger.png image.jpg
    """
    drawing, how, as_json, opening = _sorted(options)
    places = _places(images, targets, output)
    opened = open_model(backend, model, **opening)
    _run(opened, [Path(image) for image in images], layer, targets, places, drawing, how, as_json)


@click.command()
@click.option("-b", "--backend", metavar="NAME", help="Default: onnx, or the first that is installed.")
@click.option("-t", "--target", "targets", multiple=True, metavar="CLASS", help="Default: the top class.")
@drawing_options
@click.option("-o", "--output", default="xcam-demo.png", show_default=True, metavar="OUT")
def demo(backend: str | None, targets: tuple[str, ...], output: str, **options: Any) -> None:
    """Explain a generated picture with the small network that comes with xcam."""
    from xcam.demo import pictures
    from xcam.errors import BackendError
    from xcam.plugins import registry

    plugins = registry().plugins
    if backend is None:
        there = [name for name, p in plugins.items() if p.state == "available"]
        backend = min(there, key=lambda name: name != "onnx", default=None)  # the lightest, where it is there
        if backend is None:
            raise BackendError(
                "no backend is installed: " + "; or ".join(p.remedy for p in plugins.values() if p.state == "missing")
            )
    drawing, how, as_json, _ = _sorted(options)
    picture = pictures()[0]
    places = _places((str(picture),), targets, output)
    _run(open_model(backend, "demo"), [picture], None, targets, places, drawing, how, as_json)


def _sorted(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], bool, dict[str, Any]]:
    """Drawing options, options of `xcam.explain`, --json, and those of `xcam.load`."""
    drawing = {name: options.pop(name) for name in ("colormap", "alpha", "blend")}
    how = {name: options.pop(name) for name in ("method", "score", "normalize")}
    return drawing, how, options.pop("as_json"), options


def _places(images: tuple[str, ...], targets: tuple[str, ...], output: str | None) -> list[list[Path]]:
    """Where each picture's maps go, one path for each target. Checked before the work. Raises InputError."""
    from xcam.errors import InputError
    from xcam.pictures import WRITABLE, check_file

    for image in images:
        check_file(Path(image))
    names = [_word(target) for target in targets] if len(targets) > 1 else [""]
    folder = Path(output) if output and (os.path.isdir(output) or output.endswith("/")) else None
    file = Path(output) if output and folder is None else None
    if file and len(images) > 1:
        raise InputError(f"{len(images)} pictures cannot all go to {file}; give -o a folder that exists")
    if file and file.suffix.lower() not in (*WRITABLE, ".npz"):
        raise InputError(f"cannot write {file}: its format is not known; use .jpg, .png or .npz")
    places = []
    for image in images:
        base = file or (folder or Path(image).parent) / f"{Path(image).stem}.cam.jpg"
        places.append([base.with_name(f"{base.stem}.{name}{base.suffix}") if name else base for name in names])
    flat = [place for row in places for place in row]
    for place in flat:
        if not os.path.isdir(place.parent):
            raise InputError(
                f"cannot write {place}: there is no folder {place.parent}; make it first, or choose another -o"
            )
    real = [Path(os.path.realpath(place)) for place in flat]
    for place in real:
        if real.count(place) > 1:
            raise InputError(f"two maps would go to {place}; explain those pictures one by one, each with its own -o")
        if place in [Path(os.path.realpath(image)) for image in images]:
            raise InputError(f"{place} is a picture to explain, and would be overwritten; choose another -o")
    return places


def _word(target: str) -> str:
    """A target as a part of a file name."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in target)


def _run(
    model: Any,
    images: list[Path],
    layer: str | None,
    targets: tuple[str, ...],
    places: list[list[Path]],
    drawing: dict[str, Any],
    how: dict[str, Any],
    as_json: bool,
) -> None:
    import xcam
    from xcam.explaining import BATCH
    from xcam.overlay import lookup_table

    lookup_table(drawing["colormap"])  # an unknown name is found before the work
    wanted: list[Any] = [None if not targets else list(targets) for _ in images]
    documents: list[dict[str, Any]] = []
    for start in _progress(range(0, len(images), BATCH)):  # so that thousands of pictures are never held at once
        part = slice(start, start + BATCH)
        try:
            with warnings.catch_warnings(record=True) as caught, unheard():
                warnings.simplefilter("always", xcam.XcamWarning)
                found = xcam.explain(model, images[part], layer, wanted[part], **how)
        except xcam.XcamError:
            if as_json and documents:  # what was written is told, though the rest failed
                _emit(documents)
            raise
        for message in dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, xcam.XcamWarning)):
            click.echo(f"xcam: warning: {' '.join(message.split())}", err=True)
        for row, paths in zip(found, places[part], strict=True):
            for explanation, path in zip(row if isinstance(row, list) else [row], paths, strict=True):
                explanation.save(path, **drawing)
                if as_json:
                    documents.append(_document(explanation, path, model))
                else:
                    _say(explanation, path, model)
    if as_json:
        _emit(documents)


def _emit(documents: list[dict[str, Any]]) -> None:
    click.echo(json.dumps(documents[0] if len(documents) == 1 else documents, indent=2, ensure_ascii=False))


def _progress(starts: range) -> Iterable[int]:
    """The batches, with a bar on standard error where there are several and somebody watches."""
    import sys

    if len(starts) < 2 or not sys.stderr.isatty():
        return starts
    from rich.console import Console
    from rich.progress import track

    return track(starts, description="explaining", console=Console(stderr=True), transient=True)


def _best(explanation: Explanation, model: Any) -> list[tuple[str, int, float]]:
    from xcam.explaining import label

    return [(label(model, i), i, float(explanation.scores[i])) for i in explanation.top(3)]


def _say(explanation: Explanation, path: Path, model: Any) -> None:
    """A few lines for a person."""
    click.echo(f"{explanation.path}")
    for name, i, score in _best(explanation, model):
        mark = "→" if i == explanation.index else " "
        click.echo(f"  {mark} {score:7.2%}  {name} ({i})")
    if explanation.index is not None and explanation.index not in explanation.top(3):
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
        "heatmap_max": float(explanation.heatmap.max()),
        "notes": list(explanation.notes),
    }
