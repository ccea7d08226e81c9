"""`xcam demo`: a generated picture, and the small network that comes with xcam, through every backend."""

from __future__ import annotations

import warnings
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
    from xcam.demo import pictures
    from xcam.errors import BackendError
    from xcam.plugins import registry

    plugins = registry().plugins
    there: list[str] = []
    if backend is None:
        there = [name for name, p in plugins.items() if p.state == "available"]
        backend = min(there, key=lambda name: name != "onnx", default=None)  # the lightest, where it is there
        if backend is None:
            raise BackendError(
                "no backend is installed: " + "; or ".join(p.remedy for p in plugins.values() if p.state == "missing")
            )
    plan, _ = planned((), targets, None, options)
    picture = pictures()[0]
    places = places_of((str(picture),), plan, output)
    run(open_model(backend, "demo"), [picture], plan, places)
    if len(there) > 1 and not plan.as_json:
        _all_backends(there, picture, Path(output).with_suffix(".html"))


def _all_backends(names: list[str], picture: Path, page: Path) -> None:
    """The same picture through every backend that is installed: do they agree?"""
    import xcam
    from xcam.errors import BackendError
    from xcam_cli.compare import say

    with warnings.catch_warnings(), unheard():
        warnings.simplefilter("ignore", xcam.XcamWarning)
        try:
            found = xcam.compare([xcam.load("demo", name) for name in names], str(picture))
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
