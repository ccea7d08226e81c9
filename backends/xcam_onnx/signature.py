"""The input, the outputs and the layers of a model, derived from its graph."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

from onnx import ModelProto, TensorProto, helper

from xcam.contract import InputSpec, Layer, Layout
from xcam.contract.layouts import filled, full_size
from xcam.contract.messages import one_input
from xcam.contract.outputs import cut_activation
from xcam.contract.preprocessing import Preprocessing
from xcam.errors import ModelError
from xcam_onnx import classifiers
from xcam_onnx.autodiff import differentiable
from xcam_onnx.channels import channel_axes, convolved_axes, layout
from xcam_onnx.dependence import MOST, STORAGE_ONLY, depending_on_input, passed_by_all, read_by
from xcam_onnx.graph import FIXED, FLOATS, Graph, Shape, attribute, copied, inferred, metadata, type_name
from xcam_onnx.names import ADDED, TensorName, layer_names
from xcam_onnx.standard.form import QUANTIZE, Quantised, StandardForm

OUTPUT_ACTIVATIONS = {"Softmax": "softmax", "Sigmoid": "sigmoid"}
SHAPES = ("Squeeze", "Unsqueeze", "Flatten", "Reshape")
"""Operators that only change the shape: followed where there is one number for each row."""
PIXELS: dict[int, str] = {
    dtype: TensorProto.DataType.Name(dtype).lower()
    for dtype in (
        *(TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16),
        *(TensorProto.INT32, TensorProto.UINT32, TensorProto.INT64, TensorProto.UINT64),
    )
}
"""Integer types that hold 0…255, with NumPy's names."""


@dataclass(frozen=True)
class Output:
    """An output of the model."""

    name: str
    tensor: str
    """The tensor that is returned for it: the logits, where a softmax or sigmoid ends the model."""
    activation: str | None


@dataclass(frozen=True)
class Signature:
    """The input and the outputs of a model."""

    source: str
    """The name of the input."""
    size: tuple[int | None, ...]
    """The spatial size of the input, None where it is open."""
    channels: int
    """A guess where the model leaves it open."""
    channels_known: bool
    axis: int | None
    """The channel axis of the input; None where it has none."""
    dtype: str
    batch: int | None
    """The batch size that the model is fixed to."""
    read_outputs: Callable[[], list[Output]]
    is_batched: bool
    """Whether the first axis of the input is the batch."""
    layers: dict[str, str]
    """Layers that the file's metadata names: layer → tensor."""
    quantised: Quantised | None = None
    """How the input is quantised, where the model takes integers that represent real numbers."""

    @cached_property
    def outputs(self) -> list[Output]:
        """The outputs of floats. They are read when they are first needed, as quantised ones need the standard form."""
        return self.read_outputs()

    @property
    def is_rewritten(self) -> bool:
        """Whether the file has no batch axis: see xcam_onnx.batching."""
        return self.source.endswith(f"/{ADDED}")

    def spec(self, preprocessing: Preprocessing | None, size: tuple[int | None, ...] | None) -> InputSpec:
        """Return the contract's description of the input; `size` is used where the model leaves it open."""
        return InputSpec(
            size=filled(self.size, None) or size,
            channels=self.channels,
            layout="channels_first" if self.axis in (1, None) else "channels_last",
            dtype=self.dtype,
            preprocessing=preprocessing,
            fixed=any(self.size),
            axes=len(self.size),
            channels_known=self.channels_known,
        )

    def sample_shape(self, spec: InputSpec) -> list[int]:
        """Return the shape of a batch that the model takes."""
        sizes = full_size(spec.size, len(self.size))
        shape = [self.batch or 2, *(n or sizes[min(i, len(sizes) - 1)] for i, n in enumerate(self.size))]
        if self.axis is not None:
            shape.insert(self.axis, spec.channels)
        return shape


def read_signature(form: StandardForm, name: str, layout: Layout | None, channels: int | None = None) -> Signature:
    """Read the input and the outputs of a model.

    Args:
        form: The model.
        name: Its name, for messages.
        layout: The layout of the input; None: read it from the graph.
        channels: The number of channels, where the caller gives one; 0: the input has no channel axis.

    Returns:
        The signature; sizes and axes are those of the input itself, which may lack the axes of the batch and of channels.

    Raises:
        ModelError: The model does not take an image, or does not return scores.
    """
    graph = form.ends
    source = _input(form, name)
    shape = graph.shape(source) or ()
    is_batched, axis = _axes(form, source, shape, layout, channels)
    sizes = [n if isinstance(n, int) and n > 0 else None for n in shape]
    stated = 0 if axis is None else sizes[axis]
    try:
        layers = dict(json.loads(metadata(form.ends.model).get("xcam.layers", "{}")))
    except (ValueError, TypeError):
        layers = {}
    quantised = None if graph.dtype(source) in FLOATS else form.quantised.get(form.floats.get(source, ""))
    signature = Signature(
        source=source,
        size=tuple(n for i, n in enumerate(sizes) if i != axis and (i or not is_batched)),
        channels=_filter_channels(form.graph) or 3 if stated is None else stated,
        channels_known=stated is not None,
        axis=axis,
        dtype=PIXELS.get(graph.dtype(source), "float32") if quantised is None else "float32",
        batch=sizes[0] if is_batched else 1,
        read_outputs=partial(_outputs, form, name),
        is_batched=is_batched,
        layers=layers,
        quantised=quantised,
    )
    if not any(graph.dtype(value.name) in FLOATS and value.name in graph.live for value in graph.proto.output):
        assert signature.outputs  # refused here, and not by the first prediction, where there are none
    return signature


