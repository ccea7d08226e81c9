"""An OpenVINO graph: its operators by position, how they depend on the input, and parts that are cut out of it.

A clone has the same operators in the same order, so that a position names an operator in both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import openvino
from openvino import op
from openvino import opset13 as ops

from xcam.contract import Array

Tensor = tuple[int, int]
"""An output of an operator: its position, and the index of the output."""
Sizes = tuple[int | None, ...]

FLOATS = ("f32", "f16", "bf16", "f64")
PASSING = ("MaxPool", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Pad")
"""Operators that pass quantised values on as they are."""


class Graph:
    """The operators of a model.

    Args:
        model: The model, which is not changed.
    """

    def __init__(self, model: openvino.Model) -> None:
        self.model = model
        self.ops: list[Any] = model.get_ordered_ops()
        positions = {node.get_name(): k for k, node in enumerate(self.ops)}
        self.inputs: list[list[Tensor]] = [
            [
                (positions[source.get_node().get_name()], source.get_index())
                for source in (entry.get_source_output() for entry in node.inputs())
            ]
            for node in self.ops
        ]
        self.kinds: list[str] = [node.get_type_name() for node in self.ops]
        self.source: Tensor = (self.kinds.index("Parameter"), 0)
        self.results: list[Tensor] = [self.inputs[positions[result.get_name()]][0] for result in model.get_results()]

    def output(self, tensor: Tensor) -> Any:
        """Return a tensor of the model."""
        return self.ops[tensor[0]].output(tensor[1])

    def name(self, tensor: Tensor) -> str:
        """Return the friendly name of the operator that computes a tensor."""
        return str(self.ops[tensor[0]].get_friendly_name())

    def shape(self, tensor: Tensor) -> Sizes | None:
        """Return the shape of a tensor, None for sizes that are open; None where the rank is open."""
        shape = self.output(tensor).get_partial_shape()
        return None if shape.rank.is_dynamic else tuple(n.get_length() if n.is_static else None for n in shape)

    def dtype(self, tensor: Tensor) -> str:
        """Return OpenVINO's name of the type of a tensor."""
        return str(self.output(tensor).get_element_type().get_type_name())

    @cached_property
    def tensors(self) -> list[Tensor]:
        """All tensors in execution order."""
        return [(k, port) for k, node in enumerate(self.ops) for port in range(node.get_output_size())]

    @cached_property
    def readers(self) -> dict[Tensor, list[int]]:
        """The operators that read each tensor."""
        result: dict[Tensor, list[int]] = {}
        for k, inputs in enumerate(self.inputs):
            for tensor in dict.fromkeys(inputs):
                result.setdefault(tensor, []).append(k)
        return result

    def reads(self, position: int) -> list[Tensor]:
        """Return the tensors whose values an operator reads."""
        return [] if self.kinds[position] == "ShapeOf" else self.inputs[position]

    def depending(self, sources: Collection[Tensor], shapes: bool = False) -> set[int]:
        """Return the operators behind some tensors, without those that compute them.

        Args:
            sources: The tensors.
            shapes: Whether operators that read only a shape count.
        """
        known, result = set(sources), set[int]()
        for k in range(len(self.ops)):
            if not known.isdisjoint(self.inputs[k] if shapes else self.reads(k)):
                result.add(k)
                known.update((k, port) for port in range(self.ops[k].get_output_size()))
        return result

    @cached_property
    def live(self) -> set[int]:
        """The operators that depend on the input or on its shape."""
        return self.depending([self.source], shapes=True)

    @cached_property
    def dependent(self) -> set[int]:
        """The operators that depend on the values of the input."""
        return self.depending([self.source])

    def constant(self, tensor: Tensor) -> Array | None:
        """Return the value of a constant, also of a converted one; None for any other tensor."""
        position = tensor[0]
        while self.kinds[position] == "Convert":
            position = self.inputs[position][0][0]
        return np.asarray(self.ops[position].data) if self.kinds[position] == "Constant" else None

    @cached_property
    def weight(self) -> int:
        """The size of all constants in bytes."""
        return sum(node.get_byte_size() for node in self.ops if node.get_type_name() == "Constant")

    def reshaped(self, shape: Sequence[int]) -> Graph:
        """Return a copy for inputs of a shape; −1 for a size that is open."""
        model = self.model.clone()
        model.reshape({model.inputs[0]: openvino.PartialShape(list(shape))})
        return Graph(model)

    def with_static_shapes(self) -> Graph:
        """Return this graph, in which the shapes that are known are constants."""
        for k, node in enumerate(self.ops):
            if self.kinds[k] != "ShapeOf":
                continue
            shape = node.input(0).get_partial_shape()
            if shape.is_static:
                value = np.array(list(shape.to_shape()), np.int32 if self.dtype((k, 0)) == "i32" else np.int64)
                constant = op.Constant(value)
                constant.set_friendly_name(node.get_friendly_name())
                for reader in node.output(0).get_target_inputs():
                    reader.replace_source_output(constant.output(0))
        self.model.validate_nodes_and_infer_types()
        return Graph(self.model)

    def is_quantiser(self, position: int) -> bool:
        """Return whether an operator quantises a value that depends on the input."""
        return self.kinds[position] == "FakeQuantize" and position in self.dependent

    def quantiser(self, tensor: Tensor) -> int | None:
        """Return the position of the FakeQuantize that quantises a value, looked for through operators that pass it on."""
        position = tensor[0]
        while self.kinds[position] in PASSING:
            position = self.inputs[position][0][0]
        return position if self.is_quantiser(position) else None

    def head(self, outputs: Sequence[Tensor]) -> openvino.Model:
        """Return the model from the input to some tensors."""
        copied = Graph(self.model.clone())
        return openvino.Model([copied.output(t) for t in outputs], [copied.ops[self.source[0]]], "head")


