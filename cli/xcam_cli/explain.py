"""`xcam [explain]`: heatmaps of images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xcam_cli.images import without_overlays
from xcam_cli.options import (
    collected_warnings,
    model_options,
    open_model,
    print_warnings,
    score_option,
    stdout_to_stderr,
)
from xcam_cli.output import as_json, print_json
from xcam_cli.plan import Plan, make_plan, output_paths, split_output
from xcam_cli.progress_bar import ProgressBar
from xcam_cli.video import clip_paths, split_clips, split_options, video_options
from xcam_cli.video import run as run_clips

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
    click.option("--augment", is_flag=True, help="The mean over the image, its mirror image, and scaled values."),
    click.option("--normalize", type=click.Choice(["max", "minmax", "none"]), default="max", show_default=True),
    click.option("--colormap", default="jet", show_default=True, metavar="NAME"),
    click.option("--alpha", type=click.FloatRange(0, 1), default=0.5, show_default=True, metavar="A"),
    click.option("--blend", type=click.Choice(["mix", "add"]), default="mix", show_default=True),
    click.option("--style", type=click.Choice(["heat", "contour", "signed"]), default="heat", show_default=True),
    click.option("--signed", is_flag=True, help="Short for --style signed: red for the class, blue against it."),
    click.option("--grid", is_flag=True, help="Draw all classes of an image in one file."),
    as_json,
)


def drawing_options(command: Any) -> Any:
    """Add the options that control how a map is computed and drawn."""
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
    help="Default: the last with spatial axes; see `xcam layers`. Several are drawn side by side, or fused.",
)
@click.option("--fuse", type=click.Choice(["mean", "max", "product"]), help="Fuse the maps of several layers.")
@click.option(
    "-t",
    "--target",
    "targets",
    multiple=True,
    metavar="CLASS",
    help="Index, label, or its beginning; top3; tiger-zebra: why this and not that; finer:tiger; of a detector or of "
    "segmentation: person@x0,y0,x1,y1, box:7, dog@x,y, dog@mask.png. Default: the top class, the best box.",
)
@drawing_options
@video_options
@click.option(
    "-o",
    "--output",
    "outs",
    multiple=True,
    metavar="OUT",
    help="A .jpg, .png, .npz or .npy file, a video (.mp4, .gif, …), or a folder. Default: IMAGE.cam.jpg, VIDEO.cam.mp4. "
    "Or an output, as --model-output.",
)
@click.option("--report", metavar="OUT.html", help="Write an HTML page, with classes, methods and layers as tabs.")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE…")
def explain(
    backend: str | None,
    model: str | None,
    layers: tuple[str, ...],
    targets: tuple[str, ...],
    fuse: str | None,
    outs: tuple[str, ...],
    report: str | None,
    images: tuple[str, ...],
    **options: Any,
) -> None:
    """Draw where the model looked, on each IMAGE: an image file, a video, or an array that the model takes (.npy, .npz).

    \b
    xcam --backend keras image.jpg
    xcam -m model.keras -l conv5 -t tiger -o tiger.png image.jpg
    xcam -m model.onnx clip.mp4 -o clip.cam.mp4 --smooth 0.5
    xcam -m model.onnx -t top3 --method gradcam --method layercam image.jpg
    """
    video_settings = split_options(options)
    plan, load_options = make_plan(layers, targets, fuse, options)
    file, name = split_output(outs, load_options["output"])
    stills, clips = split_clips(tuple(without_overlays(list(images))), video_settings, report)
    videos = clip_paths(clips, stills, plan, file)
    paths = output_paths(tuple(stills), plan, file) if stills else []
    page = _page_path(report, images)
    opened = open_model(backend, model, **load_options)
    if name is not None:
        opened = _with_output(opened, name)
    documents: list[dict[str, Any]] = []
    try:
        explanations = run(opened, [Path(image) for image in stills], plan, paths, documents, keep=page is not None)
        run_clips(opened, clips, plan, videos, video_settings, documents)
    finally:
        if plan.as_json and documents:  # the files that were written are reported, though the rest may have failed
            print_json(documents[0] if len(documents) == 1 else documents)
    if page is not None:
        from xcam.explanation import page as report_page

        report_page.write(explanations, page)
        click.echo(f"wrote {page}", err=plan.as_json)


def _with_output(model: Any, name: str) -> Any:
    """Return the model with the output that `-o` names. Raises InputError where it is neither an output nor a file."""
    from xcam.errors import InputError
    from xcam.models.load import with_output

    try:
        with stdout_to_stderr():
            return with_output(model, name)
    except InputError as error:
        raise InputError(
            f"cannot write {name}: unknown format ''; use .jpg, .png, .npz or .npy, or a folder that exists (as the name of an "
            f"output: {error})"
        ) from error


def _page_path(report: str | None, images: tuple[str, ...]) -> Path | None:
    """Return the checked path of the HTML page. Raises InputError."""
    from xcam.comparison.data import KEPT
    from xcam.errors import InputError
    from xcam.report.rendering import check_path

    if report is None:
        return None
    if len(images) > KEPT:
        raise InputError(f"a page holds at most {KEPT} images, not {len(images)}; write several pages")
    return check_path(report)


def run(
    model: Any,
    images: list[Path],
    plan: Plan,
    paths: list[list[Path]],
    documents: list[dict[str, Any]],
    keep: bool = False,
) -> list[Any]:
    """Explain, save and print; the summaries for `--json` are added to `documents`.

    Returns:
        The explanations where `keep` is true, on shrunk images if there are several; else an empty list.
    """
    from xcam import progress
    from xcam.explanation.settings import BATCH

    methods = _supported_methods(model, plan.methods) if images else []
    kept: list[Any] = []
    printed: list[str] = []
    with ProgressBar() as bar, progress.listening(bar.update):
        for start in progress.steps(range(0, len(images), BATCH), "images"):  # thousands are never in memory at once
            part = slice(start, start + BATCH)
            with collected_warnings(printed) as texts, stdout_to_stderr():
                rows = _explain_all(model, images[part], plan, methods)
            bar.hide()
            print_warnings(texts)
            printed += texts
            for row, row_paths in zip(rows, paths[part], strict=True):
                _write(row, row_paths, plan, model, documents)
                kept += _shrunk(row, whole=len(images) == 1) if keep else []
    return kept


def _shrunk(row: list[Any], whole: bool) -> list[Any]:
    """Return the explanations of one image with one copy of it, at the size at which the page shows it."""
    image = row[0].image if whole else row[0].shrunk().image
    return [e.with_image(image) if e.values is None else replace(e, image=image) for e in row]


def _explain_all(model: Any, images: list[Path], plan: Plan, methods: list[str]) -> list[list[Any]]:
    """Return the explanations of each image, ordered by method, layer and class."""
    import xcam

    rows: list[list[Any]] = [[] for _ in images]
    options: dict[str, Any] = plan.options | {"fuse": plan.fuse}
    for method in methods:
        for layer in plan.layer_groups:
            targets = [plan.target_list for _ in images]
            results = xcam.explain(model, images, layer=layer, target=targets, method=method, **options)
            for row, result in zip(rows, results, strict=True):
                for e in result if isinstance(result, list) else [result]:
                    # one copy of an image, not one per map
                    row.append(replace(e, image=row[0].image, values=row[0].values) if row else e)
    return rows


def _supported_methods(model: Any, names: tuple[str, ...]) -> list[str]:
    """Return the named methods; for `all`, those that the backend supports at no more than Score-CAM's cost."""
    import xcam
    from xcam.explanation.context import lacking

    if "all" not in names:
        return list(names)
    supported = [method for method in xcam.list_methods().values() if not lacking(model, method)]
    costly = [method.name for method in supported if "n·C" in method.passes]
    if costly:
        click.echo(
            f"xcam: left out for their cost: {', '.join(costly)}; name them with --method to run them", err=True
        )
    return [method.name for method in supported if method.name not in costly]