def sized(model: ModelProto, source: str, shape: list[int]) -> Graph:
    """Return the graph for an input of a fixed shape, with all shapes inferred again."""
    result = copied(model)
    for value in result.graph.input:
        if value.name == source:
            value.CopyFrom(helper.make_tensor_value_info(source, value.type.tensor_type.elem_type, shape))
    del result.graph.value_info[:]
    for value in result.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    return Graph(inferred(result))


def read_layers(form: StandardForm, graph: Graph, signature: Signature, main: str) -> dict[str, tuple[Layer, str]]:
    """Return by name the layers of a model, each with its tensor in the standard form.

    Args:
        form: The model.
        graph: The graph of the standard form, from `sized`.
        signature: Its input and outputs.
        main: The name of the output that is explained.
    """
    rows = signature.batch or 2
    axes = channel_axes(graph, signature.source, signature.axis, least=0 if signature.is_rewritten else 1)
    outputs = [output.tensor for output in signature.outputs]
    needed = {output.name: read_by(graph, output.tensor, rows) for output in signature.outputs}
    with_gradient, from_input = differentiable(graph, outputs), depending_on_input(graph)
    passed = passed_by_all(graph, signature.source, next(o.tensor for o in signature.outputs if o.name == main))
    final = {*outputs, *(value.name for value in graph.proto.output)}
    result: dict[str, tuple[Layer, str]] = {}
    for entry in layer_names(form):
        shape, axis = graph.shape(entry.tensor), axes.get(entry.tensor)
        if not axis or not shape or len(shape) < 2 or not _is_float(graph, entry.tensor):
            continue
        if signature.layers:
            entry = _renamed(entry, signature.layers, result)
        order = layout(axis, len(shape), image=len(signature.size) == 2)
        sizes = [n if isinstance(n, int) else None for n in shape[1:]]
        least = MOST if order == "tokens" else 0
        leads_to = tuple(output for output, shares in needed.items() if shares.get(entry.tensor, 0) > least)
        layer = Layer(
            name=entry.name,
            kind=entry.kind,
            shape=(sizes[axis - 1], *sizes[: axis - 1], *sizes[axis:]),
            layout=order,
            is_output=entry.tensor in final,
            folds_batch=len(shape) > 2 and shape[0] != rows,
            reaches_output=bool(leads_to),
            leads_to=leads_to,
            differentiable=entry.tensor in with_gradient,
            depends_on_input=entry.tensor in from_input,
            aliases=tuple(dict.fromkeys(entry.aliases)),
            inner=entry.inner or entry.name.startswith(FIXED),
            dtype=_stored_type(form, graph, entry.tensor),
            bypassed=entry.tensor not in passed,
        )
        result[entry.name] = layer, entry.tensor
    return result


def _stored_type(form: StandardForm, graph: Graph, tensor: str) -> str:
    """Return the name of the type in which the runtime stores a layer."""
    quantised = form.quantised.get(tensor)
    dtype = graph.dtype(tensor) if quantised is None else quantised.dtype
    return type_name(dtype)


def _renamed(entry: TensorName, layers: Mapping[str, str], known: Mapping[str, tuple[Layer, str]]) -> TensorName:
    """Return the entry with the innermost layer name that the metadata has for its tensor; without one, it is `inner`."""
    *outer, name = [layer for layer, tensor in layers.items() if tensor == entry.tensor] or [""]
    if not name:
        entry.inner = True
    elif not any(name in layer.aliases or name == other for other, (layer, _) in known.items()):
        return TensorName(name, entry.tensor, entry.kind, [*outer, entry.name, *entry.aliases])
    return entry


def _input(form: StandardForm, name: str) -> str:
    graph = form.ends
    required = [value.name for value in graph.inputs]
    if len(required) != 1:
        raise one_input(name, len(required), "export a model that takes an image")
    (source,) = required
    dtype, shape = graph.dtype(source), graph.shape(source)
    axes = _convolved_axes(form, source)
    is_image = shape is not None and (len(shape) == 4 or (axes is not None and len(axes) == 4))
    if dtype not in FLOATS and not (dtype in PIXELS and is_image) and source not in form.floats:
        raise ModelError(
            f"cannot use {name}: its input {source!r} is {type_name(dtype)} {list(shape or ())}, not an image of floats "
            "or pixels; export the model from its float input on"
        )
    if shape is None or (len(shape) < 3 and axes is None):
        raise ModelError(
            f"cannot use {name}: its input {source!r} has the shape {list(shape) if shape is not None else 'unknown'}, "
            "and an image has [batch, channels, height, width]; export the model with the shape of its input"
        )
    return source


