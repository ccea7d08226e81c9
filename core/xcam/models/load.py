"""Opening a model: from a file, a name, a factory, or a live object, with the backend that reads it."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from xcam.contract import Layout, Model, files, preprocessing, validation
from xcam.contract.plugins import described, registry
from xcam.contract.preprocessing import Preprocessing
from xcam.errors import ContractError, InputError, ModelError, XcamError, first_line, nearest
from xcam.models import labels as class_names

LARGEST = 16384
"""More pixels on one side of a model's input are taken for a mistake."""


def load(
    model: Any,
    backend: str | None = None,
    preprocess: str | Preprocessing | None = None,
    size: tuple[int, int] | None = None,
    labels: str | Path | Sequence[str] | None = None,
    device: str | None = None,
    layout: Layout | None = None,
    weights: str | None = None,
    threads: int | None = None,
) -> Model:
    """Open a model.

    model: a file; a name that a backend knows (`resnet50`, `demo`); `package.module:factory`; or a live model object.
    backend: its name, which may also stand ahead of a model's name (`onnx:demo`); by default it follows from the
        model's type or file name.
    preprocess: a preset (`caffe`, `tf`, `torch`, `unit`, `raw`), `MEAN/STD`, or a Preprocessing; by default what the
        model says.
    size: (height, width) of the input, where the model takes any.
    labels: class names: a list, or a text or JSON file.
    device, layout: as the backend names them; weights: a file, `imagenet` or `none`, for models known by name.
    threads: within an operator, for backends whose models have threads of their own (ONNX Runtime).

    Raises InputError, ModelError or BackendError, each with a remedy.
    """
    size = _size(size)
    if layout is not None and layout not in get_args(Layout):
        raise InputError(f"no layout {layout!r}; {nearest(layout, get_args(Layout))}")
    if backend is None and isinstance(model, str):
        backend, model = behind_backend(model)
    source = _source(model)
    backends = registry()
    name = backends.choose(source, backend)
    how = preprocessing.preprocessing(preprocess)
    names = class_names.load(labels)
    reader = backends.load(name)
    more = {} if threads is None else {"threads": threads}
    if more and "threads" not in inspect.signature(reader.load).parameters:
        raise InputError(f"backend {name!r} has no threads of each model's own; leave threads out")
    try:
        opened = reader.load(source, size=size, device=device, layout=layout, weights=weights, **more)
    except (XcamError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        what = repr(str(source)) if isinstance(source, str | Path) else f"this {type(source).__qualname__}"
        raise ModelError(
            f"backend {name!r} cannot open {what}: {first_line(error)}; check that it is a model for {name}"
        ) from error
    validation.model(opened, name)
    spec = opened.input
    if size is not None and size != spec.size:
        if spec.fixed:
            raise InputError(f"{opened.name} takes pictures of {by(spec.size)}, not {by(size)}; leave size out")
        spec = dataclasses.replace(spec, size=size)
    if how is not None:
        spec = dataclasses.replace(spec, preprocessing=how)
    try:
        opened.input = spec
        opened.labels = opened.labels if names is None else names
    except AttributeError as error:
        raise ContractError(
            f"{described(name)}: its model does not let `input` and `labels` be set ({error}); the contract asks for plain "
            "attributes: report it to the plugin's authors"
        ) from error
    return opened


def behind_backend(word: str) -> tuple[str | None, str]:
    """`onnx:vgg.onnx` → the backend that is named ahead of the first colon, or None; and the model."""
    backend, colon, rest = word.partition(":")
    known = bool(colon) and backend in registry().plugins and not os.path.exists(word)
    return (backend, rest) if known else (None, word)


def _source(model: Any) -> Any:
    """A string becomes a path where it is one, the result of `package.module:factory` where it names one."""
    if isinstance(model, os.PathLike):
        model = os.fspath(model)
    if not isinstance(model, str):
        return model
    if not model:
        raise InputError("the model's name is empty; give a file, a name of a zoo, or package.module:factory")
    path = Path(model)
    prefix, colon, rest = model.partition(":")
    schemes = {scheme for plugin in registry().plugins.values() if plugin.spec for scheme in plugin.spec.schemes}
    if model == "demo" or prefix in schemes:
        return model
    if os.path.exists(path):
        files.check_file(path, "a model file")
        return path
    if colon and rest.isidentifier() and all(part.isidentifier() for part in prefix.split(".")):
        return _factory(prefix, rest)
    if (path.suffix and not colon) or os.sep in model:
        raise InputError(f"no such model file: {model}; check the path, or name a model of a zoo")
    return model


def _factory(module: str, name: str) -> Any:
    try:
        made = getattr(importlib.import_module(module), name)()
    except ModuleNotFoundError as error:
        raise InputError(f"no module {error.name!r} for {module}:{name}; install it, or run in its folder") from error
    except AttributeError as error:
        raise InputError(f"{module}:{name} cannot be called: {error}; name a function of {module}") from error
    except (Exception, SystemExit) as error:
        raise ModelError(f"{module}:{name}() failed: {first_line(error)}; mend the factory") from error
    return made


def _size(size: Any) -> tuple[int, int] | None:
    """(height, width) as two whole numbers. Raises InputError."""
    if size is None:
        return None
    try:
        height, width = (int(n) for n in size)
    except (TypeError, ValueError):
        height = width = 0
    if not 0 < height <= LARGEST or not 0 < width <= LARGEST:
        raise InputError(f"size is {size}; give (height, width) in pixels, each from 1 to {LARGEST}")
    return height, width


def by(size: Sequence[int] | None) -> str:
    return "×".join(map(str, size)) if size else "any size"