def _write(row: list[Any], paths: list[Path], plan: Plan, model: Any, documents: list[dict[str, Any]]) -> None:
    """Save the explanations of one image and print a summary."""
    import xcam
    from xcam.images import writing

    if plan.as_grid:
        writing.write(paths[0], xcam.grid(row, **plan.drawing))
        paths = paths * len(row)
    else:
        for explanation, path in zip(row, paths, strict=True):
            explanation.save(path, **plan.drawing)
    if plan.as_json:
        documents.extend(_document(e, path, model) for e, path in zip(row, paths, strict=True))
    elif plan.as_grid:
        click.echo(f"{row[0].path}")
        for e in row:
            score = f"{e.score:7.4g}" if e.index is None else f"{float(e.scores[e.index]):7.2%}"
            click.echo(f"  {score}  {e.label}: {e.method} of {e.model} ({e.backend}) at {e.layer}")
        _print_fit(row[0], model)
        for note in row[0].notes:
            click.echo(f"  note: {note}")
        click.echo(f"  wrote {paths[0]}")
    else:
        for explanation, path in zip(row, paths, strict=True):
            _print(explanation, path, model)


def _top_classes(explanation: Explanation) -> list[tuple[str, int, float]]:
    """Return label, index and probability of the three best classes; none for an embedding."""
    from xcam.explanation.result import class_label
    from xcam.targets import Similarity

    if isinstance(explanation.target, Similarity):
        return []
    return [(class_label(explanation.labels, i), i, float(explanation.scores[i])) for i in explanation.top(3)]


