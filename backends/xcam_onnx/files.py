"""ONNX files: opened without reading their weights; external data is checked before it is mapped."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.inliner
from onnx import ModelProto, NodeProto, TensorProto, external_data_helper, numpy_helper

from xcam.contract.fit import parse
from xcam.contract.preprocessing import Preprocessing
from xcam.errors import InputError, ModelError
from xcam_onnx import classifiers
from xcam_onnx.graph import Graph, metadata, nodes, sort
from xcam_onnx.opsets import OLDEST, TARGET, convert
from xcam_onnx.weights import WeightFiles, external, external_entries, skeleton

LONG = "ai.onnx"
"""The long name of the domain of ONNX's own operators."""


class Opened(NamedTuple):
    """A model that was opened."""

    graph: Graph
    """The model, its larger weights as external data; with the types and shapes that the file states."""
    weights: WeightFiles
    """The files that keep its weights."""
    notes: tuple[str, ...]
    """Changes that were made: see xcam.Model.notes."""


def read(path: Path) -> Opened:
    """Open a model file.

    Raises:
        ModelError: The file is not a model, or its weights are missing, incomplete or outside its folder.
    """
    path = _resolved(path)
    model = skeleton(path)
    large = external(model)
    _check_external(large, path)
    weights = WeightFiles(path, large)
    graph, notes = _prepared(model, path.name)
    return Opened(graph, weights, notes)


def store(model: ModelProto) -> Opened:
    """Write a live model to a temporary folder, and open it there.

    Raises:
        ModelError: The model cannot be written, or its weights are in files of an unknown folder.
    """
    if external(model):
        raise ModelError(
            "cannot open this ModelProto: it keeps its weights in files, and their folder is unknown; load it by its "
            "file name, or read it with onnx.load(path), which loads them"
        )
    # Windows does not delete files that are still mapped when the interpreter exits.
    folder = tempfile.TemporaryDirectory(prefix="xcam-", ignore_cleanup_errors=True)
    path = Path(folder.name) / "model.onnx"
    try:
        try:
            path.write_bytes(model.SerializeToString())
        except ValueError as error:
            raise ModelError(
                "cannot write this ModelProto: protobuf cannot serialise more than 2 GB; save it with "
                "onnx.save(…, save_as_external_data=True) and load the file"
            ) from error
        opened = skeleton(path)
        weights = WeightFiles(path, external(opened), folder)
        graph, notes = _prepared(opened, model.graph.name or "the model")
        return Opened(graph, weights, notes)
    except BaseException:
        folder.cleanup()
        raise


def _resolved(path: Path) -> Path:
    """Resolve a symbolic link (download caches use them), unless the weights are in files next to the link."""
    if not path.is_symlink():
        return path
    target = path.resolve()
    locations = {external_entries(tensor).get("location") for tensor in external(skeleton(target))}
    return target if locations <= {target.name} else path


def _prepared(model: ModelProto, name: str) -> tuple[Graph, tuple[str, ...]]:
    """Convert old operators, inline the model's own functions, and sort the nodes; return notes too.

    Raises:
        ModelError: The model has operators that are too old or too new, or the nodes have no order.
    """
    if any(part.domain == LONG for part in (*model.graph.node, *model.opset_import)):
        for part in (*nodes(model.graph), *(n for f in model.functions for n in nodes(f)), *model.opset_import):
            part.domain = "" if part.domain == LONG else part.domain
    newest = onnx.defs.onnx_opset_version()
    opsets = {entry.version for entry in model.opset_import if not entry.domain}
    for version in opsets:
        if not OLDEST <= version <= newest:
            remedy = "convert it with onnx.version_converter, or export it again"
            raise ModelError(
                f"cannot read {name}: it uses opset {version}, and xcam reads {OLDEST} to {newest} with onnx "
                f"{onnx.__version__}; {'update onnx' if version > newest else remedy}"
            )
    if len(opsets) != 1 and any(not node.domain for node in model.graph.node):
        listed = " and ".join(map(str, sorted(opsets))) or "none"
        raise ModelError(
            f"cannot read {name}: a model states one version of ONNX's operators, and its opset_import states {listed}; set "
            "it with onnx.helper.make_opsetid, or export the model again"
        )
    old = convert(model, name)
    notes = () if old is None else (f"converted from opset {old} to {TARGET} in memory",)
    if model.functions:
        with contextlib.suppress(Exception):
            model = onnx.inliner.inline_local_functions(model)
    _densify(model)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0:  # some exporters write −1 for any size
                dim.Clear()
    graph = Graph(model)
    if _missing(graph) is not None:
        sort(model.graph)
        graph = Graph(model)
        _check_reads(graph, name)
    return Graph(model) if classifiers.standardise(graph) else graph, notes


