"""What a graph says of itself: its input, its outputs and their logits, its layers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from onnx import ModelProto, TensorProto, helper

from xcam.contract import DEFAULT_SIZE, InputSpec, Layer, Layout
from xcam.contract.preprocessing import Preprocessing
from xcam.errors import ModelError
from xcam_onnx import names
from xcam_onnx.graph import FLOATS, Graph, Shape, attribute, inferred, reads
from xcam_onnx.layouts import channel_axes, layout

ENDS = {"Softmax": "softmax", "Sigmoid": "sigmoid"}
SEEN_THROUGH = ("Identity", "Cast", "Dropout")
POINTWISE = {"LayerNormalization", "MatMul", "Gemm", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split"}
"""Operators that treat every token alike, or only move them; besides those that work on single values."""


@dataclass(frozen=True)
class End:
    """An output of the model."""

    name: str
    tensor: str
    """What is given for it: the logits, where a softmax or sigmoid ends the model."""
    activation: str | None


@dataclass
class Facts:
    """What was read off a model."""

    model: ModelProto
    source: str
    """The input."""
    size: tuple[int | None, ...]
    """Its space, None where it is open."""
    channels: int
    axis: int
    """Where its channels are."""
    batch: int | None
    """The batch size that the model is fixed to."""
    ends: list[End]
    wanted: tuple[int, int] | None = None
    """The size that the user asks for."""
    named: dict[str, str] = field(default_factory=dict)
    """Layers that the file's metadata names: layer → tensor."""

    def spec(self, preprocessing: Preprocessing | None) -> InputSpec:
        fixed = all(n is not None for n in self.size)
        given = tuple(int(n) for n in self.size if n is not None) if fixed else self.wanted
        return InputSpec(
            size=given,
            channels=self.channels,
            layout="channels_first" if self.axis == 1 else "channels_last",
            dtype="uint8" if Graph(self.model).dtype(self.source) == TensorProto.UINT8 else "float32",
            preprocessing=preprocessing,
            fixed=fixed,
        )

    def sized(self, spec: InputSpec) -> tuple[Graph, list[int]]:
        """The model for an input of a fixed shape, its shapes as numbers; and that shape."""
        open_ = spec.size or DEFAULT_SIZE
        dims = [self.batch or 2, *(n or open_[min(i, len(open_) - 1)] for i, n in enumerate(self.size))]
        dims.insert(self.axis, self.channels)
        return Graph(inferred(_sized(self.model, self.source, dims))), dims

    def layers(self, graph: Graph) -> dict[str, tuple[Layer, str]]:
        """By name: the layer, and its tensor. `graph` is a sized one."""
        rows = self.batch or 2
        axes = channel_axes(graph, self.source, self.axis)
        needed = _needed(graph, [end.tensor for end in self.ends])
        final = {end.tensor for end in self.ends} | {v.name for v in graph.proto.output}
        found: dict[str, tuple[Layer, str]] = {}
        listed: dict[str, list[str]] = {}
        for name, tensor in self.named.items():
            listed.setdefault(tensor, []).append(name)
        for place in names.places(graph):
            shape = graph.shape(place.tensor)
            axis = axes.get(place.tensor)
            if axis is None or not shape or len(shape) < 2 or not _floating(graph, place.tensor):
                continue
            *outer, own = listed.get(place.tensor, [""])
            if own and not any(own in layer.aliases or own == n for n, (layer, _) in found.items()):
                place = names.Place(own, place.tensor, place.kind, [*outer, place.name, *place.aliases])
            elif listed and not own:
                place.inner = True
            kept: Layout = layout(axis, len(shape), image=len(self.size) == 2)
            whole = [n if isinstance(n, int) else None for n in shape[1:]]
            layer = Layer(
                name=place.name,
                kind=place.kind,
                shape=tuple(whole if axis == 1 else [whole[axis - 1], *whole[: axis - 1], *whole[axis:]]),
                layout=kept,
                is_output=place.tensor in final,
                folds_batch=len(shape) > 2 and shape[0] != rows,
                reaches_output=needed.get(place.tensor, False) if kept == "tokens" else place.tensor in needed,
                aliases=tuple(dict.fromkeys(place.aliases)),
                inner=place.inner,
            )
            found[place.name] = layer, place.tensor
        return found


def facts(model: ModelProto, name: str, given: Layout | None, size: tuple[int, int] | None) -> Facts:
    """Read a model. Raises ModelError where it is not one that takes a picture and says something about it."""
    graph = Graph(model)
    source = _input(graph, name)
    shape = graph.shape(source) or ()
    axis = _channel_axis(graph, source, shape, given)
    space = [n if isinstance(n, int) and n > 0 else None for i, n in enumerate(shape) if i not in (0, axis)]
    channels = shape[axis]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    try:
        named = dict(json.loads(metadata.get("xcam.layers", "{}")))
    except (ValueError, TypeError):
        named = {}
    return Facts(
        model=model,
        source=source,
        size=tuple(space),
        channels=channels if isinstance(channels, int) and channels > 0 else 3,
        axis=axis,
        batch=shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None,
        ends=_ends(graph, name),
        wanted=size,
        named=named,
    )


