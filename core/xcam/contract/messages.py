"""Errors and notes that every backend needs, with the same texts."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Iterable, Iterator, Sequence

from xcam.errors import BackendError, InputError, ModelError, XcamError, nearest

RANDOM_WEIGHTS = "random weights: this shows nothing about a trained model"
"""The entry in `Model.notes` of a model that was built without published weights."""

WITHOUT_GRADIENT = ("eigencam", "scorecam", "ablationcam")
"""Names of methods that need no gradient, for messages."""


def one_line(error: BaseException, limit: int = 200) -> str:
    """Return an error's text in one line of at most `limit` characters; its kind where it has no text.

    A longer text loses its middle: a framework names the part at the start, and often the cause at the end.
    """
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split()) or type(error).__name__
    half = (limit - 3) // 2
    return text if len(text) <= limit else f"{text[:half]} … {text[-half:]}"


def unknown_layer(layer: str, model: str, known: Iterable[str]) -> InputError:
    """Return the error for a layer name that the model does not have."""
    return InputError(f"unknown layer {layer!r} in {model}; {nearest(layer, known)}; `xcam layers` lists them")


def unknown_device(device: str, runtime: str, known: Iterable[str]) -> InputError:
    """Return the error for a device that the framework does not have."""
    return InputError(f"unknown device {device!r}; {runtime} has: {', '.join(known)}")


def own_weights(source: str, weights: object) -> InputError:
    """Return the error for `weights` that were given for a source which contains its weights."""
    return InputError(f"cannot use weights={str(weights)!r}: {source} contains its own weights; leave weights out")


def no_gradient(layer: str, model: str, nearest: str | None = None) -> ModelError:
    """Return the error for a layer from which no differentiable path leads to the explained output.

    Args:
        layer: the layer's name.
        model: the model's name.
        nearest: the next layer in execution order that has a gradient, where there is one.
    """
    choice = f"layer {nearest!r}, the next one with a gradient, or " if nearest else ""
    return ModelError(
        f"cannot differentiate {model} at layer {layer!r}: no differentiable path leads from it to the explained "
        f"output; choose {choice}a method that needs no gradient: {', '.join(WITHOUT_GRADIENT)}"
    )


def one_layer(model: str, layers: Sequence[str]) -> ModelError:
    """Return the error for several layers, in a backend that opens a model at one."""
    return ModelError(
        f"cannot open {model} at the layers {', '.join(layers)} in one pass: its backend opens one layer at a time; give "
        "one layer"
    )


def one_input(model: str, count: int, remedy: str) -> ModelError:
    """Return the error for a model that does not have exactly one input."""
    return ModelError(f"cannot use {model}: it has {count} inputs, and an image is one input; {remedy}")


def require(packages: Sequence[str], purpose: str) -> None:
    """Check that packages are installed, without importing them.

    Args:
        packages: module names that are also the names of their distributions.
        purpose: what they are for, for example "export to ONNX".

    Raises:
        BackendError: one of them is missing.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise BackendError(f"cannot {purpose}: {package} is not installed; pip install {package}")


@contextlib.contextmanager
def first_run(
    model: str,
    shape: Sequence[int | None],
    remedy: str | None = None,
) -> Iterator[None]:
    """Turn a failure of the model's first run on an input [N, *shape] into a ModelError with a remedy; None: the usual one.

    A model's own code may raise anything, SystemExit too. MemoryError and xcam's own errors pass.
    """
    try:
        yield
    except (XcamError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if remedy is None and re.search(r"missing \d+ required|have to specify", str(error)):
            remedy = "wrap it in a model that takes the image alone, or give the others: inputs={'name': …} (--input name=…)"
        usual = (
            "give another size= or channels= (--size, --channels), or check that it runs on one batch without xcam"
        )
        raise ModelError(
            f"cannot run {model} on an input of shape {list(shape)}: {type(error).__name__}: "
            f"{one_line(error, 300)}; {remedy or usual}"
        ) from error


@contextlib.contextmanager
def out_of_memory(*kinds: type[Exception], signs: Sequence[str] = ()) -> Iterator[None]:
    """Turn the framework's error for exhausted memory into a MemoryError, on which the core halves the batch.

    Args:
        kinds: classes of errors that always mean exhausted memory.
        signs: parts of an error's text that mean exhausted memory, for errors of any class.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, kinds) or any(sign in str(error) for sign in signs):
            raise MemoryError(one_line(error)) from error
        raise
