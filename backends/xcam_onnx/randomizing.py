"""A copy of an ONNX model with the weights of some nodes shuffled: for the model-parameter randomisation test.

Values are exchanged within each weight, so that its distribution stays. What was counted and not learnt (the statistics
of a batch norm) stays too.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from xcam.errors import InputError, nearest
from xcam_onnx.graph import Graph
from xcam_onnx.weights import fetch

HOLDS = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "Add": (0, 1),
    "Mul": (0, 1),
    "PRelu": (1,),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "LSTM": (1, 2, 3),
    "GRU": (1, 2, 3),
    "RNN": (1, 2, 3),
}
"""Operators with learnt weights, and which of their inputs these are."""


def parameter_layers(graph: Graph) -> list[str]:
    """The nodes that have weights, by name, in execution order."""
    return list(_weights(graph))


def shuffled(model: ModelProto, folder: Path, parts: Sequence[str], seed: int) -> ModelProto:
    """A copy, its weights in memory, in which those of `parts` are shuffled, each by its own seed. Raises InputError."""
    made = ModelProto()
    made.CopyFrom(model)
    fetch(made, folder)
    graph = Graph(made)
    weights = _weights(graph)
    for name in parts:
        if name not in weights:
            raise InputError(f"no part {name!r} with weights in {made.graph.name}; {nearest(name, weights)}")
        random = np.random.default_rng([seed, zlib.crc32(name.encode())])
        for weight in weights[name]:
            tensor = graph.initializers[weight]
            value = numpy_helper.to_array(tensor)
            order = random.permutation(value.size)
            tensor.CopyFrom(numpy_helper.from_array(value.ravel()[order].reshape(value.shape), weight))
    return made


def _weights(graph: Graph) -> dict[str, list[str]]:
    """By the name of a node its weights; one that several nodes share belongs to the first."""
    seen: set[str] = set()
    found: dict[str, list[str]] = {}
    for node in graph.nodes:
        if not node.output or node.output[0] not in graph.live:
            continue
        given = [node.input[k] for k in HOLDS.get(node.op_type, ()) if k < len(node.input) and node.input[k]]
        held = [_source(graph, name) for name in given if name not in graph.live]
        own = [t.name for t in held if t is not None and t.name not in seen and np.prod(t.dims, dtype=int) > 1]
        seen |= set(own)
        if own:
            name = node.name or node.output[0]
            found[name if name not in found else node.output[0]] = own
    return found


def _source(graph: Graph, name: str) -> TensorProto | None:
    """The initialiser that a constant is made from: moved, converted or dequantised."""
    while name not in graph.initializers:
        node: NodeProto | None = graph.nodes[graph.producer[name]] if name in graph.producer else None
        if node is None or not node.input:
            return None
        name = node.input[0]
    return graph.initializers[name]
