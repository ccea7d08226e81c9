"""ONNX files: opened without reading their weights; external data looked at before anything maps it."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
from onnx import ModelProto, TensorProto, external_data_helper

from xcam.errors import ModelError
from xcam.preprocessing import Preprocessing
from xcam_onnx.graph import inferred
from xcam_onnx.weights import skeleton


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
    return inferred(model)


def kept(model: ModelProto) -> tuple[ModelProto, Path, tempfile.TemporaryDirectory[str]]:
    """A live model: its weights written into a folder of its own, which goes with the object that is returned."""
    folder = tempfile.TemporaryDirectory(prefix="xcam-")
    path = Path(folder.name) / "model.onnx"
    inside = any(t.data_location == TensorProto.EXTERNAL for t in model.graph.initializer)
    if inside:
        folder.cleanup()
        raise ModelError(
            "this ModelProto keeps its weights in files that it does not say the folder of; load it by its file name, "
            "or read it with onnx.load(path), which fetches them"
        )
    try:
        path.write_bytes(model.SerializeToString())
    except ValueError as error:  # over 2 GB
        folder.cleanup()
        raise ModelError(
            "this ModelProto is larger than 2 GB, and protobuf cannot write it; save it with "
            "onnx.save(…, save_as_external_data=True) and load the file"
        ) from error
    return read(path), path, folder


def unchanged(path: Path, model: ModelProto) -> Callable[[], None]:
    """A check that the files that hold the weights are still those that were opened."""
    files = {path} | {path.parent / _external(t)["location"] for t in _externals(model)}
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


def _externals(model: ModelProto) -> list[TensorProto]:
    return [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL] + [
        a.t
        for node in model.graph.node
        for a in node.attribute
        if a.HasField("t") and a.t.data_location == TensorProto.EXTERNAL
    ]


def _external(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _check_external(model: ModelProto, path: Path) -> None:
    """Weights beside the model: there, long enough, and nowhere else than in its folder."""
    folder = path.parent.resolve()
    sizes: dict[str, int] = {}
    for tensor in _externals(model):
        told = _external(tensor)
        location = told.get("location", "")
        if location == path.name:
            continue
        if location not in sizes:
            file = folder / location
            if not location or Path(location).is_absolute() or not file.resolve().is_relative_to(folder):
                raise ModelError(
                    f"{path} keeps weights in {location!r}, outside its own folder: refused; put model and weights into "
                    "one folder and export them with a plain file name"
                )
            if not file.is_file():
                raise ModelError(f"{path} keeps weights in {location!r}, and that file is missing; put it beside it")
            sizes[location] = file.stat().st_size
        info = external_data_helper.ExternalDataInfo(tensor)
        start, length = info.offset or 0, info.length or 0
        if start < 0 or length < 0 or start + length > sizes[location]:
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
