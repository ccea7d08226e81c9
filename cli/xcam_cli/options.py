"""Options that several commands share."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class Size(click.ParamType):  # type: ignore[type-arg]  # generic only in new versions of click
    """HxW in pixels."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """`224x320` or `224` → (224, 320) or (224, 224)."""
        if isinstance(value, tuple):
            return value
        height, x, width = str(value).lower().partition("x")
        try:
            size = int(height), int(width if x else height)
        except ValueError:
            size = (0, 0)
        if min(size) < 1 or max(size) > 16384:
            self.fail(f"{value!r} is no size; give HEIGHTxWIDTH, as in 224x224", param, ctx)
        return size


_MODEL = (
    click.option("-b", "--backend", metavar="NAME", help="keras, torch, onnx, …; see `xcam backends`."),
    click.option(
        "-m",
        "--model",
        metavar="MODEL",
        help="A file, a zoo name (vgg16), package.module:factory, demo, or onnx:demo. Default: the backend's own.",
    ),
    click.option("--weights", metavar="FILE|imagenet|none", help="For zoo names; none: random. Default: imagenet."),
    click.option("--preprocess", metavar="NAME", help="caffe, tf, torch, unit, raw, or MEAN/STD."),
    click.option("--size", type=Size(), help="The input's size, where the model takes any."),
    click.option("--labels", metavar="FILE", help="Class names, one on each line, or JSON."),
    click.option("--device", metavar="D", help="cpu, cuda, cuda:1, …"),
    click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads within an operator (ONNX Runtime)."),
    click.option(
        "--layout",
        type=click.Choice(["channels_first", "channels_last", "tokens"]),
        help="How the model keeps its values, where it cannot be seen.",
    ),
)


score_option = click.option(
    "--score", type=click.Choice(["logit", "probability", "log-probability"]), default="logit", show_default=True
)


def model_options(command: F) -> F:
    """The options that say which model, and how it is opened."""
    for option in reversed(_MODEL):
        command = option(command)
    return command


def models_options(command: F) -> F:
    """The same, where more than one model can be named: `models`."""
    several = click.option("-m", "--model", "models", multiple=True, metavar="MODEL", help="Twice: side by side.")
    for option in (*reversed(_MODEL[2:]), several, _MODEL[0]):
        command = option(command)
    return command


def unheard() -> contextlib.AbstractContextManager[Any]:
    """What a model or its framework prints goes to standard error: standard output is for the answer."""
    return contextlib.redirect_stdout(sys.stderr)


@contextlib.contextmanager
def heard(before: Collection[str] = ()) -> Iterator[list[str]]:
    """The texts of xcam's own warnings meanwhile, each once, for `tell`; not those of `before`."""
    from xcam.errors import XcamWarning

    texts: list[str] = []

    def keep(message: Warning | str, category: type[Warning], *_: Any) -> None:
        if issubclass(category, XcamWarning) and str(message) not in (*before, *texts):
            texts.append(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", XcamWarning)
        warnings.showwarning = keep  # type: ignore[assignment]  # it does not care where
        yield texts


def tell(warned: Iterable[str]) -> None:
    """Each warning as a line on standard error."""
    for text in warned:
        click.echo(f"xcam: warning: {' '.join(text.split())}", err=True)


def open_model(backend: str | None, model: str | None, **options: Any) -> Any:
    """xcam.load, with the backend's own model when none is named."""
    import xcam

    backend, model = own_model(backend, model)
    with unheard():
        return xcam.load(model, backend, **options)


def own_model(backend: str | None, model: str | None) -> tuple[str | None, str]:
    """The backend's own model when none is named. Raises InputError."""
    from xcam.contract.plugins import registry
    from xcam.errors import InputError

    if "" not in sys.path:
        sys.path.insert(0, "")  # so that `-m my_models:build` finds what lies here
    if model is None:
        plugins = registry().plugins
        if backend is None:
            ready = [
                name for name, p in plugins.items() if p.spec and p.spec.default_model and p.state == "available"
            ]
            if not ready:
                raise InputError(
                    "no model: name one with -m (-m demo is built in), or install a backend: `xcam backends` says how"
                )
            backend = ready[0]
        spec = plugins[backend].spec if backend in plugins else None
        if spec and not spec.default_model:
            raise InputError(f"backend {backend!r} has no model of its own: name one with -m (-m demo is built in)")
        model = spec.default_model if spec and spec.default_model else "demo"
    return backend, model
