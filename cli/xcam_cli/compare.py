"""`xcam compare`: does a converted model look at the same place?"""

from __future__ import annotations

import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

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

ORDER = ("identical", "equivalent", "different")
OWN_OPTIONS = ("models", "images", "layer", "target", "method", "score", "align", "require", "report", "preprocess")
SHOWN = 10
"""Rows that are printed where there are several images."""


@click.command()
@click.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    metavar="[BACKEND:]MODEL[@LAYER]",
    help="Two or more: onnx:vgg.onnx@features.29, vgg.keras@block5_conv3. The first is the reference.",
)
@click.option("--config", metavar="FILE.toml", help="Read the models, and these options, from a file.")
@click.option("-l", "--layer", metavar="LAYER", help="For models without @LAYER. Default: aligned.")
@click.option("-t", "--target", metavar="CLASS", help="Default: the first model's top class.")
@click.option("--method", default="gradcam", show_default=True, metavar="NAME", help="See `xcam methods`.")
@score_option
@click.option("--align/--no-align", default=None, help="Find the layers that correspond. Default: when needed.")
@click.option("--require", type=click.Choice(ORDER[:2]), help="Exit with status 1 when the verdict is worse.")
@click.option("--report", metavar="OUT.html", help="Write an HTML page.")
@shared_options
@as_json
@click.argument("images", nargs=-1, metavar="IMAGE…")
def compare(models: tuple[str, ...], config: str | None, images: tuple[str, ...], **options: Any) -> None:
    """Explain each IMAGE (a file, a folder, a pattern) with several models, and measure how far they agree.

    \b
    xcam compare -m vgg.keras -m vgg.onnx image.jpg
    xcam compare -m torch:demo -m onnx:demo --require identical images/

    Exit status: 0; 1 when the verdict is worse than --require; 2 when an image failed, or for bad usage.
    """
    import xcam
    from xcam import progress
    from xcam.report.rendering import check_path

    configured = _read_config(config) if config else {}
    specs = [ModelSpec.parse(text) for text in models] + [ModelSpec(**spec) for spec in configured.pop("models", [])]
    paths = expand_images([*images, *map(str, configured.pop("images", []))])
    source = click.get_current_context().get_parameter_source
    options |= {name: value for name, value in configured.items() if source(name) is not ParameterSource.COMMANDLINE}
    layer, require, as_json = (options.pop(name) for name in ("layer", "require", "as_json"))
    report = options.pop("report")
    page = check_path(report) if report else None
    load_options = {key: options.pop(key) for key in SHARED_OPTIONS}
    with ProgressBar() as bar, progress.listening(bar.update), collected_warnings() as texts:
        opened = open_all(specs, **load_options)
        layers = [spec.layer or layer for spec in specs]
        with stdout_to_stderr():
            comparison = xcam.compare(opened, paths, layer=layers, **options)
            blame = _blame(comparison, opened, paths, options) if page is not None else None
    print_warnings(texts)
    if page is not None:
        comparison.save(page, blame)
    if as_json:
        print_json(comparison.to_dict())
    else:
        print_comparison(comparison, page)
    for path, reason in comparison.failed:
        click.echo(f"xcam: {reason if path in reason else f'{path}: {reason}'}", err=True)
    if comparison.failed:
        sys.exit(2)
    if require is not None and ORDER.index(comparison.verdict) > ORDER.index(require):
        sys.exit(1)


def _blame(comparison: Any, models: list[Any], paths: list[str], options: dict[str, Any]) -> Any:
    """Return the contributions to the difference of the worst pair with the first model, on the worst image.

    None where the verdict is `identical`, or the models cannot be cut.
    """
    import xcam
    from xcam.errors import XcamError

    if not comparison.images or comparison.verdict == "identical":
        return None
    k = max(range(1, len(models)), key=lambda k: ORDER.index(comparison.of((0, k))))
    worst = max(comparison.images, key=lambda image: image.badness)
    chosen = {name: options[name] for name in ("target", "method", "score", "preprocess") if name in options}
    layers = [comparison.layers[0], comparison.layers[k]]
    try:
        return xcam.blame([models[0], models[k]], [str(worst.path)], layer=layers, causes=False, **chosen)
    except XcamError as error:
        click.echo(f"note: the report has no contributions: {error}", err=True)
        return None


