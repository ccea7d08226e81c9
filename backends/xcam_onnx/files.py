"""ONNX files: opened without reading their weights; external data looked at before anything maps it."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import ModelProto, TensorProto, external_data_helper, numpy_helper

from xcam.contract.preprocessing import Preprocessing
from xcam.errors import ModelError
from xcam_onnx.graph import inferred
from xcam_onnx.weights import external, skeleton


def real(path: Path) -> Path:
    """What a link leads to, as caches of downloads keep a model; the link itself where weights lie beside it."""
    if not path.is_symlink():
        return path
    found = path.resolve()
    return path if any(_external(t).get("location") != found.name for t in external(skeleton(found))) else found


def read(path: Path) -> ModelProto:
    """The graph in a file; its weights stay there. Raises ModelError."""
    model = skeleton(path)
    _check_external(model, path)
    return prepared(model, path.name)


def prepared(model: ModelProto, name: str) -> ModelProto:
    """The model's own functions written out, types and shapes worked out. Raises ModelError."""
    newest = onnx.defs.onnx_opset_version()
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and not 11 <= opset.version <= newest:
            raise ModelError(
                f"{name} uses opset {opset.version}, and xcam reads 11 to {newest} with onnx {onnx.__version__}; "
                + (
                    "update onnx"
                    if opset.version > newest
                    else "convert it with onnx.version_converter, or export anew"
                )
            )
    if model.functions:
        with contextlib.suppress(Exception):
            model = onnx.inliner.inline_local_functions(model)
    _densify(model)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0:  # some exporters' word for any size
                dim.Clear()
    return inferred(model)


def _densify(model: ModelProto) -> None:
    """Sparse weights, written out."""
    for sparse in model.graph.sparse_initializer:
        indices, values = numpy_helper.to_array(sparse.indices), numpy_helper.to_array(sparse.values)
        dense = np.zeros(tuple(sparse.dims), values.dtype)
        dense[np.unravel_index(indices, dense.shape) if indices.ndim == 1 else tuple(indices.T)] = values
        model.graph.initializer.append(numpy_helper.from_array(dense, sparse.values.name))
    del model.graph.sparse_initializer[:]


def kept(model: ModelProto) -> tuple[ModelProto, Path, tempfile.TemporaryDirectory[str]]:
    """A live model: its weights written into a folder of its own, which goes with the object that is returned."""
    if external(model):
        raise ModelError(
            "this ModelProto keeps its weights in files that it does not say the folder of; load it by its file name, "
            "or read it with onnx.load(path), which fetches them"
        )
    folder = tempfile.TemporaryDirectory(prefix="xcam-")
    path = Path(folder.name) / "model.onnx"
    try:
        try:
            path.write_bytes(model.SerializeToString())
        except ValueError as error:  # over 2 GB
            raise ModelError(
                "this ModelProto is larger than 2 GB, and protobuf cannot write it; save it with "
                "onnx.save(…, save_as_external_data=True) and load the file"
            ) from error
        return prepared(skeleton(path), model.graph.name or "the model"), path, folder
    except BaseException:
        folder.cleanup()
        raise


def unchanged(path: Path, model: ModelProto) -> Callable[[], None]:
    """A check that the files that hold the weights are still those that were opened."""
    files = {path} | {path.parent / _external(t)["location"] for t in external(model)}
    seen = {file: _stamp(file) for file in files}

    def check() -> None:
        for file, stamp in seen.items():
            if _stamp(file) != stamp:
                raise ModelError(f"{file} was changed or removed after it was loaded; load the model again")

    return check


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _external(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _check_external(model: ModelProto, path: Path) -> None:
    """Weights beside the model: there, long enough, and nowhere else than in its folder."""
    folder = path.parent.resolve()
    sizes: dict[str, int] = {}
    for tensor in external(model):
        location = _external(tensor).get("location", "")
        if location == path.name:
            continue
        try:
            info = external_data_helper.ExternalDataInfo(tensor)
            if location not in sizes:
                file = folder / location
                if not location or Path(location).is_absolute() or not file.resolve().is_relative_to(folder):
                    raise ModelError(
                        f"{path} keeps weights in {location!r}, outside its own folder: refused; put model and weights "
                        "into one folder and export them with a plain file name"
                    )
                if not file.is_file():
                    raise ModelError(
                        f"{path} keeps weights in {location!r}, and that file is missing; put it beside it"
                    )
                sizes[location] = file.stat().st_size
        except (ValueError, OSError, RuntimeError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(
                f"{path} does not say rightly where its weight {tensor.name!r} is ({error}); export it again"
            ) from error
        if (info.offset or 0) + (info.length or 0) > sizes[location]:
            raise ModelError(
                f"{location!r}, the weights of {path}, ends before the weight {tensor.name!r} does; fetch it again"
            )


def metadata(model: ModelProto) -> dict[str, Any]:
    """What `xcam export` wrote into a file: preprocessing, labels, layer."""
    found = {entry.key: entry.value for entry in model.metadata_props if entry.key.startswith("xcam.")}
    facts: dict[str, Any] = {}
    with contextlib.suppress(ValueError, TypeError, KeyError):
        if "xcam.preprocessing" in found:
            told = json.loads(found["xcam.preprocessing"])
            mean, std = (tuple(float(v) for v in told[key]) for key in ("mean", "std"))
            order = "BGR" if told["order"] == "BGR" else "RGB"
            facts["preprocessing"] = Preprocessing(str(told["name"]), float(told["scale"]), mean, std, order)
    with contextlib.suppress(ValueError, TypeError):
        if "xcam.labels" in found:
            facts["labels"] = tuple(str(label) for label in json.loads(found["xcam.labels"]))
    if found.get("xcam.layer"):
        facts["layer"] = found["xcam.layer"]
    return facts
