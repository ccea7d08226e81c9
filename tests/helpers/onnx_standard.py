"""Operators of ONNX Runtime against their expansions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, helper, numpy_helper

from xcam.contract import Array
from xcam_onnx.graph import Graph, copied, inferred
from xcam_onnx.standard import attention, fused  # noqa: F401  (registers the expansions)
from xcam_onnx.standard.registry import Original, Writer, expansion

MICROSOFT = "com.microsoft"


def model_of(
    nodes: list[NodeProto],
    feeds: Mapping[str, Array],
    constants: Mapping[str, Array] | None = None,
    outputs: list[str] | None = None,
    opset: int = 17,
) -> ModelProto:
    """Return a model of nodes; the types of its inputs are those of the feeds, their sizes unknown."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), list(value.shape))
            for name, value in feeds.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs or [name for name in nodes[-1].output if name]],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    domains = [helper.make_opsetid(name, 1) for name in sorted({node.domain for node in nodes} - {""})]
    return inferred(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), *domains], ir_version=10))


def run(model: ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """Run a model without optimisations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


def standard(model: ModelProto) -> ModelProto:
    """Return the model in standard operators, after checking that all of them are."""
    graph = Graph(model)
    writer = Writer(graph.opset[""])
    for node in graph.nodes:
        expand = expansion(node, writer.opset)
        if expand is None:
            writer.nodes.append(node)
        else:
            expand(Original(node, graph, None), writer)
    result = copied(model)
    del result.graph.node[:]
    result.graph.node.extend(writer.nodes)
    result.graph.initializer.extend(writer.constants)
    assert all(
        onnx.defs.has(node.op_type, writer.opset, node.domain) and not node.domain for node in result.graph.node
    )
    return inferred(result)


def both(
    op: str,
    feeds: Mapping[str, Array],
    constants: Mapping[str, Array] | None = None,
    *,
    inputs: list[str] | None = None,
    outputs: list[str] | None = None,
    domain: str = MICROSOFT,
    opset: int = 17,
    **attributes: Any,
) -> tuple[list[Array], list[Array]]:
    """Return the outputs of an operator, and of its expansion.

    Args:
        op: The operator.
        feeds: Its inputs, in order.
        constants: Further inputs, which are constants.
        inputs: The names of its inputs, where some are omitted.
        outputs: The names of its outputs.
        domain: Its domain.
        opset: The version of ONNX's operators.
        attributes: Its attributes.
    """
    names = inputs or [*feeds, *(constants or {})]
    node = helper.make_node(op, names, outputs or ["y"], domain=domain, **attributes)
    model = model_of([node], feeds, constants, opset=opset)
    return run(model, feeds), run(standard(model), feeds)


def agree(pair: tuple[list[Array], list[Array]], tolerance: float = 1e-5) -> None:
    """Assert that both give the same values, in the same type."""
    first, second = pair
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(b.astype(np.float64), a.astype(np.float64), rtol=tolerance, atol=tolerance)


def optimised(model: ModelProto, path: Path, level: str = "ALL") -> ModelProto:
    """Return a model as ONNX Runtime's optimiser saves it in a file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return inferred(onnx.load(path))
