"""`xcam compare`: does a converted model look at the same place?"""

from __future__ import annotations

import os
import sys
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from xcam_cli.bar import Bar
from xcam_cli.lists import table
from xcam_cli.options import Size, heard, open_model, score_option, tell, unheard
from xcam_cli.pictures import expanded

ORDER = ("identical", "equivalent", "different")


@click.command()
@click.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    metavar="[BACKEND:]MODEL[@LAYER]",
    help="Two or more: onnx:vgg.onnx@features.29, vgg.keras@block5_conv3. The first is what the others are held to.",
)
@click.option("--config", metavar="FILE.toml", help="The models, and these options, in a file.")
@click.option("-l", "--layer", metavar="LAYER", help="Of every model that names none. Default: found by aligning.")
@click.option("-t", "--target", metavar="CLASS", help="Default: the first model's top class.")
@click.option("--method", default="gradcam", show_default=True, metavar="NAME", help="See `xcam methods`.")
@score_option
@click.option("--align/--no-align", default=None, help="Find which layer is which. Default: when needed.")
@click.option("--require", type=click.Choice(ORDER[:2]), help="Exit with status 1 when the verdict is worse.")
@click.option("--report", metavar="OUT.html", help="Write a page for a person.")
@click.option(
    "--preprocess", metavar="NAME", help="caffe, tf, torch, unit, raw, or MEAN/STD, for models that do not say."
)
@click.option("--size", type=Size(), help="The input's size, where models take any.")
@click.option("--labels", metavar="FILE", help="Class names, for models that bring none.")
@click.option("--device", metavar="D", help="cpu, cuda, …")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@click.argument("images", nargs=-1, metavar="IMAGE…")
def compare(models: tuple[str, ...], config: str | None, images: tuple[str, ...], **options: Any) -> None:
    """Explain each IMAGE (a picture, a folder, a pattern) with several models, and say how far they agree.

    \b
    xcam compare -m vgg.keras -m vgg.onnx photo.jpg
    xcam compare -m torch:demo -m onnx:demo --require identical pictures/

    Exit status: 0; 1 when the verdict is worse than --require; 2 when a picture failed, or for bad usage.
    """
    import xcam
    from xcam import progress
    from xcam.report.rendering import check_place

    given = _config(config) if config else {}
    specs = [Spec.read(word) for word in models] + [Spec(**told) for told in given.pop("models", [])]
    pictures = expanded([*images, *map(str, given.pop("images", []))])
    said = click.get_current_context().get_parameter_source
    options |= {name: value for name, value in given.items() if said(name) is not ParameterSource.COMMANDLINE}
    layer, require, as_json = (options.pop(name) for name in ("layer", "require", "as_json"))
    report = options.pop("report")
    place = check_place(report) if report else None
    opening = {key: options.pop(key) for key in ("size", "labels", "device")}
    with Bar() as bar, progress.listening(bar.told), heard() as warned:
        opened = [spec.open(**opening) for spec in specs]
        names = [spec.layer or layer for spec in specs]
        with unheard():
            found = xcam.compare(opened, pictures, layer=names, **options)
    tell(warned)
    if place is not None:
        found.save(place)
    if as_json:
        import json

        click.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False, default=float))
    else:
        say(found, place)
    for path, why in found.failed:
        click.echo(f"xcam: {why if path in why else f'{path}: {why}'}", err=True)
    if found.failed:
        sys.exit(2)
    if require is not None and ORDER.index(found.verdict) > ORDER.index(require):
        sys.exit(1)


