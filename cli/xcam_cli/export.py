"""`xcam export`: a model that explains itself."""

from __future__ import annotations

from typing import Any

import click

from xcam_cli.options import model_options, open_model, stdout_to_stderr


@click.command()
@model_options
@click.option("-l", "--layer", metavar="LAYER", help="Default: the last with spatial axes; see `xcam layers`.")
@click.option(
    "--heatmap",
    metavar="METHOD",
    help="Add the finished heatmap: gradcam, gradcam++, layercam, hirescam or xgradcam.",
)
@click.option("-o", "--output", "out", required=True, metavar="OUT.onnx", help="The file to write.")
def export(backend: str | None, model: str | None, layer: str | None, heatmap: str | None, **options: Any) -> None:
    """Write MODEL as an ONNX file that has its own outputs and those of an explanation.

    \b
    xcam export -m model.onnx -l layer4 --heatmap gradcam -o explained.onnx
    xcam export -m model.keras -o explained.onnx

    ONNX Runtime runs it in any language: xcam/activations, xcam/gradients and xcam/heatmap are outputs,
    xcam/class_index is an optional input (−1: the top class).
    """
    import xcam
    from xcam.models.export import check_path

    path = check_path(options.pop("out"), model)
    opened = open_model(backend, model, **options)
    with stdout_to_stderr():
        xcam.export(opened, path, layer=layer, heatmap=heatmap)
    click.echo(f"wrote {path}")
