"""A self-explaining model: an ordinary ONNX file that returns its heatmap in addition to its outputs.

The model's inputs and outputs are unchanged. These are added:

    xcam/class_index   an optional input, int64 [N]: the class to explain; −1 (the default): the top class
    xcam/activations   float32 [N, C, *space], the layer's value, channels first
    xcam/gradients     float32 [N, C, *space], of the class's logit with respect to it
    xcam/heatmap       float32 [N, H, W] in 0…1 at the image's size, where a method is named
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import onnx
import onnx.version_converter
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from xcam.contract import Layer, Layout, Model
from xcam.contract.files import whole_or_not
from xcam.contract.layouts import full_size, input_shape, shape_to_channels_first
from xcam.contract.messages import one_line
from xcam.errors import InputError, ModelError, nearest
from xcam.explanation.tokens import Grid, grid
from xcam.models.export import LIMIT
from xcam.models.layers import find
from xcam_onnx.autodiff import OPSET, Ops, TooOld, Value, differentiate, inline_undifferentiable
from xcam_onnx.batching import without_batch
from xcam_onnx.control_flow import set_sizes
from xcam_onnx.graph import Graph, Shape, copied, declared, inferred, part
from xcam_onnx.heatmaps import METHODS, heatmap
from xcam_onnx.recording import Recording
from xcam_onnx.standard.registry import PREFIX
from xcam_onnx.weights import WeightFiles, external_size

TAIL = "xcam/tail/"
"""Begins the names of a tail that is appended in standard form."""
RESULT = "xcam/d/result"
CLASS, ACTIVATIONS, GRADIENTS, HEATMAP = "xcam/class_index", "xcam/activations", "xcam/gradients", "xcam/heatmap"


def export(
    model: Model, recording: Recording, path: Path, layer: str | None, method: str | None, facts: Mapping[str, str]
) -> None:
    """Write a self-explaining model.

    Args:
        model: The model.
        recording: Its graph.
        path: The file.
        layer: The layer to explain; None: the default one.
        method: A key of METHODS; None: no heatmap.
        facts: Further metadata.

    Raises:
        InputError: The method or layer cannot be exported, or the file cannot be written.
        ModelError: The model cannot be differentiated.
    """
    if method is not None and method not in METHODS:
        raise InputError(
            f"cannot export method {method!r}: an ONNX file cannot compute it; {nearest(method, METHODS)}"
        )
    target = find(model, layer)
    proto = copied(recording.form.runnable)
    if recording.sizes:  # at another size, other branches would be right
        set_sizes(proto, recording.signature.source, recording.sizes)
    if any(name.startswith("xcam/") for name in Graph(recording.form.original).producer):
        raise InputError(f"{model.name} is self-explaining already; export the original model")
    try:
        written = _explained(model, recording, proto, target, method)
    except TooOld:
        written = _explained(model, recording, _newer(proto, model.name), target, method)
    without_batch(written, recording.signature.source)
    written.graph.name = written.graph.name or model.name
    written.ir_version = max(written.ir_version, 4)  # before, each weight was an input too
    texts = {"xcam.layer": target.name} | _metadata(model) | ({"xcam.heatmap": method} if method else {})
    helper.set_model_props(
        written, {entry.key: entry.value for entry in written.metadata_props} | texts | dict(facts)
    )
    _save(written, path, recording.runtime.weights)


def _metadata(model: Model) -> dict[str, str]:
    """Return preprocessing, fit and labels as metadata, which xcam_onnx.files.description reads."""
    texts = {}
    if model.input.preprocessing is not None:
        texts["xcam.preprocessing"] = json.dumps(asdict(model.input.preprocessing))
    if model.input.fit is not None:
        texts["xcam.fit"] = str(model.input.fit)
    if model.labels is not None:
        texts["xcam.labels"] = json.dumps(list(model.labels), ensure_ascii=False)
    return texts


def _explained(model: Model, recording: Recording, proto: ModelProto, layer: Layer, method: str | None) -> ModelProto:
    """Return the model with the inputs and outputs that explain it."""
    name = getattr(model, "chosen_output", None) or next(iter(recording.output_activations))
    output = next(output for output in recording.signature.outputs if output.name == name)
    tensor, explained = recording.tensor(layer.name), output.tensor
    if recording.form.is_changed:  # the file's own operators remain, and the tail follows once more in standard form
        explained = _append_tail(proto, recording, tensor, recording.form.ahead(output.tensor))
    proto = inline_undifferentiable(proto, [tensor], [explained])
    graph = recording.with_ranks(proto)
    logits = graph.shape(output.tensor)
    if logits is None or len(logits) not in (1, 2):
        raise ModelError(
            f"cannot export {model.name}: its output {output.name!r} has the shape {list(logits or ())}, not "
            "[batch, classes]; export a model that ends in class scores"
        )
    classes = 2 if len(logits) == 1 or logits[1] == 1 else logits[1]
    if model.labels is not None and isinstance(classes, int) and len(model.labels) != classes:
        raise InputError(
            f"cannot export {model.name}: there are {len(model.labels)} class names for its {classes} classes; give one "
            "for each"
        )
    batch = (graph.shape(recording.signature.source) or (None,))[0]
    ops = Ops(graph, "xcam/e", graph.opset[""])
    cotangent = _cotangent(ops, output.tensor)
    written = differentiate(graph, {tensor: RESULT}, {explained: cotangent.name}, ops.opset)
    first = len(ops.nodes)
    a = _channels_first(ops, ops.forward(tensor), layer.layout)
    g = _channels_first(ops, Value(ops, RESULT, graph.dtype(tensor)), layer.layout)
    ops.named(a, ACTIVATIONS)
    ops.named(g, GRADIENTS)
    shape = (batch, *shape_to_channels_first((graph.shape(tensor) or ())[1:], layer.layout))
    outputs = [declared(name, TensorProto.FLOAT, shape) for name in (ACTIVATIONS, GRADIENTS)]
    if method is not None:
        outputs.append(_heatmap(model, ops.forward(recording.signature.source), layer, a, g, method, batch))
    index = helper.make_tensor(CLASS, TensorProto.INT64, [1], [-1])
    proto.graph.initializer.extend([index, *written.constants, *ops.constants])
    proto.graph.input.append(declared(CLASS, TensorProto.INT64, (batch,)))
    proto.graph.node.extend([*written.shapes, *ops.shapes, *ops.nodes[:first], *written.nodes, *ops.nodes[first:]])
    for value in proto.graph.output:
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            value.CopyFrom(graph.info(value.name))  # a file without it passes the runtime, and not the checker
    proto.graph.output.extend(outputs)
    return proto


def _append_tail(proto: ModelProto, recording: Recording, tensor: str, output: str) -> str:
    """Append the tail from a tensor to an output in standard form, under new names; return the name of its output."""
    tail = part(recording.graph, [tensor], [output])[0].graph
    computed = {name: f"{TAIL}{name}" for node in tail.node for name in node.output if name}
    for node in tail.node:
        for names in (node.input, node.output):
            renamed = [computed.get(name, name) for name in names]
            del names[:]
            names.extend(renamed)
        if not node.name.startswith(PREFIX):  # the original does not have them
            node.name = node.name and f"{TAIL}{node.name}"
    known = {tensor.name for tensor in proto.graph.initializer}
    proto.graph.initializer.extend(t for t in tail.initializer if t.name not in known)
    proto.graph.node.extend(tail.node)
    for value in (*tail.value_info, *tail.output):
        if value.name in computed:
            value.name = computed[value.name]
            proto.graph.value_info.append(value)
    return computed[output]


def _cotangent(o: Ops, logits: str) -> Value:
    """Write a tensor [N, classes]: one at the class, zero elsewhere; for one output z, of the classes −z and z, ±1."""
    z = o.forward(logits)
    index = Value(o, CLASS, TensorProto.INT64)
    if z.rank == 1 or z.dims[1] == 1:
        index = index if z.rank == 1 else o.Unsqueeze(index, [1])
        chosen = o.Where(o.Less(index, 0), o.Cast(o.Greater(z, 0), to=TensorProto.INT64), index)
        return o.Cast(o.Sub(o.Mul(chosen, 2), 1), to=z.dtype)
    chosen = o.Unsqueeze(o.Where(o.Less(index, 0), o.ArgMax(z, axis=1, keepdims=0), index), [1])
    return o.Cast(o.Equal(chosen, o.Unsqueeze(o.range(z.dims[1]), [0])), to=z.dtype)


def _channels_first(o: Ops, value: Value, layout: Layout) -> Value:
    """Convert to float32, [N, C, *space]."""
    if value.dtype != TensorProto.FLOAT:
        value = o.Cast(value, to=TensorProto.FLOAT)
    if layout == "channels_first":
        return value
    rank = 3 if layout == "tokens" else 4
    return o.Transpose(value, perm=[0, rank - 1, *range(1, rank - 1)])


def _heatmap(
    model: Model, source: Value, layer: Layer, a: Value, g: Value, method: str, batch: int | str | None
) -> ValueInfoProto:
    """Write the heatmap's nodes, and return its declaration."""
    o = source.ops
    image: Shape = source.shape
    space = (1, 2) if model.input.layout == "channels_last" or not model.input.channels else (2, 3)
    if len(image) != (4 if model.input.channels else 3):
        raise InputError(
            f"cannot export a heatmap: {model.name} takes no images; leave it out, and use {ACTIVATIONS}"
        )
    tokens = Grid()
    if layer.layout == "tokens":
        size = full_size(model.input.size)
        tokens = grid(
            layer,
            int(layer.shape[1] or 0),
            model.input,
            (1, *input_shape(dataclasses.replace(model.input, size=size, channels=3))),
        )
    elif len(layer.shape) != 3:
        raise InputError(
            f"cannot export a heatmap: layer {layer.name!r} has the shape {layer.shape}, which is not an image's; choose "
            "another, or leave the heatmap out"
        )
    if tokens.size is not None:
        a, g = (o.Reshape(o.Slice(value, [tokens.extra], [2**31 - 1], [2]), [0, 0, *tokens.size]) for value in (a, g))
    heatmap(o, method, a, g, [o.dim(source, axis) for axis in space], HEATMAP)
    return declared(HEATMAP, TensorProto.FLOAT, (batch, *(image[axis] for axis in space)))


def _newer(proto: ModelProto, name: str) -> ModelProto:
    """Convert a model to newer operators. Raises ModelError."""
    try:
        return inferred(onnx.version_converter.convert_version(proto, OPSET))
    except Exception as error:
        raise ModelError(
            f"cannot export {name}: its opset {Graph(proto).opset['']} is too old for the gradient, and cannot be "
            f"converted ({one_line(error)}); export the model again with opset {OPSET}"
        ) from error


def _save(proto: ModelProto, path: Path, weights: WeightFiles) -> None:
    """Write the model to a temporary file next to `path`, check it, then move it."""
    try:
        with whole_or_not(path) as file:
            large = external_size(proto.graph.initializer) > LIMIT
            weights.fetch(proto)
            onnx.save_model(proto, file, save_as_external_data=large, location=f"{path.name}.data")
            onnx.checker.check_model(file, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"cannot export to {path.name}: the written model does not pass onnx.checker ({one_line(error)}); check the "
            "original model with onnx.checker, and repair it"
        ) from error
