"""The scaling that an ONNX model computes itself: the nodes in front of its first one with a kernel, run alone."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper

from xcam.contract import Array, InputSpec, scaling
from xcam.contract.preprocessing import Preprocessing
from xcam_onnx.graph import Graph, part
from xcam_onnx.sessions import Runtime, array
from xcam_onnx.signature import Signature

KERNELS = {
    *("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "FusedConv", "NhwcFusedConv", "QLinearConvTranspose"),
    *("DeformConv", "MatMul", "Gemm", "FusedGemm", "FusedMatMul", "MatMulInteger", "QLinearMatMul", "Einsum"),
}
"""Operators with a kernel, ONNX Runtime's own included."""
MOVES = {
    *("Identity", "Cast", "Dropout", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Slice"),
    *("Gather", "Split", "Concat", "SpaceToDepth", "Pad", "Resize", "Upsample", "MaxPool", "AveragePool", "Shape"),
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
}
"""Operators that leave plain colours as they are."""
QUANTISERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


def computed(graph: Graph, signature: Signature, spec: InputSpec, runtime: Runtime) -> Preprocessing | None:
    """Return the preprocessing that the model's own scaling needs: see xcam.contract.scaling.computed."""
    source = signature.source
    tensor = _first_kernels_input(graph)
    if tensor is None or all(node.op_type in MOVES for node in _computing(graph, source, tensor)):
        return None
    graph = graph.typed
    dtype = helper.tensor_dtype_to_np_dtype(graph.dtype(source))
    try:
        session = runtime.session(part(graph, [source], [tensor])[0], once=True)

        def reach(x: Array) -> Array:
            return array(session({source: np.repeat(x, signature.batch or 1, 0).astype(dtype)})[tensor])

        return scaling.computed(spec, reach)
    except Exception:  # the part does not run alone, or not on such an input
        return None


def _first_kernels_input(graph: Graph) -> str | None:
    """Return the tensor that the first node with a kernel reads, before it is quantised; None where there is none."""

    def unquantised(tensor: str) -> str:
        while tensor in graph.producer and graph.nodes[graph.producer[tensor]].op_type in QUANTISERS:
            tensor = graph.nodes[graph.producer[tensor]].input[0]
        return tensor

    for node in graph.nodes:
        if node.op_type in KERNELS:
            read = {
                unquantised(name) for name in node.input if name in graph.live
            }  # a dynamic zero point is live too
            if len(read) == 1:
                return read.pop()
    return None


def _computing(graph: Graph, source: str, tensor: str) -> list[NodeProto]:
    """Return the nodes from the input to a tensor, without those that compute constants."""
    nodes = graph.between([source], [tensor]) if tensor != source else []
    return [node for node in nodes if not graph.live.isdisjoint(node.input)]