def _convolved_axes(form: StandardForm, source: str) -> list[int | None] | None:
    """Return `convolved_axes`; of the standard form only where the file's own nodes and shapes do not show them."""
    axes = convolved_axes(form.ends, source)
    return convolved_axes(form.graph, source) if axes is None else axes


def _axes(
    form: StandardForm, source: str, shape: Shape, layout: Layout | None, channels: int | None
) -> tuple[bool, int | None]:
    """Return whether the first axis of the input is the batch, and the axis of its channels, None where it has none.

    A model of images may take [N, H, W], which are grey, or a single image, [3, H, W] or [H, W, 3].
    """
    read = _convolved_axes(form, source)
    if read is not None and len(read) > len(shape):
        return read[0] is not None, read[1]
    if read is not None or len(shape) != 3 or not _has_kernel_of_two_axes(form.graph):
        return True, _channel_axis(form, source, shape, layout)
    few = [axis for axis in (0, 2) if shape[axis] in (1, 3, 4)]
    if layout is not None:
        few = [2 if layout == "channels_last" else 0]
    if channels == 0 or (not channels and layout is None and (not few or not isinstance(shape[0], int))):
        return True, None
    return False, few[0] if few else 0


def _has_kernel_of_two_axes(graph: Graph) -> bool:
    """Return whether a convolution has a kernel of two axes; exporters write those of signals with one of length 1."""
    shapes = (graph.shape(node.input[1]) for node in graph.nodes if node.op_type == "Conv" and node.domain == "")
    return any(shape and len(shape) == 4 and 1 not in shape[2:] for shape in shapes)


def _channel_axis(form: StandardForm, source: str, shape: Shape, layout: Layout | None) -> int:
    """Return the channel axis: by the layout, by the operators that read the input, or by a size that only channels have."""
    last = len(shape) - 1
    if layout is not None:
        return last if layout == "channels_last" else 1
    read = _convolved_axes(form, source)
    if read is not None and read[1] in (1, last):
        return read[1]
    few = [axis for axis in (1, last) if shape[axis] in (1, 3, 4)]
    if len(few) == 1:
        return few[0]
    for node in form.graph.nodes:
        if source in node.input[:1] and node.op_type == "Transpose":
            return last if attribute(node, "perm", [])[:2] == [0, last] else 1
    return 1


def _filter_channels(graph: Graph) -> int | None:
    """Return the number of channels that the first convolution takes; None without one."""
    for node in graph.nodes:
        shape = graph.shape(node.input[1]) if node.op_type == "Conv" and node.domain == "" else None
        if shape and isinstance(shape[1], int):
            return shape[1] * int(attribute(node, "group", 1))
    return None


def _outputs(form: StandardForm, name: str) -> list[Output]:
    graph = form.graph

    def producer(tensor: str) -> tuple[str | None, str] | None:
        node = graph.nodes[graph.producer[tensor]] if tensor in graph.producer else None
        if node is not None and tensor in form.quantised:  # look through the quantisation of a float value
            node = graph.nodes[graph.producer[node.input[0]]] if node.input[0] in graph.producer else None
            return (None, node.input[0]) if node is not None and node.op_type == QUANTIZE else None
        if node is None:
            return None
        if node.op_type in OUTPUT_ACTIVATIONS and node.domain == "" and node.input[0] in graph.live:
            return OUTPUT_ACTIVATIONS[node.op_type], node.input[0]
        # One number for each row remains one, whatever its shape.
        shapes = [graph.shape(name) for name in (node.input[0], node.output[0])]
        is_shape = node.op_type in SHAPES and all(shape is not None and shape[1:] in ((), (1,)) for shape in shapes)
        is_storage = node.op_type in STORAGE_ONLY and _is_float(graph, node.input[0])
        return (None, node.input[0]) if is_shape or is_storage else None

    names = [v.name for v in graph.proto.output if not v.name.startswith("xcam/")]
    tensors = {name: classifiers.scores_under(graph, name) or form.floats.get(name, name) for name in names}
    if not any(_is_float(graph, tensor) for tensor in tensors.values()):  # labels alone
        tensors = {name: classifiers.scores_of_label(graph, name) or name for name in names}
    named = {name: tensor for name, tensor in tensors.items() if _is_float(graph, tensor)}
    outputs = [Output(name, *cut_activation(tensor, producer)) for name, tensor in named.items()]
    outputs = [output for output in outputs if output.tensor in graph.live]
    if not outputs:
        listed = ", ".join(f"{v.name} ({type_name(graph.dtype(v.name))})" for v in graph.proto.output)
        raise ModelError(
            f"cannot use {name}: it returns {listed or 'nothing'}, and a score needs a float output that depends on the "
            "image; export it with its class scores"
        )
    return outputs


def _is_float(graph: Graph, tensor: str) -> bool:
    return graph.dtype(tensor) in FLOATS
