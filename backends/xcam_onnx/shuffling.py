"""A copy of an ONNX model with shuffled weights: see xcam.contract.shuffling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from xcam.contract.shuffling import shuffled, to_shuffle
from xcam_onnx.graph import Graph, copied
from xcam_onnx.standard import nchwc
from xcam_onnx.weights import WeightFiles

PARAMETERS = {
    "Gemm": (0, 1, 2),
    "PRelu": (1,),
    **dict.fromkeys(("MatMul", "Add", "Mul"), (0, 1)),
    **dict.fromkeys(("Conv", "ConvTranspose", "FusedConv", "FusedGemm"), (1, 2)),
    **dict.fromkeys(("ConvInteger", "MatMulInteger", "FusedMatMul", "MatMulNBits", "MatMulIntegerToFloat"), (1,)),
    **dict.fromkeys(("QLinearConv", "QLinearConvTranspose"), (3, 8)),
    **dict.fromkeys(("QGemm",), (3, 6)),
    **dict.fromkeys(("QLinearMatMul",), (3,)),
    **dict.fromkeys((f"{kind}Normalization" for kind in ("Batch", "Instance", "Layer", "Group")), (1, 2)),
    **{"SkipLayerNormalization": (2, 3, 4), "SkipSimplifiedLayerNormalization": (2, 3), "RMSNormalization": (1,)},
    **{"SimplifiedLayerNormalization": (1,), "BiasGelu": (1,), "FastGelu": (1,), "NhwcFusedConv": (1, 2)},
    **{"Attention": (1, 2), "MultiHeadAttention": (3,)},
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2, 3)),
}
"""Operators with learnt weights, and the indices of these among their inputs."""


def parameter_layers(model: ModelProto) -> list[str]:
    """Return the names of the nodes with learnt weights, in execution order."""
    return list(_weights(Graph(model)))


def with_shuffled_weights(
    model: ModelProto, weights: WeightFiles, parts: Sequence[str], seed: int, name: str
) -> ModelProto:
    """Return a copy with its weights in memory, those of `parts` shuffled.

    Raises:
        InputError: A part is unknown.
    """
    result = copied(model)
    weights.fetch(result)
    for tensor, generator in to_shuffle(_weights(Graph(result)), parts, seed, name):
        value = np.array(numpy_helper.to_array(tensor))
        used = value != 0 if nchwc.is_name(tensor.name) else np.ones(value.shape, bool)  # the others fill up a block
        value[used] = shuffled(value[used], generator)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return result


def _weights(graph: Graph) -> dict[str, list[TensorProto]]:
    """Return the weights by the name of their node; one that several nodes share belongs to the first."""
    seen: set[str] = set()
    weights: dict[str, list[TensorProto]] = {}
    for node in graph.nodes:
        if not node.output or node.output[0] not in graph.live:
            continue
        names = [node.input[k] for k in PARAMETERS.get(node.op_type, ()) if k < len(node.input) and node.input[k]]
        tensors = [_initializer(graph, name) for name in names if name not in graph.live]
        new = [t for t in tensors if t is not None and t.name not in seen and math.prod(t.dims) > 1]
        seen.update(tensor.name for tensor in new)
        if new:
            name = node.name or node.output[0]
            weights[name if name not in weights else node.output[0]] = new
    return weights


def _initializer(graph: Graph, name: str) -> TensorProto | None:
    """Return the initializer that a constant is computed from: transposed, cast or dequantised."""
    while name not in graph.initializers:
        node = graph.nodes[graph.producer[name]] if name in graph.producer else None
        if node is None or not node.input:
            return None
        name = node.input[0]
    return graph.initializers[name]
