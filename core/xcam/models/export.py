"""Export of a model as an ONNX file that returns its activations, gradients and heatmap."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from xcam.contract import Model, validation
from xcam.contract.abilities import ExportsOnnx, ExportsSelfExplaining, supports
from xcam.errors import InputError, ModelError, keywords_checked
from xcam.models import layers
from xcam.models.load import load

SUFFIX = ".onnx"
LIMIT = 1_500_000_000
"""The largest size in bytes of weights within the ONNX file; larger weights are written to `<name>.data` next to it.

A protobuf message is limited to 2 GiB.
"""


@keywords_checked()
def export(
    model: Any,
    path: str | os.PathLike[str],
    *,
    layer: str | None = None,
    heatmap: str | None = None,
) -> Path:
    """Write a model as an ONNX file that explains itself in any runtime and language.

    The file has the model's own inputs and outputs. Additional outputs are `xcam/activations` and `xcam/gradients`
    [N, C, *space] and, where `heatmap` names a method, `xcam/heatmap` [N, H, W] in 0…1. The additional input
    `xcam/class_index`, int64 [N], is optional; −1 means the top class. The file is complete, or not written at all.

    Args:
        model: The result of `load`, or anything that `load` takes. A model of another framework is first converted by
            that framework's exporter.
        path: The file to write; its name ends in `.onnx`.
        layer: The layer's name; default: as for `explain`.
        heatmap: The method: `gradcam`, `gradcam++`, `layercam`, `hirescam` or `xgradcam`. None for no heatmap.

    Returns:
        The path of the file.

    Raises:
        InputError: The path, layer or method cannot be used.
        ModelError: The model cannot be converted, or differentiated at the layer.
        BackendError: The framework's exporter is not installed.
    """
    target = check_path(path, model)
    opened: Model = model if validation.is_model(model) else load(model)
    if supports(opened, ExportsSelfExplaining):
        opened.export(target, layer, heatmap, {"xcam.version": version("xcam-explain")})
        return target
    if not supports(opened, ExportsOnnx):
        raise ModelError(
            f"cannot export {opened.name}: backend {opened.backend!r} cannot write ONNX; convert the model with its "
            "framework's exporter, and export that file"
        )
    name = layers.find(opened, layer).name
    with tempfile.TemporaryDirectory(prefix="xcam-") as folder:
        file = Path(folder) / f"model{SUFFIX}"
        opened.to_onnx(file)
        outputs = opened.output_activation
        output = next(iter(outputs)) if isinstance(outputs, Mapping) else None  # the files' order may be another
        converted = load(file, "onnx", labels=opened.labels, output=output)
        converted.input = replace(converted.input, preprocessing=opened.input.preprocessing, fit=opened.input.fit)
        converted.name = opened.name
        return export(converted, target, layer=name, heatmap=heatmap)


def check_path(path: str | os.PathLike[str], model: Any) -> Path:
    """Return the path to which `model` is exported, before any work is done.

    Raises:
        InputError: The path is not that of an ONNX file, its folder does not exist, or it is the model's own file.
    """
    path = Path(path)
    if path.suffix.lower() != SUFFIX or "\0" in path.name:
        raise InputError(f"cannot write {path}: not the name of an ONNX file; give one that ends in {SUFFIX}")
    try:
        if not path.parent.is_dir():
            raise InputError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a folder; choose another name")
        is_file = isinstance(model, str | os.PathLike) and os.path.exists(model)
        if is_file and path.exists() and path.samefile(model):
            raise InputError(f"cannot write {path}: it is the model itself; choose another name")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another name") from error
    return path
