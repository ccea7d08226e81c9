"""`xcam demo`: the network in the package and an explanation of a generated image, in every installed backend."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from xcam_cli.explain import drawing_options, run
from xcam_cli.options import open_model, stdout_to_stderr
from xcam_cli.output import print_json
from xcam_cli.plan import make_plan, output_paths


@click.command()
@click.option("-b", "--backend", metavar="NAME", help="Default: onnx, or the first that is installed.")
@click.option("-t", "--target", "targets", multiple=True, metavar="CLASS", help="Default: the top class.")
@drawing_options
@click.option("-o", "--output", default="xcam-demo.png", show_default=True, metavar="OUT")
def demo(backend: str | None, targets: tuple[str, ...], output: str, **options: Any) -> None:
    """Explain a generated image with the small network in the package."""
    from xcam.contract.plugins import registry
    from xcam.errors import BackendError
    from xcam.models.demo import image_paths

    plugins = registry().plugins
    names = [name for name, p in plugins.items() if p.state == "available"] if backend is None else [backend]
    if not names:
        remedies = "; or ".join(p.remedy for p in plugins.values() if p.state == "missing")
        raise BackendError(f"no backend is installed: {remedies}")
    models = _demo_models(sorted(names, key=lambda name: name != "onnx"))  # the lightest first, where it is installed
    plan, _ = make_plan((), targets, None, options)
    image = image_paths()[0]
    paths = output_paths((str(image),), plan, output)
    first = next(models)
    documents: list[dict[str, Any]] = []
    run(first, [image], plan, paths, documents)
    if plan.as_json:
        print_json(documents[0] if len(documents) == 1 else documents)
    if backend is None and not plan.as_json:
        others = list(models)
        if others:
            _compare([first, *others], image, Path(output).with_suffix(".html"))


def _demo_models(names: list[str]) -> Iterator[Any]:
    """Return the demo network in each backend that has it; plugins may lack it or be broken.

    Raises:
        XcamError: the error of the last backend, where no backend has the network.
    """
    from xcam.errors import XcamError

    count = 0
    for name in names:
        try:
            model = open_model(name, "demo")
        except XcamError as error:
            if name == names[-1] and not count:
                raise
            click.echo(f"xcam: {name} is left out: {error}", err=True)
        else:
            count += 1
            yield model


def _compare(models: list[Any], image: Path, page: Path) -> None:
    """Compare the backends on one image and write the page."""
    import xcam
    from xcam.errors import BackendError
    from xcam_cli.compare import print_comparison

    with warnings.catch_warnings(), stdout_to_stderr():
        warnings.simplefilter("ignore", xcam.XcamWarning)
        try:
            comparison = xcam.compare(models, str(image))
        except BackendError as error:
            click.echo(f"xcam: the backends are not compared: {error}", err=True)
            return
    click.echo()
    print_comparison(comparison, None)
    try:
        comparison.save(page)
    except BackendError as error:
        click.echo(f"xcam: cannot write the page: {error}", err=True)
    else:
        click.echo(f"wrote {page}")
