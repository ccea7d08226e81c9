"""Opening a model from a file, a name, a factory function or a live object."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from xcam.contract import InputSpec, Layout, Model, files, preprocessing, validation
from xcam.contract.abilities import ChoosesOutput, supports
from xcam.contract.fit import Fit, for_size, parse
from xcam.contract.layouts import filled
from xcam.contract.plugins import DEMOS, described, registry
from xcam.contract.preprocessing import Preprocessing
from xcam.contract.scaling import warn_of_two
from xcam.errors import ContractError, InputError, ModelError, XcamError, first_line, keywords_checked, nearest
from xcam.models import labels as labels_module
from xcam.models.inputs import fixed_inputs, has_images, with_images
from xcam.models.texts import checked_texts, read_embeddings, with_texts
from xcam.report import formatting

LARGEST = 16384
"""The largest side of a model's input in pixels: larger values are refused as mistakes."""


@keywords_checked()
def load(
    model: Any,
    backend: str | None = None,
    *,
    preprocess: str | Preprocessing | None = None,
    size: tuple[int | None, ...] | None = None,
    fit: str | Fit | None = None,
    channels: int | None = None,
    labels: str | Path | Sequence[str] | np.ndarray[Any, Any] | None = None,
    device: str | None = None,
    layout: Layout | None = None,
    weights: str | None = None,
    threads: int | None = None,
    output: str | None = None,
    inputs: Mapping[str, Any] | None = None,
    image_input: str | None = None,
    texts: str | Path | Sequence[str] | None = None,
    embeddings: Any = None,
    tokenizer: Any = None,
    task: str | None = None,
    boxes: str | None = None,
) -> Model:
    """Open a model.

    Args:
        model: A file; a name that a backend knows (`resnet50`, `demo`); `package.module:factory`; or a live model
            object.
        backend: The backend's name, which may also precede the model's name (`onnx:demo`). Default: by the model's type
            or file name.
        preprocess: A preset (`caffe`, `tf`, `torch`, `unit`, `raw`), `MEAN/STD`, or a Preprocessing, for images
            and arrays of uint8. Default: the model's own.
        size: (height, width) of the input in pixels, for a model that takes any size. One of them may be None: it then
            follows from the other and from the ratio of each image. (length,) for signals, (depth, height, width) for
            volumes. Default: the model's own; a model that states one side keeps the ratio.
        fit: How images fit the size: `stretch`, `crop`, `letterbox` or `pad`, with values after a colon (`crop:0.875`), or
            a Fit. Default: the model's own; a model that states none stretches them.
        channels: The number of channels of the input, where the model does not state it: 3; 1 for grey images; 0 for grey
            images [N, H, W] without a channel axis. Default: a guess, which is corrected where the model does not run on
            it.
        labels: Class labels: a list, `imagenet`, or a text or JSON file; for a single output the labels of class 0 and 1,
            or that of class 1 alone. Default: the model's own.
        device: A device, in the backend's notation, for example `cuda`.
        layout: The layout of the model's input, `channels_first` or `channels_last`, for backends that cannot infer it.
        weights: For models known by name: a file, `imagenet` or `none`.
        threads: The number of threads within an operator, for backends with separate threads for each model (ONNX
            Runtime).
        output: The name of the output that is explained, for models with several. Default: the one called `logits`, or
            the vector of class scores that is computed last.
        inputs: Fixed values of the model's other inputs, by their names: numbers, arrays, or files (.npy, .npz, .json,
            .txt; an image for an input that takes images, which is prepared as the model's own images are; a text for a
            model with a tokenizer). A value without the axis of the batch, or with one row, is used for each image.
        image_input: The name of the input that takes the image, where several could. In a torch module whose forward takes
            a dictionary, its key.
        texts: The classes of a model of images and texts (CLIP, SigLIP): a list, `a dog;a cat`, or a text file with one on
            each line. The scores are the similarities of the image and each text, as the model computes them.
        embeddings: The embeddings of texts, for a model of image embeddings: a .npz file or a mapping with `embeddings`
            [texts, numbers], `texts`, and where the model has them `scale` and `bias`, or with one array for each text; or
            an array, with `texts`.
        tokenizer: For `texts` and a live model: a tokenizer of transformers, or a function from a list of texts to indices.
            Default: that of the folder that the model was loaded from.
        task: The meaning of the outputs, where it is not recognised: `classification`, `multi-label`, `detection`,
            `segmentation`, `embedding`, or `unknown`.
        boxes: The layout of a detector's boxes, where it is not recognised: terms separated by commas, such as `xyxy` or
            `xywh`, `relative` or `pixels`, `objectness`. See the reference of targets.

    Returns:
        The opened model: a new object, `model` itself is not changed.

    Raises:
        InputError: An argument cannot be used.
        ModelError: The model cannot be opened.
        BackendError: No backend reads the model, or the backend is missing or broken.

    Warns:
        XcamWarning: The model scales its input itself, and another preprocessing is chosen, or stated by its library.
    """
    size = _size(size)
    _check_channels(channels)
    if layout is not None and layout not in get_args(Layout):
        raise InputError(f"unknown layout {layout!r}; {nearest(layout, get_args(Layout))}")
    if backend is None and isinstance(model, str):
        backend, model = split_backend(model)
    source = _source(model)
    backends = registry()
    name = backends.choose(source, backend)
    preset = preprocessing.preprocessing(preprocess)
    chosen_fit = parse(fit)
    class_labels = labels_module.load(labels)
    reader: Any = backends.load(name)
    taken = inspect.signature(reader.load).parameters
    options: dict[str, Any] = {} if threads is None else {"threads": threads}
    if options and "threads" not in taken:
        raise InputError(f"backend {name!r} has no threads for each model; leave threads out")
    if channels is not None and "channels" in taken:
        options["channels"] = channels
    fixed = fixed_inputs(inputs, image_input)
    if fixed:
        if "inputs" not in taken:
            raise InputError(f"backend {name!r} takes models with one input; leave inputs and image_input out")
        options["inputs"] = fixed

    prompts = None if texts is None else checked_texts(texts)
    head = None if embeddings is None else read_embeddings(embeddings, prompts)
    if head is None and prompts is not None:
        if "texts" not in taken:
            raise InputError(
                f"cannot use texts with a model of backend {name!r}: it has no text encoder; give the embeddings of the texts "
                "in a file, made with the encoder that belongs to it: embeddings='texts.npz' (--embeddings)"
            )
        options |= {"texts": prompts, "tokenizer": tokenizer}

    def read() -> Model:
        try:
            opened: Model = reader.load(source, size=size, device=device, layout=layout, weights=weights, **options)
        except (XcamError, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            text = repr(str(source)) if isinstance(source, str | Path) else f"this {type(source).__qualname__}"
            raise ModelError(
                f"backend {name!r} cannot open {text}: {first_line(error)}; check that it is a model for {name}"
            ) from error
        validation.model(opened, name)
        return opened

    opened = read()
    if has_images(fixed):  # they are prepared as the first one states, which has zeros for them
        spec = _spec(opened, size, channels, preset, chosen_fit)
        options["inputs"] = with_images(fixed, spec)
        opened = read()
    spec = _spec(opened, size, channels, preset, chosen_fit)
    warn_of_two(opened.name, spec.preprocessing, spec.needs)
    try:
        opened.input = spec
        own_labels = None if opened.labels is None else labels_module.pair(opened.labels)
        opened.labels = own_labels if class_labels is None else class_labels
    except AttributeError as error:
        raise ContractError(
            f"{described(name)}: `input` and `labels` of its model cannot be set ({error}); the contract requires "
            "plain attributes: report this to the plugin's authors"
        ) from error
    for term, stated in (("task", task), ("boxes", boxes)):
        if stated is not None:
            setattr(opened, term, stated)
    head = head or (None if prompts is None else opened.text_head)  # type: ignore[attr-defined]
    if head is not None:
        classifier = with_texts(opened, head, output)
        classifier.labels = labels_module.pair(head.texts if class_labels is None else class_labels)
        return classifier
    return opened if output is None else with_output(opened, output)


def _spec(
    opened: Model,
    size: tuple[int | None, ...] | None,
    channels: int | None,
    preset: Preprocessing | None,
    fit: Fit | None,
) -> InputSpec:
    """Return the description of a model's input, with the values that the caller states. Raises InputError."""
    spec = opened.input
    if size is not None:
        fitting = spec.fit and for_size(spec.fit, spec.size, size)
        spec = dataclasses.replace(spec, size=_resized(spec, size, opened.name), fit=fitting)
    if channels is not None:
        if spec.channels_known and channels != spec.channels:
            raise InputError(
                f"{opened.name} takes images of {formatting.count(spec.channels, 'channel')}, not {channels}; leave "
                "channels out"
            )
        spec = dataclasses.replace(spec, channels=channels, channels_known=True)
    spec = spec if preset is None else dataclasses.replace(spec, preprocessing=preset)
    return spec if fit is None else dataclasses.replace(spec, fit=fit)


def with_output(model: Model, name: str) -> Model:
    """Return a model that explains its output `name`: a copy, the model itself is not changed.

    Raises:
        InputError: The model has no such output, or its backend cannot choose one.
    """
    if not supports(model, ChoosesOutput):
        raise InputError(
            f"cannot choose the output {name!r} of {model.name}: backend {model.backend!r} has no choice of outputs; name "
            "it in the target, as in xcam.ClassScore(output=…)"
        )
    return model.with_output(name)


def split_backend(name: str) -> tuple[str | None, str]:
    """Split `onnx:vgg.onnx` into backend and model; the backend is None where none precedes the first colon."""
    backend, colon, model = name.partition(":")
    known = bool(colon) and backend in registry().plugins and not os.path.exists(name)
    return (backend, model) if known else (None, name)


def _source(model: Any) -> Any:
    """Return a path for a string that is one, the result of a factory that it names, or else the argument itself."""
    if isinstance(model, os.PathLike):
        model = os.fspath(model)
    if not isinstance(model, str):
        return model
    if not model:
        raise InputError("the model's name is empty; give a file, the name of a zoo model, or package.module:factory")
    path = Path(model)
    prefix, colon, rest = model.partition(":")
    schemes = {scheme for plugin in registry().plugins.values() if plugin.spec for scheme in plugin.spec.schemes}
    if model in DEMOS or prefix in schemes:
        return model
    if os.path.exists(path):
        folders = {name for plugin in registry().plugins.values() if plugin.spec for name in plugin.spec.folders}
        if path.name in folders and path.is_file():
            path = path.parent
        if not any((path / name).is_file() for name in folders):
            files.check_file(path, "a model file")
        return path
    if colon and rest.isidentifier() and all(part.isidentifier() for part in prefix.split(".")):
        return _factory(prefix, rest)
    if (path.suffix and not colon) or "/" in model or os.sep in model:
        raise InputError(f"no such model file: {model}; check the path, or give the name of a zoo model")
    return model


def _factory(module: str, name: str) -> Any:
    """Return the model that the function `name` of `module` creates."""
    try:
        return getattr(importlib.import_module(module), name)()
    except ModuleNotFoundError as error:
        raise InputError(
            f"cannot import {module}: no module {error.name!r}; install it, or run in its folder"
        ) from error
    except AttributeError as error:
        raise InputError(f"cannot call {module}:{name}: {error}; give a function of {module}") from error
    except (Exception, SystemExit) as error:
        raise ModelError(f"{module}:{name}() failed: {first_line(error)}; correct the factory") from error


def _size(size: Any) -> tuple[int | None, ...] | None:
    """Return one, two or three sides, each an integer or None, and not all of them None. Raises InputError."""
    if size is None:
        return None
    try:
        sides = tuple(None if n is None else int(n) for n in size)
    except (TypeError, ValueError):
        sides = ()
    known = [n for n in sides if n is not None]
    if len(sides) not in (1, 2, 3) or not known or not all(0 < n <= LARGEST for n in known):
        raise InputError(
            f"cannot use size={size!r}; give (height, width) in pixels, each from 1 to {LARGEST}, or None for one of them; "
            "(length,) for signals, (depth, height, width) for volumes"
        )
    return sides


def _resized(spec: InputSpec, size: tuple[int | None, ...], name: str) -> tuple[int | None, ...] | None:
    """Return the size of the input where the caller gives one. Raises InputError where the model takes another."""
    rank = spec.axes or spec.rank
    if rank in (1, 3) and len(size) == 2 and size[0] == size[1]:  # one number on the command line
        size = size[:1] * rank
    if spec.channels_known and not spec.fixed and rank not in (None, len(size)):
        axes = {1: "signals: give size=(length,)", 2: "images: give size=(height, width)"}
        remedy = axes.get(rank or 2, "volumes: give size=(depth, height, width)")
        raise InputError(f"cannot use size={size}: {name} takes {remedy}")
    if not spec.fixed:
        return size
    stated = spec.size or ()
    if len(stated) != len(size) or any(
        None not in pair and len({*pair}) > 1 for pair in zip(stated, size, strict=True)
    ):
        opened = tuple(m if n is None else None for n, m in zip(stated, size, strict=False))
        text = "x".join("" if n is None else str(n) for n in opened)
        remedy = f"give size={opened} (--size {text})" if any(opened) else "leave size out"
        raise InputError(f"{name} takes images of {by(stated)}, not {by(size)}; {remedy}")
    return filled(stated, size)


def _check_channels(channels: Any) -> None:
    """Raise InputError where `channels` is not a number of channels."""
    if channels is not None and not (type(channels) is int and 0 <= channels <= LARGEST):
        raise InputError(
            f"cannot use channels={channels!r}; give 3, or 1 for grey images, 0 where they have no channel axis"
        )


def by(size: Sequence[int | None] | None) -> str:
    """Return a size for a message: `224×224`, `48×any`, or `any size` for None."""
    return "×".join("any" if n is None else str(n) for n in size) if size else "any size"