def _located(explanation: Explanation) -> str:
    """Return where the explained box or region is; empty for a class of the whole image."""
    box = next((box for box in explanation.boxes if box.explained), None)
    if box is not None:
        corners = ",".join(f"{v:.0f}" for v in box.box)
        return f"box {box.number} at {corners} (x0,y0,x1,y1)"
    mask = explanation.mask
    return "" if mask is None else f"region of {float(mask.mean()):.1%} of the image"


def _print(explanation: Explanation, path: Path, model: Any) -> None:
    """Print the summary of one explanation."""
    click.echo(f"{explanation.path}")
    for name, i, score in _top_classes(explanation):
        mark = "→" if i == explanation.index else " "
        click.echo(f"  {mark} {score:7.2%}  {name} ({i})")
    if explanation.index is None:
        click.echo(f"  → {explanation.score:7.4g}  {explanation.label}")
    elif explanation.index not in explanation.top(3):
        score = float(explanation.scores[explanation.index])
        click.echo(f"  → {score:7.2%}  {explanation.label} ({explanation.index})")
    _print_fit(explanation, model)
    if location := _located(explanation):
        click.echo(f"  {location}")
    if explanation.task and not explanation.task.startswith(("classification", "unknown")):
        click.echo(f"  task: {explanation.task}")
    for note in explanation.notes:
        click.echo(f"  note: {note}")
    click.echo(f"  {explanation.method} of {explanation.model} ({explanation.backend}) at {explanation.layer}")
    click.echo(f"  wrote {path}")


def _print_fit(explanation: Explanation, model: Any) -> None:
    """Print how the image fits the input, where it is not just stretched, and the part that the model saw."""
    frame = explanation.frame
    if frame is None or frame.is_whole:
        return
    x0, y0, x1, y1 = _seen(explanation)
    height, width = frame.image
    part = (
        "" if (x0, y0, x1, y1) == (0, 0, width, height) else f"; seen: x {x0}–{x1}, y {y0}–{y1} of {width}×{height}"
    )
    click.echo(f"  fit: {model.input.fit}{part}")


def _seen(explanation: Explanation) -> list[int]:
    """Return the part of the image that the model saw: x0, y0, x1, y1."""
    if explanation.frame is None:
        return [0, 0, explanation.image.shape[1], explanation.image.shape[0]]
    rows, columns = explanation.frame.seen
    return [columns.start, rows.start, columns.stop, rows.stop]


def _document(explanation: Explanation, path: Path, model: Any) -> dict[str, Any]:
    """Return the summary of one explanation for `--json`."""
    return {
        "image": str(explanation.path),
        "output": str(path),
        "class": explanation.label,
        "index": explanation.index,
        "score": explanation.score,
        "probability": None if explanation.index is None else float(explanation.scores[explanation.index]),
        "top": [{"class": name, "index": i, "probability": p} for name, i, p in _top_classes(explanation)],
        "task": explanation.task or None,
        "boxes": [
            {
                "class": box.label,
                "index": box.index,
                "score": box.score,
                "box": [round(v, 2) for v in box.box],
                "explained": box.explained,
                "number": box.number,
            }
            for box in explanation.boxes
        ],
        "mask": None if explanation.mask is None else float(explanation.mask.mean()),
        "model_output": explanation.output,
        "layer": explanation.layer,
        "method": explanation.method,
        "model": explanation.model,
        "backend": explanation.backend,
        "fit": None if model.input.fit is None or explanation.values is not None else str(model.input.fit),
        "seen": None if explanation.values is not None else _seen(explanation),
        "heatmap_shape": list(explanation.size),
        "cam_shape": list(explanation.cam.shape),
        "heatmap_max": float(replace(explanation).heatmap.max()),  # of a copy: `heatmap` caches its array
        "notes": list(explanation.notes),
    }
