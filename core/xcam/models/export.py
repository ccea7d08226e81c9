"""`export`: an ONNX file that gives, besides its own outputs, where it looked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from xcam.contract import Model, validation
from xcam.errors import InputError, ModelError
from xcam.models import layers
from xcam.models.load import load

SUFFIX = ".onnx"
LIMIT = 1_500_000_000
"""Bytes of weights that one ONNX file holds: protobuf ends at 2 GiB. More lie beside it, in `<name>.data`."""


def export(
    model: Any,
    path: str | os.PathLike[str],
    layer: str | None = None,
    heatmap: str | None = None,
    **options: Any,
) -> Path:
    """Write a model as an ONNX file that explains itself, in any runtime and language.

    model: what `load` returned, or anything that `load` takes; `options` are those of `load`. A model of another
    framework is converted by that framework's own exporter first.
    layer: its name; default: as for `explain`. heatmap: `gradcam`, `gradcam++`, `layercam`, `hirescam` or `xgradcam`.

    The file has the model's own inputs and outputs, and besides them the outputs `xcam/activations` and
    `xcam/gradients` [N, C, *space], `xcam/heatmap` [N, H, W] in 0…1 where a method is named, and an input that may be
    left out: `xcam/class_index` int64 [N], −1 for the top class. It appears when it is complete.

    Returns its path. Raises InputError, ModelError or BackendError, each with a remedy.
    """
    place = check_place(path, model)
    opened: Model = model if validation.is_model(model) else load(model, **options)
    write: Callable[..., None] | None = getattr(opened, "export", None)
    if write is not None:
        write(place, layer, heatmap, {"xcam.version": version("xcam-explain")})
        return place
    convert: Callable[[Path], None] | None = getattr(opened, "to_onnx", None)
    if convert is None:
        raise ModelError(
            f"backend {opened.backend!r} cannot write ONNX; convert {opened.name} with its framework's own exporter, and "
            "export that file"
        )
    found = layers.find(opened, layer)
    with tempfile.TemporaryDirectory(prefix="xcam-") as folder:
        file = Path(folder) / f"model{SUFFIX}"
        convert(file)
        converted = load(file, "onnx", opened.input.preprocessing, labels=opened.labels)
        converted.name = opened.name
        return export(converted, place, found.name, heatmap)


def check_place(path: str | os.PathLike[str], model: Any) -> Path:
    """Where `model` can be written as an ONNX file. Raises InputError."""
    place = Path(path)
    if place.suffix.lower() != SUFFIX or "\0" in place.name:
        raise InputError(f"{place} is no name for an ONNX file; end it in {SUFFIX}")
    try:
        if not place.parent.is_dir():
            raise InputError(f"cannot write {place}: there is no folder {place.parent}; make it first")
        if place.is_dir():
            raise InputError(f"cannot write {place}: it is a folder; choose another name")
        if (
            isinstance(model, str | os.PathLike)
            and os.path.exists(model)
            and place.exists()
            and place.samefile(model)
        ):
            raise InputError(f"{place} is the model itself, and would be overwritten; choose another name")
    except OSError as error:
        raise InputError(f"cannot write {place}: {error.strerror}; choose another name") from error
    return place