@dataclass
class Spec:
    """One model on the command line, or in the file: the options that it has for itself."""

    model: str
    backend: str | None = None
    layer: str | None = None
    preprocess: str | None = None
    weights: str | None = None
    labels: str | None = None

    def open(self, labels: str | None, **options: Any) -> Any:
        """The model; `labels` are for one that brings none."""
        from xcam.models.labels import load

        opened = open_model(
            self.backend,
            self.model,
            preprocess=self.preprocess,
            weights=self.weights,
            labels=self.labels,
            **options,
        )
        if opened.labels is None:
            opened.labels = load(labels)
        return opened

    @classmethod
    def read(cls, word: str) -> Spec:
        """`onnx:vgg.onnx@features.29`: a known backend ahead of the first colon, a layer behind the last @."""
        from xcam.models.load import split_backend

        backend, word = split_backend(word)
        model, at, layer = word.rpartition("@")
        if not at or os.path.exists(word):
            model, layer = word, ""
        return cls(model, backend, layer or None)


def _config(path: str) -> dict[str, Any]:
    """A TOML file: options, and [[models]] with what a Spec has. Raises InputError."""
    from xcam.errors import InputError

    try:
        found = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}; give a TOML file") from error
    known = {"models", "images", "layer", "target", "method", "score", "align", "require", "report", "preprocess"}
    known |= {"size", "labels", "device"}
    parts = {part.name for part in fields(Spec)}
    for key in found:
        if key not in known:
            raise InputError(f"{path} has an entry {key!r}; known: {', '.join(sorted(known))}")
    for key in ("models", "images"):
        if not isinstance(found.get(key, []), list):
            raise InputError(f"{key} in {path} is {found[key]!r}; give a list")
    context = click.get_current_context()
    for option in context.command.params:
        value = found.get(str(option.name))
        if value is not None and option.name not in ("models", "images"):
            words = "x".join(map(str, value)) if isinstance(value, list) else value
            found[str(option.name)] = option.type.convert(words, option, context)  # as if it had been typed
    for model in found.get("models", []):
        if not isinstance(model, dict) or "model" not in model or not set(model) <= parts:
            raise InputError(
                f"a model in {path} is {model!r}; give model, and if need be {', '.join(sorted(parts - {'model'}))}"
            )
    return found


def say(found: Any, place: Path | None) -> None:
    """The answer for a person: predictions, measures, verdicts, the layer."""
    first = found.images[0]
    if len(found.images) == 1:
        table(
            ["model", "layer", "class", "score"],
            [
                [name, layer, f"{e.label} ({e.index})" if e.index is not None else e.label, f"{e.score:.4g}"]
                for name, layer, e in zip(found.names, found.layers, first.explanations, strict=True)
            ],
        )
        click.echo()
    shown = found.table if len(found.images) == 1 else found.table[:10]
    table(
        ["picture", "first", "second", "max |Δ|", "Pearson", "Spearman", "SSIM", "overlap", "peaks apart", "verdict"],
        [
            [
                Path(row["image"]).name or "–",
                row["first"],
                row["second"],
                f"{row['largest']:.1e}",
                f"{row['pearson']:.4f}",
                f"{row['spearman']:.4f}",
                f"{row['ssim']:.4f}",
                f"{row['overlap']:.2f}",
                f"{row['distance']:.2f}",
                row["verdict"],
            ]
            for row in shown
        ],
    )
    if len(found.table) > len(shown):
        click.echo(f"… and {len(found.table) - len(shown)} more; --json or --report has them all")
    click.echo()
    for finding in found.findings:
        click.echo(f"note: {finding}")
    for d in found.divergences:
        a, b = (found.names[k] for k in d.pair)
        if d.layer is not None:
            step = d.steps[d.culprit]
            click.echo(f"{b} begins to differ from {a} at {d.layer} ({step.first} there): error {step.error:.1e}")
            click.echo(f"  likely cause: {d.cause}" if d.cause else "  the cause is none of those that are known")
        elif d.steps:
            most = max(step.error for step in d.steps)
            click.echo(f"{b} follows {a} through {len(d.steps)} layers; largest error {most:.1e}")
    for a, b in found.pairs:
        click.echo(f"{found.names[a]} and {found.names[b]}: {found.of((a, b))}")
    if place is not None:
        click.echo(f"wrote {place}")
