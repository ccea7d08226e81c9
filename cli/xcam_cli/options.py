"""Options that several commands share, and how warnings and foreign output are handled."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class Size(click.ParamType):  # type: ignore[type-arg]  # generic only in new versions of click
    """HxW in pixels; one side alone: the other one follows from the image's ratio; DxHxW for volumes."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int | None, ...]:
        """Convert `224x320`, `224`, `48x` or `x320` to (224, 320), (224, 224), (48, None) or (None, 320)."""
        if isinstance(value, tuple):
            return value
        texts = str(value).lower().split("x")
        try:
            sides = [int(side) if side else None for side in (texts * 2 if len(texts) == 1 else texts)]
        except ValueError:
            sides = [0]
        known = [side for side in sides if side is not None]
        if not known or min(known) < 1 or max(known) > 16384 or len(sides) > 3:
            self.fail(
                f"{value!r} is not a size; give HEIGHTxWIDTH, or one side, as in 224x320, 48x, x320", param, ctx
            )
        return tuple(sides)


class NamedValue(click.ParamType):  # type: ignore[type-arg]  # as above
    """NAME=VALUE, for the values of several names."""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Convert `meta=meta.npy` to ("meta", "meta.npy")."""
        if isinstance(value, tuple):
            return value
        name, equals, content = str(value).partition("=")
        if not (name and equals and content):
            self.fail(f"{value!r} is not an input; give NAME=VALUE, as in meta=meta.npy, domain=2", param, ctx)
        return name, content


def _as_mapping(
    ctx: click.Context, param: click.Parameter, values: tuple[tuple[str, str], ...]
) -> dict[str, str] | None:
    """Return the values by name; None where there are none. Raises BadParameter where a name is given twice."""
    if len({name for name, _ in values}) < len(values):
        raise click.BadParameter("a name is given twice; give each once", ctx, param)
    return dict(values) or None


_INPUTS = (
    click.option(
        "--input",
        "other_inputs",
        type=NamedValue(),
        multiple=True,
        callback=_as_mapping,
        help="The value of another input: a number, .npy, .npz, .json, .txt, or an image. Repeatable.",
    ),
    click.option("--image-input", metavar="NAME", help="The input that takes the image, where several could."),
    click.option(
        "--texts",
        metavar="TEXTS",
        help="Texts as classes, of a model of images and texts: 'a dog;a cat', or FILE.txt.",
    ),
    click.option(
        "--embeddings", metavar="FILE.npz", help="The embeddings of texts as classes, of a model of image embeddings."
    ),
)

_FIT = click.option(
    "--fit", metavar="MODE", help="stretch, crop, letterbox or pad; crop:0.875, crop:256, pad:fill=128."
)
_CHANNELS = click.option(
    "--channels",
    type=click.IntRange(0),
    metavar="N",
    help="Channels of the input; 1: grey images; 0: no such axis.",
)
_TASK = click.option(
    "--task",
    metavar="NAME",
    help="classification, detection, segmentation, …, where the outputs leave it open.",
)
_BOXES = click.option(
    "--boxes", metavar="LAYOUT", help="Of a detector: xyxy or xywh, relative or pixels, objectness, …"
)

_MODEL = (
    click.option("-b", "--backend", metavar="NAME", help="keras, torch, onnx, …; see `xcam backends`."),
    click.option(
        "-m",
        "--model",
        metavar="MODEL",
        help="A file, a zoo name (vgg16), package.module:factory, demo, or onnx:demo. Default: that of the backend.",
    ),
    click.option("--weights", metavar="FILE|imagenet|none", help="For zoo names; none: random. Default: imagenet."),
    click.option("--preprocess", metavar="NAME", help="caffe, tf, torch, unit, raw, or MEAN/STD."),
    click.option(
        "--size", type=Size(), help="The size of the input, for a model that takes any; 48x, x320: one side."
    ),
    _FIT,
    _CHANNELS,
    click.option("--labels", metavar="FILE", help="Class labels, one per line, or JSON."),
    click.option(
        "--model-output",
        "output",
        metavar="NAME",
        help="The output to explain, of a model with several. Default: the class scores.",
    ),
    _TASK,
    _BOXES,
    click.option("--device", metavar="D", help="cpu, cuda, cuda:1, …"),
    click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads within an operator (ONNX Runtime)."),
    click.option(
        "--layout",
        type=click.Choice(["channels_first", "channels_last", "tokens"]),
        help="The layout of the model's activations, where it cannot be detected.",
    ),
    *_INPUTS,
)

_SHARED = (
    click.option(
        "--preprocess",
        metavar="NAME",
        help="caffe, tf, torch, unit, raw, or MEAN/STD, for models that do not define their preprocessing.",
    ),
    click.option("--size", type=Size(), help="The size of the input, for models that take any."),
    _FIT,
    _CHANNELS,
    click.option("--labels", metavar="FILE", help="Class labels, for models that have none."),
    click.option("--model-output", "output", metavar="NAME", help="The output to explain, of models with several."),
    _TASK,
    _BOXES,
    click.option("--device", metavar="D", help="cpu, cuda, …"),
    *_INPUTS,
)
SHARED_OPTIONS = (
    "size",
    "fit",
    "channels",
    "labels",
    "device",
    "output",
    "other_inputs",
    "image_input",
    "texts",
    "embeddings",
    "task",
    "boxes",
)
"""Names of those with which each of several models is opened."""


score_option = click.option(
    "--score",
    type=click.Choice(["logit", "probability", "log-probability"]),
    default="logit",
    show_default=True,
    help="The value that is differentiated.",
)


def model_options(command: F) -> F:
    """Add the options that name a model and control how it is loaded."""
    for option in reversed(_MODEL):
        command = option(command)
    return command


def models_options(command: F) -> F:
    """Add the same options, with `--model` for one or more models (`models`)."""
    several = click.option("-m", "--model", "models", multiple=True, metavar="MODEL", help="Twice: side by side.")
    for option in (*reversed(_MODEL[2:]), several, _MODEL[0]):
        command = option(command)
    return command


def shared_options(command: F) -> F:
    """Add the options that several models share."""
    for option in reversed(_SHARED):
        command = option(command)
    return command


def stdout_to_stderr() -> contextlib.AbstractContextManager[Any]:
    """Redirect the prints of models and frameworks: standard output is for the result."""
    return contextlib.redirect_stdout(sys.stderr)


@contextlib.contextmanager
def collected_warnings(before: Collection[str] = ()) -> Iterator[list[str]]:
    """Collect the texts of xcam's own warnings, each once, for `print_warnings`; those in `before` are left out."""
    from xcam.errors import XcamWarning

    texts: list[str] = []

    def keep(message: Warning | str, category: type[Warning], *_: Any) -> None:
        if issubclass(category, XcamWarning) and str(message) not in (*before, *texts):
            texts.append(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", XcamWarning)
        warnings.showwarning = keep  # type: ignore[assignment]  # file and line are not needed
        yield texts


def print_warnings(texts: Iterable[str]) -> None:
    """Print each warning as one line on standard error."""
    for text in texts:
        click.echo(f"xcam: warning: {' '.join(text.split())}", err=True)


def open_model(backend: str | None, model: str | None, **options: Any) -> Any:
    """Load a model; without a name, the backend's default model. `other_inputs` are the `inputs` of `xcam.load`."""
    import xcam

    options["inputs"] = options.pop("other_inputs", None)

    backend, model = default_model(backend, model)
    with collected_warnings() as texts, stdout_to_stderr():
        opened = xcam.load(model, backend=backend, **options)
    print_warnings(texts)
    return opened


def default_model(backend: str | None, model: str | None) -> tuple[str | None, str]:
    """Complete backend and model: without a model, the backend's default one.

    Raises:
        InputError: neither is given and no backend has a default, or the backend has none.
    """
    from xcam.contract.plugins import registry
    from xcam.errors import InputError

    if "" not in sys.path:
        sys.path.insert(0, "")  # so that `-m my_models:build` imports from the current folder
    if model is None:
        plugins = registry().plugins
        if backend is None:
            ready = [
                name for name, p in plugins.items() if p.spec and p.spec.default_model and p.state == "available"
            ]
            if not ready:
                raise InputError(
                    "no model is given; name one with -m (-m demo is built in), or install a backend: see `xcam backends`"
                )
            backend = ready[0]
        spec = plugins[backend].spec if backend in plugins else None
        if spec and not spec.default_model:
            raise InputError(f"backend {backend!r} has no default model; name one with -m (-m demo is built in)")
        model = spec.default_model if spec and spec.default_model else "demo"
    return backend, model
