"""`xcam repair`: a quantised model with the fewest parts put back into float."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from xcam_cli.compare import ORDER
from xcam_cli.images import expand_images
from xcam_cli.model_spec import ModelSpec
from xcam_cli.options import (
    Size,
    collected_warnings,
    print_warnings,
    score_option,
    stdout_to_stderr,
)
from xcam_cli.output import as_json, print_json, print_table
from xcam_cli.progress_bar import ProgressBar


@click.command()
@click.argument("reference", metavar="FLOAT.onnx")
@click.argument("quantised", metavar="INT8.onnx")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE…")
@click.option("-o", "--output", "out", required=True, metavar="MIXED.onnx", help="The file to write.")
@click.option("-f", "--force", is_flag=True, help="Overwrite the file if it exists.")
@click.option(
    "--require",
    type=click.Choice(ORDER[:2]),
    default="equivalent",
    show_default=True,
    help="The verdict of `compare` to reach.",
)
@click.option(
    "--check",
    multiple=True,
    metavar="IMAGE",
    help="A file, a folder or a pattern: images that prove the result. Default: a third of the images.",
)
@click.option("--best", is_flag=True, help="Write the file even if the verdict is not reached.")
@click.option("-l", "--layer", metavar="LAYER", help="Of the float model. Default: as for `compare`.")
@click.option("-t", "--target", metavar="CLASS", help="Default: the float model's top class.")
@click.option("--method", default="gradcam", show_default=True, metavar="NAME", help="See `xcam methods`.")
@score_option
@click.option(
    "--preprocess", metavar="NAME", help="caffe, tf, torch, unit, raw, or MEAN/STD, where the files do not state it."
)
@click.option("--size", type=Size(), help="The size of the input, for models that take any.")
@click.option("--fit", metavar="MODE", help="stretch, crop, letterbox or pad, where the files do not state it.")
@click.option("--labels", metavar="FILE", help="Class labels, for models that have none.")
@click.option("--model-output", "output", metavar="NAME", help="The output to explain, of models with several.")
@click.option("--device", metavar="D", help="cpu, cuda, …")
@as_json
def repair(
    reference: str,
    quantised: str,
    images: tuple[str, ...],
    out: str,
    force: bool,
    check: tuple[str, ...],
    best: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Put the fewest parts of INT8.onnx back into float, so that it looks at the same regions as FLOAT.onnx.

    \b
    xcam repair float.onnx int8.onnx images/ -o mixed.onnx
    xcam repair float.onnx int8.onnx a.jpg b.jpg --check others/ -o mixed.onnx

    A part is the nodes between two values that both files have. Where the range of a single value is wrong, the range
    is mended instead. The nodes in float are printed as nodes_to_exclude, for ONNX Runtime's quantiser.
    Exit status: 0; 1 when the verdict is not reached, and nothing is written without --best; 2 when an image failed, or for
    bad usage.
    """
    import xcam
    from xcam import progress
    from xcam.comparison.mending.result import check_output

    path = check_output(out, (reference, quantised), force)
    chosen = expand_images(list(images))
    others = expand_images(list(check)) if check else None
    labels = options.pop("labels")
    load_options = {name: options.pop(name) for name in ("size", "fit", "device")}
    with ProgressBar() as bar, progress.listening(bar.update), collected_warnings() as texts:
        opened = [ModelSpec.parse(text).open(labels, **load_options) for text in (reference, quantised)]
        with stdout_to_stderr():
            result = xcam.repair(opened[0], opened[1], chosen, check=others, **options)
    print_warnings(texts)
    written = result.needed and (result.reached or best)
    if written:
        result.save(path)
    if as_json:
        print_json(result.to_dict() | {"written": str(path) if written else None})
    else:
        print_repair(result, path if written else None)
    for file, reason in result.failed:
        click.echo(f"xcam: {reason if file in reason else f'{file}: {reason}'}", err=True)
    if result.failed:
        sys.exit(2)
    if not result.reached:
        sys.exit(1)


def print_repair(result: Any, path: Path | None) -> None:
    """Print verdicts, the parts and ranges, sizes and times, and the list for the quantiser."""
    if not result.needed:
        same = "does not differ" if result.before.verdict == "identical" else f"is {result.before.verdict}"
        click.echo(f"{result.names[1]} {same}: it needs no repair; nothing is written")
        return
    for r in result.ranges:
        name = r.layer or "the input"
        click.echo(f"mended the range of {name}: {r.cause.text}; now {r.low:.4g} … {r.high:.4g}")
    if result.parts:
        print_table(
            ["back in float", "nodes", "harm", "local error"],
            [[p.part.name, " ".join(p.part.kinds), f"{p.harm:.2g}", f"{p.local_error:.1e}"] for p in result.parts],
        )
        click.echo()
    rows = [("images of the choice", result.before, result.after)]
    if result.check is not None:
        rows.append(("other images", result.check_before, result.check))
    print_table(
        ["", "number", "before", "Pearson", "after", "Pearson"],
        [
            [name, str(len(b.measures)), b.verdict, f"{b.pearson:.4f}", a.verdict, f"{a.pearson:.4f}"]
            for name, b, a in rows
        ],
    )
    click.echo()
    if result.parts:
        by_error = result.largest_errors
        click.echo(
            f"{len(result.parts)} of {result.count} parts are in float"
            + (f"; {by_error} would be, taken by the largest local errors" if by_error else "")
        )
        if all(p.harm > 1 for p in result.parts):
            click.echo("each of them alone costs more than `equivalent` allows: none can stay quantised")
        click.echo(f"nodes_to_exclude = {list(result.nodes_to_exclude)}")
    else:
        click.echo(f"no part of {result.count} is in float")
    click.echo(
        f"size: {result.sizes[0] / 1e6:.1f} MB → {result.sizes[1] / 1e6:.1f} MB; time for an image: "
        f"{1e3 * result.seconds[1]:.1f} ms → {1e3 * result.seconds[2]:.1f} ms (float: {1e3 * result.seconds[0]:.1f} ms)"
    )
    if not result.reached:
        click.echo(f"the verdict {result.require!r} is not reached" + ("" if path else "; nothing is written"))
    elif not result.proven:
        click.echo("not proven on other images: give --check, or more than one image")
    if path is not None:
        click.echo(f"wrote {path}")