@dataclass(frozen=True)
class Tail:
    """A part of a graph behind some tensors.

    Attributes:
        constants: The tensors whose values are given.
        taken: Further tensors that it takes, which are not computed from them.
        computed: The tensors that it computes, in the order of the model's outputs.
        model: The part; None where it computes nothing. Its inputs are `constants` and `taken`, as far as it reads them.
        inputs: The tensors of its inputs.
    """

    constants: tuple[Tensor, ...]
    taken: tuple[Tensor, ...]
    computed: tuple[Tensor, ...]
    model: openvino.Model | None
    inputs: tuple[Tensor, ...]


def tail(
    graph: Graph,
    constants: Sequence[Tensor],
    outputs: Sequence[Tensor],
    multiples: Callable[[Tensor], Sizes | None],
) -> Tail:
    """Cut a graph at some tensors.

    Args:
        graph: The graph.
        constants: The tensors whose values are given.
        outputs: The tensors that are returned.
        multiples: For a tensor, the size of each axis for each image of the batch, None for axes of a fixed size; None
            where they are not known.
    """
    behind = graph.depending(constants)
    computed = [t for t in dict.fromkeys(outputs) if t[0] in behind and t not in constants]
    taken = [t for t in dict.fromkeys(outputs) if t[0] not in behind and t not in constants]
    read: dict[Tensor, None] = {}  # the tensors that enter the part
    shapes: list[int] = []
    queue, visited = [t[0] for t in computed], set[int]()
    while queue:
        position = queue.pop()
        if position in visited:
            continue
        visited.add(position)
        if graph.kinds[position] == "ShapeOf":
            (tensor,) = graph.inputs[position]
            inside = tensor in constants or tensor[0] in behind
            if not inside and multiples(tensor) is not None:
                shapes.append(position)
                continue
        for tensor in graph.inputs[position]:
            outside = tensor[0] not in behind and (tensor[0] in graph.dependent or tensor == graph.source)
            if tensor in constants or outside:
                read[tensor] = None
            else:
                queue.append(tensor[0])
    if not computed:
        return Tail(tuple(constants), tuple(taken), (), None, ())
    copied = Graph(graph.model.clone())
    targets = [copied.output(t) for t in computed]
    parameters = {tensor: _entry(copied, tensor) for tensor in read}
    reference = next((t for t in read if _batch_axis(multiples(t)) is not None), None)
    for position in shapes:
        _replace(copied.output((position, 0)), _shape(copied, position, reference, parameters, multiples))
    model = openvino.Model(targets, list(parameters.values()), "tail")
    model.validate_nodes_and_infer_types()
    needed = [t for t in read if t not in constants]
    return Tail(tuple(constants), tuple(dict.fromkeys([*needed, *taken])), tuple(computed), model, tuple(read))


def _entry(graph: Graph, tensor: Tensor) -> Any:
    """Replace a tensor by a parameter; of a quantised one, the value is quantised again."""
    output = graph.output(tensor)
    parameter = op.Parameter(output.get_element_type(), output.get_partial_shape())
    parameter.set_friendly_name(f"xcam/{graph.name(tensor)}")
    position = graph.quantiser(tensor)
    if position is None:
        _replace(output, parameter.output(0))
        return parameter
    limits = [graph.ops[position].input(k).get_source_output() for k in range(1, 5)]
    rank = len(graph.shape(tensor) or ())
    whole = all(limit.get_partial_shape().is_static for limit in limits)
    fits = all(
        np.prod(list(limit.get_shape())) == 1
        or (tensor[0] == position or graph.kinds[tensor[0]] in ("MaxPool", "Pad"))
        for limit in limits
        if whole
    )
    if not (whole and fits and rank):
        _replace(output, parameter.output(0))
        return parameter
    readers = output.get_target_inputs()
    levels = graph.ops[position].get_attributes()["levels"]
    again = ops.fake_quantize(parameter, *limits, levels)
    for reader in readers:
        reader.replace_source_output(again.output(0))
    return parameter


def _replace(output: Any, other: Any) -> None:
    for reader in output.get_target_inputs():
        reader.replace_source_output(other)


def _batch_axis(multiples: Sizes | None) -> int | None:
    """Return the axis that has one entry for each image, or a number of them."""
    return next((k for k, n in enumerate(multiples or ()) if n is not None), None)


def _shape(
    graph: Graph,
    position: int,
    reference: Tensor | None,
    parameters: Mapping[Tensor, Any],
    multiples: Callable[[Tensor], Sizes | None],
) -> Any:
    """Return the shape of a tensor that is not in the part, for the batch of a reference tensor."""
    dtype: Any = np.int32 if graph.dtype((position, 0)) == "i32" else np.int64
    (tensor,) = graph.inputs[position]
    sizes, known = multiples(tensor) or (), graph.shape(tensor) or ()
    if reference is None:
        return op.Constant(np.array([n or 1 for n in known], dtype)).output(0)
    axis = _batch_axis(multiples(reference))
    assert axis is not None
    each = (multiples(reference) or ())[axis]
    whole = ops.shape_of(parameters[reference], "i32" if dtype is np.int32 else "i64")
    batch: Any = ops.gather(whole, op.Constant(np.array([axis], dtype)), op.Constant(np.array(0, dtype)))
    if each != 1:
        batch = ops.divide(batch, op.Constant(np.array([each], dtype)))
    parts = [
        op.Constant(np.array([n], dtype))
        if multiple is None
        else ops.multiply(batch, op.Constant(np.array([multiple], dtype)))
        for multiple, n in zip(sizes, known, strict=True)
    ]
    return ops.concat(parts, 0).output(0)
