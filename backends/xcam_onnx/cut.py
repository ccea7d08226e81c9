"""A model in three graphs: the head up to a layer, the tail behind it, and the tail's gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import ModelProto, ValueInfoProto, helper

from xcam_onnx.autodiff import OPSET, differentiate, ready
from xcam_onnx.graph import Graph, declared, reads

GRADIENT = "xcam/gradients"


@dataclass(frozen=True)
class Gradient:
    """The gradient of the tail as a model of its own."""

    model: ModelProto
    cotangents: dict[str, str]
    """For each output, the name of the input that takes its cotangent."""
    handed: list[str]
    """What else it takes: tensors of the tail, by their names there."""
    straight_through: bool


def gradient(tail: ModelProto, at: str, outputs: Sequence[str]) -> tuple[ModelProto, Gradient]:
    """The tail, giving besides its outputs what its gradient needs; and that gradient. Raises ModelError."""
    tail = ready(tail)
    graph = Graph(tail)
    cotangents = {name: f"xcam/cotangent/{name}" for name in outputs}
    written = differentiate(graph, at, cotangents, GRADIENT)
    free = [name for name in written.taken if name not in cotangents.values()]
    fixed = [name for name in free if name not in graph.live and name not in written.asked]
    if graph.opset.get("", 1) < OPSET:  # what makes a constant may mean something else among newer operators
        fixed = [name for name in fixed if name in graph.initializers]
    handed = [name for name in free if name not in fixed]
    copied = graph.between([], fixed)
    weights = {name for node in copied for name in reads(node)} | set(fixed)

    def info(name: str) -> ValueInfoProto:
        return declared(name, *written.asked[name]) if name in written.asked else graph.info(name)

    body = helper.make_graph(
        [*copied, *written.nodes],
        "gradient",
        [info(name) for name in handed]
        + [declared(source, graph.dtype(name), graph.shape(name)) for name, source in cotangents.items()],
        [declared(GRADIENT, graph.dtype(at), graph.shape(at))],
        [*written.constants, *(t for name, t in graph.initializers.items() if name in weights)],
    )
    opsets = [helper.make_opsetid(d, max(v, OPSET) if not d else v) for d, v in graph.opset.items()]
    model = helper.make_model(body, opset_imports=opsets)
    model.ir_version = max(tail.ir_version, helper.find_min_ir_version_for(opsets, ignore_unknown=True))
    tail.graph.node.extend(written.shapes)
    there = {v.name for v in (*tail.graph.input, *tail.graph.output)}
    tail.graph.output.extend(info(name) for name in handed if name not in there)
    return tail, Gradient(model, cotangents, handed, written.straight_through)
