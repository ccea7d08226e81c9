"""`xcam export`: a model that explains itself."""

from __future__ import annotations

from typing import Any

import click

from xcam_cli.options import model_options, open_model, unheard


@click.command()
@model_options
@click.option("-l", "--layer", metavar="LAYER", help="Default: the last with space; see `xcam layers`.")
@click.option(
    "--heatmap",
    metavar="METHOD",
    help="Give the finished heatmap too: gradcam, gradcam++, layercam, hirescam or xgradcam.",
)
@click.option("-o", "--output", required=True, metavar="OUT.onnx", help="The file to write.")
def export(backend: str | None, model: str | None, layer: str | None, heatmap: str | None, **options: Any) -> None:
    """Write MODEL as an ONNX file that gives, besides its own outputs, where it looked.

    \b
    xcam export -m model.onnx -l layer4 --heatmap gradcam -o explained.onnx
    xcam export -m model.keras -o explained.onnx

    Any ONNX Runtime, in any language, runs it: xcam/activations, xcam/gradients and xcam/heatmap are outputs,
    xcam/class_index is an input that may be left out (−1: the top class).
    """
    import xcam
    from xcam.models.export import check_path

    place = check_path(options.pop("output"), model)
    opened = open_model(backend, model, **options)
    with unheard():
        xcam.export(opened, place, layer=layer, heatmap=heatmap)
    click.echo(f"wrote {place}")