def _missing(graph: Graph) -> tuple[NodeProto, str] | None:
    """Return a node that reads a tensor that no node ahead of it computes, and that tensor; None without one."""
    known = {value.name for value in graph.proto.input} | set(graph.initializers)
    for node, read in zip(graph.nodes, graph.reads, strict=True):
        if not known.issuperset(read):
            return node, next(name for name in read if name not in known)
        known.update(node.output)
    return None


def _check_reads(graph: Graph, name: str) -> None:
    """Raise ModelError where no order of the nodes lets each read computed tensors: damage, or a cycle."""
    missing = _missing(graph)
    if missing is None or not graph.proto.input:  # no input has its own message
        return
    node, tensor = missing
    cause = "has a cycle" if tensor in graph.producer else "is damaged"
    raise ModelError(
        f"cannot read {name}: node {node.name or node.output[0]!r} ({node.op_type}) reads {tensor!r}, which no node "
        f"ahead of it computes: the graph {cause}; export it again"
    )


def _densify(model: ModelProto) -> None:
    """Convert sparse weights to dense ones."""
    for sparse in model.graph.sparse_initializer:
        indices, values = numpy_helper.to_array(sparse.indices), numpy_helper.to_array(sparse.values)
        dense = np.zeros(tuple(sparse.dims), values.dtype)
        dense[np.unravel_index(indices, dense.shape) if indices.ndim == 1 else tuple(indices.T)] = values
        model.graph.initializer.append(numpy_helper.from_array(dense, sparse.values.name))
    del model.graph.sparse_initializer[:]


def _check_external(tensors: Sequence[TensorProto], path: Path) -> None:
    """Raise ModelError unless all weights are in the model's folder, in files that are long enough."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        location = external_entries(tensor).get("location", "")
        if location == path.name:
            continue
        try:
            info = external_data_helper.ExternalDataInfo(tensor)
            if location not in sizes:
                sizes[location] = _size(path, location)
        except (ValueError, OSError, RuntimeError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(
                f"cannot read {path}: the location of its weight {tensor.name!r} is invalid ({error}); export it again"
            ) from error
        if (info.offset or 0) + (info.length or 0) > sizes[location]:
            raise ModelError(
                f"cannot read {path}: its weight file {location!r} ends before the weight {tensor.name!r} does; "
                "download it again"
            )


def _size(path: Path, location: str) -> int:
    """Return the size of a weight file, after checking where it is."""
    folder = path.parent.resolve()
    file = folder / location
    if not location or Path(location).is_absolute() or not file.resolve().is_relative_to(folder):
        raise ModelError(
            f"refused to read {path}: its weights are in {location!r}, outside its folder; put model and weights into "
            "one folder and export them with a plain file name"
        )
    if not file.is_file():
        raise ModelError(f"cannot read {path}: its weight file {location!r} is missing; put it into the same folder")
    return file.stat().st_size


def description(model: ModelProto) -> dict[str, Any]:
    """Return the options of OnnxModel that `xcam export` wrote into a file: preprocessing, fit, labels, default layer."""
    texts, options = metadata(model), dict[str, Any]()
    with contextlib.suppress(ValueError, TypeError, KeyError):
        if "xcam.preprocessing" in texts:
            values = json.loads(texts["xcam.preprocessing"])
            mean, std = (tuple(float(v) for v in values[key]) for key in ("mean", "std"))
            order = "BGR" if values["order"] == "BGR" else "RGB"
            options["preprocessing"] = Preprocessing(str(values["name"]), float(values["scale"]), mean, std, order)
    with contextlib.suppress(InputError):
        if "xcam.fit" in texts:
            options["fit"] = parse(texts["xcam.fit"])
    with contextlib.suppress(ValueError, TypeError):
        if "xcam.labels" in texts:
            options["labels"] = tuple(str(label) for label in json.loads(texts["xcam.labels"]))
    if texts.get("xcam.layer"):
        options["default_layer"] = texts["xcam.layer"]
    return options