def _read_config(path: str) -> dict[str, Any]:
    """Read a TOML file: options, and [[models]] with the fields of a ModelSpec. Raises InputError."""
    from xcam.errors import InputError

    try:
        config = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}; give a TOML file") from error
    known = {*OWN_OPTIONS, *SHARED_OPTIONS, "inputs"} - {"other_inputs"}
    parts = {part.name for part in fields(ModelSpec)}
    for key in config:
        if key not in known:
            raise InputError(f"{path} has an unknown entry {key!r}; use {', '.join(sorted(known))}")
    for key in ("models", "images"):
        if not isinstance(config.get(key, []), list):
            raise InputError(f"{key} in {path} is {config[key]!r}; give a list")
    if not isinstance(config.get("inputs", {}), dict):
        raise InputError(f"inputs in {path} is {config['inputs']!r}; give a table from names to values")
    context = click.get_current_context()
    for option in context.command.params:
        value = config.get(str(option.name))
        if value is not None and option.name not in ("models", "images"):
            text = "x".join(map(str, value)) if isinstance(value, list) else value
            config[str(option.name)] = option.type.convert(text, option, context)  # as on the command line
    if "inputs" in config:
        config["other_inputs"] = config.pop("inputs")
    for model in config.get("models", []):
        if not isinstance(model, dict) or "model" not in model or not set(model) <= parts:
            others = ", ".join(sorted(parts - {"model"}))
            raise InputError(f"a model in {path} is {model!r}; give model, and optionally {others}")
    return config


def print_comparison(comparison: Any, page: Path | None) -> None:
    """Print predictions, similarities, findings, the layer of a divergence, and verdicts."""
    first = comparison.images[0]
    if len(comparison.images) == 1:
        print_table(
            ["model", "layer", "class", "score"],
            [
                [name, layer, f"{e.label} ({e.index})" if e.index is not None else e.label, f"{e.score:.4g}"]
                for name, layer, e in zip(comparison.names, comparison.layers, first.explanations, strict=True)
            ],
        )
        click.echo()
    rows = comparison.table if len(comparison.images) == 1 else comparison.table[:SHOWN]
    print_table(
        ["image", "first", "second", "max |Δ|", "Pearson", "Spearman", "SSIM", "overlap", "peaks apart", "verdict"],
        [
            [
                Path(row["image"]).name or "–",
                row["first"],
                row["second"],
                f"{row['largest']:.1e}",
                *(f"{row[name]:.4f}".replace("nan", "–") for name in ("pearson", "spearman", "ssim")),
                *(f"{row[name]:.2f}".replace("nan", "–") for name in ("overlap", "distance")),
                row["verdict"],
            ]
            for row in rows
        ],
    )
    if len(comparison.table) > len(rows):
        click.echo(f"… and {len(comparison.table) - len(rows)} more; --json and --report show all")
    click.echo()
    for finding in comparison.findings:
        click.echo(f"note: {finding}")
    for d in comparison.divergences:
        a, b = (comparison.names[k] for k in d.pair)
        if d.layer is not None:
            step = d.steps[d.index]
            if d.tolerance is None or step.added is None:
                click.echo(f"{b} begins to differ from {a} at {d.layer} ({step.first} there): error {step.error:.1e}")
            else:
                click.echo(
                    f"{b} differs from {a} by more than its precision explains at {d.layer} ({step.first} there): own "
                    f"error {step.added:.1e}, expected {step.expected:.1e}"
                )
            if d.cause is None:
                click.echo("  cause: none of the known ones fits")
            else:
                click.echo(f"  cause: {d.cause.text} ({d.cause.evidence})")
                click.echo(f"  remedy: {d.cause.remedy}")
        elif d.cause is not None:
            click.echo(f"{b} differs from {a} {d.cause.text}")
        elif d.steps:
            largest = max(step.error for step in d.steps)
            click.echo(f"{b} agrees with {a} along {len(d.steps)} layers; largest error {largest:.1e}")
        for note in d.notes:
            click.echo(f"  note: {note}")
    for a, b in comparison.pairs:
        click.echo(f"{comparison.names[a]} and {comparison.names[b]}: {comparison.of((a, b))}")
    if page is not None:
        click.echo(f"wrote {page}")
