"""`xcam layers`, `xcam methods`, `xcam backends`."""

from __future__ import annotations

from typing import Any

import click

from xcam_cli.model_spec import ModelSpec
from xcam_cli.options import (
    collected_warnings,
    models_options,
    open_model,
    print_warnings,
    stdout_to_stderr,
)
from xcam_cli.output import as_json, print_json, print_table


@click.command()
@as_json
def backends(as_json: bool) -> None:
    """List the backends: available, missing (with the install command), or broken."""
    import xcam

    with stdout_to_stderr():  # the code of plugins runs here
        rows = [[p.name, p.state, p.distribution, p.remedy] for p in xcam.list_backends().values()]
    if as_json:
        print_json([dict(zip(("name", "state", "from", "remedy"), row, strict=True)) for row in rows])
        return
    print_table(["backend", "state", "from", "remedy"], rows)


@click.command()
@as_json
def methods(as_json: bool) -> None:
    """List the methods with their cost, options and sources."""
    import xcam

    entries = xcam.list_methods().values()
    if as_json:
        print_json(
            [
                {
                    "name": m.name,
                    "summary": m.summary,
                    "inputs": m.inputs,
                    "passes": m.passes,
                    "options": dict(m.options),
                    "source": m.source,
                }
                for m in entries
            ]
        )
        return
    rows = [
        [m.name, m.summary, m.passes, ", ".join(f"{k}={v}" for k, v in m.options.items()), m.source] for m in entries
    ]
    print_table(["method", "map, before ReLU", "passes", "options", "source"], rows)


@click.command()
@models_options
@as_json
@click.option("--all", "all_", is_flag=True, help="Include the values inside layers.")
def layers(backend: str | None, models: tuple[str, ...], as_json: bool, all_: bool, **options: Any) -> None:
    """List the layers of a model in execution order, with the default; of two models, the layers that correspond."""
    from xcam.errors import ModelError
    from xcam.explanation.recognition import task_of
    from xcam.explanation.scales import default_scales
    from xcam.models.layers import find

    if len(models) > 1:
        _corresponding(backend, models, as_json, options)
        return
    model = open_model(backend, models[0] if models else None, **options)
    with stdout_to_stderr():
        listed = [layer for layer in model.layers if all_ or not layer.inner]
        with collected_warnings() as texts:
            task = task_of(model)
        try:
            defaults = [layer.name for layer in default_scales(model, task, None).layers] if task else []
            defaults = defaults or [find(model, None).name]
        except ModelError:
            defaults = []
    print_warnings(texts)
    if as_json:
        print_json(
            [
                {
                    "name": layer.name,
                    "kind": layer.kind,
                    "shape": layer.shape,
                    "dtype": layer.dtype,
                    "has_space": layer.has_space,
                    "default": layer.name in defaults,
                }
                for layer in listed
            ]
        )
        return
    rows = [
        [
            layer.name,
            layer.kind,
            "×".join("?" if n is None else str(n) for n in layer.shape),
            layer.dtype if layer.dtype != "float32" else "",
            "default" if layer.name in defaults else "" if layer.has_space else "no space",
        ]
        for layer in listed
    ]
    headings = ["layer", "kind", "shape (channels first)", "type", ""]
    if not any(row[3] for row in rows):  # all are float32
        headings, rows = [*headings[:3], ""], [[*row[:3], row[4]] for row in rows]
    print_table(headings, rows)
    if model.input.fit is not None:
        click.echo(f"fit: {model.input.fit}")
    if task is not None and task.kind != "unknown":
        click.echo(f"task: {task.text}")


def _corresponding(backend: str | None, models: tuple[str, ...], as_json: bool, options: dict[str, Any]) -> None:
    """Print the layers of two models that compute the same values on noise."""
    from xcam.comparison.compare import corresponding

    specs = [ModelSpec.parse(text) for text in models]
    opened = [open_model(spec.backend or backend, spec.model, **options) for spec in specs]
    with stdout_to_stderr():
        pairs = corresponding(opened)
    if as_json:
        print_json([vars(pair) for pair in pairs])
        return
    headings = [f"{model.name} ({model.backend})" for model in opened]
    print_table([*headings, "error"], [[pair.first, pair.second, f"{pair.error:.1e}"] for pair in pairs])