def _input(graph: Graph, name: str) -> str:
    required = [v.name for v in graph.inputs]
    if len(required) != 1:
        listed = ", ".join(f"{n} {list(graph.shape(n) or ())}" for n in required)
        raise ModelError(
            f"{name} takes {len(required)} inputs ({listed}), and a picture is one; "
            "make the others constants before you export it"
        )
    dtype, shape = graph.dtype(required[0]), graph.shape(required[0])
    if dtype not in FLOATS and not (dtype == TensorProto.UINT8 and shape is not None and len(shape) == 4):
        raise ModelError(
            f"{name} takes {_word(dtype)} "
            f"{list(shape or ())}, and not a picture in floating point; export it from its float input on"
        )
    if shape is None or len(shape) < 3:
        raise ModelError(
            f"the input {required[0]!r} of {name} has the shape {list(shape) if shape is not None else 'unknown'}, "
            "and a picture has [batch, channels, height, width]; export the model with its input's shape"
        )
    return required[0]


def _channel_axis(graph: Graph, source: str, shape: Shape, given: Layout | None) -> int:
    """Told by the user, by a number that only channels have, or by the operator that reads the input."""
    last = len(shape) - 1
    if given is not None:
        return last if given == "channels_last" else 1
    few = [axis for axis in (1, last) if shape[axis] in (1, 3, 4)]
    if len(few) == 1:
        return few[0]
    for node in graph.nodes:
        if source in node.input[:1] and node.op_type == "Transpose":
            perm: Any = attribute(node, "perm", [])
            return last if list(perm[:2]) == [0, last] else 1
    return 1


def _ends(graph: Graph, name: str) -> list[End]:
    found = []
    for value in graph.proto.output:
        if not _floating(graph, value.name) or value.name.startswith("xcam/"):
            continue
        look, activation = value.name, None
        while look in graph.producer:
            node = graph.nodes[graph.producer[look]]
            if node.op_type in ENDS and node.domain == "" and node.input[0] in graph.live:
                look, activation = node.input[0], ENDS[node.op_type]
                break
            if node.op_type not in SEEN_THROUGH or not _floating(graph, node.input[0]):
                break
            look = node.input[0]
        found.append(End(value.name, look if activation else value.name, activation))
    found = [end for end in found if end.tensor in graph.live]
    if not found:
        listed = ", ".join(f"{v.name} ({_word(graph.dtype(v.name))})" for v in graph.proto.output)
        raise ModelError(
            f"{name} gives {listed or 'nothing'}, and a score needs a float output that depends on the picture; "
            "export it with its class scores"
        )
    return sorted(found, key=lambda end: end.name != "logits")


def _word(dtype: int) -> str:
    return TensorProto.DataType.Name(dtype).lower() if dtype in TensorProto.DataType.values()[1:] else "unknown"


def _floating(graph: Graph, tensor: str) -> bool:
    return graph.dtype(tensor) in FLOATS


def _sized(model: ModelProto, source: str, shape: list[int]) -> ModelProto:
    """The model with an input of a fixed shape; what was known of other shapes goes."""
    sized = ModelProto()
    sized.CopyFrom(model)
    for value in sized.graph.input:
        if value.name == source:
            value.CopyFrom(helper.make_tensor_value_info(source, value.type.tensor_type.elem_type, shape))
    del sized.graph.value_info[:]
    for value in sized.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    return sized


def _needed(graph: Graph, ends: list[str]) -> dict[str, bool]:
    """The tensors that the outputs need; of tokens, True where they need more than one of them.

    Behind the last attention of a vision transformer only the class token is read: a map there would be blank.
    """
    found: dict[str, bool] = dict.fromkeys(ends, True)
    for node in reversed(graph.nodes):
        asked = [found[name] for name in node.output if name in found]
        if not asked:
            continue
        full = any(asked)
        shapes = [graph.shape(name) for name in node.input[:1]]
        rank3 = bool(shapes) and shapes[0] is not None and len(shapes[0]) == 3
        if rank3 and _picks_one(graph, node):
            full = False
        elif not full and not _token_wise(graph, node):
            full = True
        for name in reads(node):
            found[name] = found.get(name, False) or full
    return found


def _picks_one(graph: Graph, node: Any) -> bool:
    """Gather or Slice of one entry along the middle of three axes."""
    shape, out = graph.shape(node.input[0]), graph.shape(node.output[0])
    if shape is None or out is None or not isinstance(shape[1], int) or shape[1] < 3:
        return False
    if node.op_type == "Gather":
        indices = graph.constant(node.input[1])
        return attribute(node, "axis", 0) in (1, -2) and indices is not None and indices.size == 1
    return node.op_type == "Slice" and len(out) == 3 and out[1] == 1


def _token_wise(graph: Graph, node: Any) -> bool:
    live = [name for name in node.input if name in graph.live]
    if node.op_type in ("MatMul", "Gemm"):
        return len(live) == 1
    return node.op_type in POINTWISE or (
        graph.shape(node.output[0]) is not None
        and all(len(graph.shape(n) or ()) <= len(graph.shape(node.output[0]) or ()) for n in live)
        and node.op_type in POINTS
    )


POINTS = {
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Relu",
    "Gelu",
    "Erf",
    "Tanh",
    "Sigmoid",
    "Dropout",
    "Identity",
    "Cast",
    "Where",
    "Pow",
    "Sqrt",
}
