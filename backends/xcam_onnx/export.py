"""A model that explains itself: one ordinary ONNX file that gives, besides its own outputs, where it looked.

Inputs and outputs stay as they are. There come:

    xcam/class_index   an input that may be left out, int64 [N]: the class to explain; −1 (the default): the top class
    xcam/activations   float32 [N, C, *space], the layer's value, channels first
    xcam/gradients     float32 [N, C, *space], of the class's logit with respect to it
    xcam/heatmap       float32 [N, H, W] in 0…1 at the picture's size, where a method is named
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import onnx
import onnx.version_converter
from onnx import ModelProto, TensorProto, helper

from xcam.contract.files import whole_or_not
from xcam.errors import InputError, ModelError, first_line, nearest
from xcam.explanation.tokens import Grid, grid
from xcam.models.export import LIMIT
from xcam.models.layers import find
from xcam_onnx.autodiff import OPSET, Ops, TooOld, Value, differentiate, ready
from xcam_onnx.graph import Graph, declared, inferred
from xcam_onnx.heatmaps import METHODS, heatmap
from xcam_onnx.model import OnnxModel
from xcam_onnx.weights import bytes_of, fetch

CLASS, ACTIVATIONS, GRADIENTS, HEATMAP = "xcam/class_index", "xcam/activations", "xcam/gradients", "xcam/heatmap"


def export(model: OnnxModel, path: Path, layer: str | None, method: str | None, facts: Mapping[str, str]) -> None:
    """Write the model that explains itself. facts: further metadata. Raises InputError and ModelError."""
    if method is not None and method not in METHODS:
        raise InputError(f"an exported file cannot work out {method!r}; {nearest(method, METHODS)}")
    place = find(model, layer)
    tensor = model.tensor(place.name)
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    if any(name.startswith("xcam/") for name in Graph(proto).producer):
        raise InputError(f"{model.name} explains itself already; export the model that it was made from")
    try:
        written = _explained(model, proto, place, tensor, method)
    except TooOld:
        written = _explained(model, _newer(model, proto), place, tensor, method)
    told = {"xcam.layer": place.name} | _told(model) | ({"xcam.heatmap": method} if method else {})
    written.graph.name = written.graph.name or model.name
    written.ir_version = max(written.ir_version, 4)  # before, each weight was an input too
    _describe(written, told | dict(facts))
    _save(written, path, model.folder)


def _told(model: OnnxModel) -> dict[str, str]:
    """What is known of a model, as metadata: `xcam -m` reads it back."""
    found = {}
    if model.input.preprocessing is not None:
        found["xcam.preprocessing"] = json.dumps(asdict(model.input.preprocessing))
    if model.labels is not None:
        found["xcam.labels"] = json.dumps(list(model.labels), ensure_ascii=False)
    return found


def _explained(model, proto, place, tensor, method) -> ModelProto:  # type: ignore[no-untyped-def]
    end = model.ends[0]
    proto = ready(proto, tensor, [end.tensor])
    graph = model.learnt(Graph(proto))
    opset = graph.opset[""]
    logits = graph.shape(end.tensor)
    if logits is None or len(logits) != 2:
        raise ModelError(
            f"the output {end.name!r} of {model.name} has the shape {list(logits or ())}, and a class needs "
            "[batch, classes]; export a model that ends in class scores"
        )
    if model.labels is not None and isinstance(logits[1], int) and len(model.labels) != logits[1]:
        raise InputError(
            f"there are {len(model.labels)} class names for the {logits[1]} classes of {model.name}; give one for each"
        )
    batch = (graph.shape(model.source) or (None,))[0]
    ops = Ops(graph, "xcam/e", opset)
    cotangent = _cotangent(ops, graph, end.tensor)
    written = differentiate(graph, tensor, {end.tensor: cotangent.name}, "xcam/d/result", opset)
    first = len(ops.nodes)
    a = _channels_first(ops, ops.forward(tensor), place.layout)
    g = _channels_first(ops, Value(ops, written.gradient, graph.dtype(tensor)), place.layout)
    ops.named(a, ACTIVATIONS)
    ops.named(g, GRADIENTS)
    shape = _shape(graph, tensor, place.layout)
    outputs = [declared(name, TensorProto.FLOAT, (batch, *shape[1:])) for name in (ACTIVATIONS, GRADIENTS)]
    if method is not None:
        outputs.append(_heatmap(ops, model, place, a, g, method, batch))
    index = helper.make_tensor(CLASS, TensorProto.INT64, [1], [-1])
    proto.graph.initializer.extend([index, *written.constants, *ops.constants])
    proto.graph.input.append(declared(CLASS, TensorProto.INT64, (batch,)))
    proto.graph.node.extend([*written.shapes, *ops.shapes, *ops.nodes[:first], *written.nodes, *ops.nodes[first:]])
    proto.graph.output.extend(outputs)
    return proto


def _cotangent(o: Ops, graph: Graph, logits: str) -> Value:
    """One where the class is, zero elsewhere: [N, classes]."""
    z = o.forward(logits)
    index = Value(o, CLASS, TensorProto.INT64)
    chosen = o.Where(o.Less(index, 0), o.ArgMax(z, axis=1, keepdims=0), index)
    chosen = o.Unsqueeze(chosen, [1])
    hit = o.Equal(chosen, o.Unsqueeze(o.range(z.dims[1]), [0]))
    return o.Cast(hit, to=z.dtype)


def _channels_first(o: Ops, value: Value, layout: str) -> Value:
    """float32, [N, C, *space]."""
    if value.dtype != TensorProto.FLOAT:
        value = o.Cast(value, to=TensorProto.FLOAT)
    if layout == "channels_first":
        return value
    rank = 3 if layout == "tokens" else 4
    return o.Transpose(value, perm=[0, rank - 1, *range(1, rank - 1)])


def _shape(graph: Graph, tensor: str, layout: str) -> tuple[int | str | None, ...]:
    shape = graph.shape(tensor) or ()
    return shape if layout == "channels_first" else (shape[0], shape[-1], *shape[1:-1])


def _heatmap(o: Ops, model: OnnxModel, place, a: Value, g: Value, method: str, batch):  # type: ignore[no-untyped-def]
    """The heatmap's nodes, and its declaration."""
    source = o.forward(model.source)
    picture = list(source.shape)
    space = (1, 2) if model.input.layout == "channels_last" else (2, 3)
    if len(picture) != 4:
        raise InputError(f"{model.name} takes no pictures: leave the heatmap out, and use {ACTIVATIONS}")
    tokens = Grid()
    if place.layout == "tokens":
        size = model.input.size or (0, 0)
        tokens = grid(place, int(place.shape[1] or 0), model.input, (1, 3, *size) if space[0] == 2 else (1, *size, 3))
    elif len(place.shape) != 3:
        raise InputError(
            f"layer {place.name!r} is no picture (shape {place.shape}); choose another, or leave the heatmap out"
        )
    if tokens.size is not None:
        a, g = (o.Reshape(o.Slice(value, [tokens.extra], [2**31 - 1], [2]), [0, 0, *tokens.size]) for value in (a, g))
    sizes = [o.dim(source, axis) for axis in space]
    heatmap(o, method, a, g, sizes, HEATMAP)
    return declared(HEATMAP, TensorProto.FLOAT, (batch, *(picture[axis] for axis in space)))


def _newer(model: OnnxModel, proto: ModelProto) -> ModelProto:
    """The model in newer operators. Raises ModelError."""
    try:
        return inferred(onnx.version_converter.convert_version(proto, OPSET))
    except Exception as error:
        raise ModelError(
            f"{model.name} is of opset {Graph(proto).opset['']}, which is too old for its gradient, and cannot be "
            f"converted ({first_line(error)}); export it anew with opset {OPSET}"
        ) from error


def _describe(proto: ModelProto, facts: Mapping[str, str]) -> None:
    kept = [entry for entry in proto.metadata_props if entry.key not in facts]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    for key, value in facts.items():
        proto.metadata_props.add(key=key, value=value)


def _save(proto: ModelProto, path: Path, weights: Path) -> None:
    """Write beside `path`, check, then move."""
    try:
        with whole_or_not(path) as file:
            large = bytes_of(proto.graph.initializer) > LIMIT
            fetch(proto, weights)
            onnx.save_model(proto, file, save_as_external_data=large, location=f"{path.name}.data")
            onnx.checker.check_model(file, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"the model for {path.name} does not pass onnx.checker ({first_line(error)}); check the model "
            "that it is made of with onnx.checker, and mend it"
        ) from error
