"""`xcam demo`: a generated picture, and the small network that comes with xcam, through every backend."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from xcam_cli.explain import drawing_options, run
from xcam_cli.options import open_model, unheard
from xcam_cli.plan import places_of, planned


@click.command()
@click.option("-b", "--backend", metavar="NAME", help="Default: onnx, or the first that is installed.")
@click.option("-t", "--target", "targets", multiple=True, metavar="CLASS", help="Default: the top class.")
@drawing_options
@click.option("-o", "--output", default="xcam-demo.png", show_default=True, metavar="OUT")
def demo(backend: str | None, targets: tuple[str, ...], output: str, **options: Any) -> None:
    """Explain a generated picture with the small network that comes with xcam."""
    from xcam.contract.plugins import registry
    from xcam.errors import BackendError
    from xcam.models.demo import image_paths

    plugins = registry().plugins
    names = [name for name, p in plugins.items() if p.state == "available"] if backend is None else [backend]
    if not names:
        raise BackendError(
            "no backend is installed: " + "; or ".join(p.remedy for p in plugins.values() if p.state == "missing")
        )
    rest = _opened(sorted(names, key=lambda name: name != "onnx"))  # the lightest first, where it is there
    plan, _ = planned((), targets, None, options)
    picture = image_paths()[0]
    places = places_of((str(picture),), plan, output)
    first = next(rest)
    run(first, [picture], plan, places)
    if backend is None and not plan.as_json:
        models = [first, *rest]
        if len(models) > 1:
            _all_backends(models, picture, Path(output).with_suffix(".html"))


def _opened(names: list[str]) -> Iterator[Any]:
    """The demo network in each backend that has it; not every plugin has, and one may be broken. The last error, where
    none does."""
    from xcam.errors import XcamError

    found = 0
    for name in names:
        try:
            model = open_model(name, "demo")
        except XcamError as error:
            if name == names[-1] and not found:
                raise
            click.echo(f"xcam: {name} is left out: {error}", err=True)
        else:
            found += 1
            yield model


def _all_backends(models: list[Any], picture: Path, page: Path) -> None:
    """The same picture through every backend that is installed: do they agree?"""
    import xcam
    from xcam.errors import BackendError
    from xcam_cli.compare import say

    with warnings.catch_warnings(), unheard():
        warnings.simplefilter("ignore", xcam.XcamWarning)
        try:
            found = xcam.compare(models, str(picture))
        except BackendError as error:
            click.echo(f"xcam: the backends are not compared: {error}", err=True)
            return
    click.echo()
    say(found, None)
    try:
        found.save(page)
    except BackendError as error:
        click.echo(f"xcam: no page: {error}", err=True)
    else:
        click.echo(f"wrote {page}")
