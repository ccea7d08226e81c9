"""Models of a single image, without a batch axis: rewritten as models of batches of one."""

from __future__ import annotations

import dataclasses

from onnx import ModelProto, NodeProto, TensorProto, helper

from xcam_onnx.graph import Graph, copied
from xcam_onnx.signature import Output, Signature, sized

AXIS = "xcam/batch_axis"
ADDED = "xcam/batch"
"""Suffix of the tensors that are added, and prefix of the nodes' names."""
AXES_ARE_INPUT = 13
"""The operator set from which on Squeeze and Unsqueeze take their axes as an input."""


def with_batch(model: ModelProto, signature: Signature) -> tuple[ModelProto, Signature]:
    """Return a model that takes batches of one, and its signature; both unchanged where the model takes batches.

    The input is squeezed in front of the first nodes. A batch axis is added to the outputs that have none; the graph's own
    outputs remain.
    """
    if signature.is_batched:
        return model, signature
    batched = dataclasses.replace(
        signature,
        source=f"{signature.source}/{ADDED}",
        axis=None if signature.axis is None else signature.axis + 1,
        is_batched=True,
    )
    shape = batched.sample_shape(signature.spec(None, None))
    shapes = sized(model, signature.source, shape[1:])
    result = copied(model)
    for value in result.graph.input:
        if value.name == signature.source:
            dims = list(value.type.tensor_type.shape.dim)
            value.name = batched.source
            value.type.tensor_type.shape.ClearField("dim")
            value.type.tensor_type.shape.dim.add(dim_value=1)
            value.type.tensor_type.shape.dim.extend(dims)
    opset = Graph(model).opset.get("", 1)
    if opset >= AXES_ARE_INPUT:
        result.graph.initializer.append(helper.make_tensor(AXIS, TensorProto.INT64, [1], [0]))
    result.graph.node.insert(0, _node("Squeeze", batched.source, signature.source, opset))
    outputs = []
    for output in signature.outputs:
        known = shapes.shape(output.tensor)
        if known is not None and (len(known) < 2 or known[0] != 1):
            row = f"{output.tensor}/{ADDED}"
            result.graph.node.append(_node("Unsqueeze", output.tensor, row, opset))
            output = Output(output.name, row, output.activation)
        outputs.append(output)
    return result, dataclasses.replace(batched, outputs=outputs)


def is_rewritten(signature: Signature) -> bool:
    """Return whether a signature is from `with_batch`, for a model of a single image."""
    return signature.source.endswith(f"/{ADDED}")


def without_batch(model: ModelProto, source: str) -> None:
    """Restore the input of a model from `with_batch`, in place: a single image, to which the batch axis is added."""
    if not source.endswith(f"/{ADDED}"):
        return
    original = source.removesuffix(f"/{ADDED}")
    for value in model.graph.input:
        if value.name == source:
            value.name = original
            del value.type.tensor_type.shape.dim[0]
    squeeze = next(node for node in model.graph.node if node.output[:1] == [original])
    model.graph.node.remove(squeeze)
    opset = Graph(model).opset.get("", 1)
    if opset >= AXES_ARE_INPUT and AXIS not in Graph(model).initializers:
        model.graph.initializer.append(helper.make_tensor(AXIS, TensorProto.INT64, [1], [0]))
    model.graph.node.insert(0, _node("Unsqueeze", original, source, opset))


def _node(op: str, source: str, result: str, opset: int) -> NodeProto:
    if opset >= AXES_ARE_INPUT:
        return helper.make_node(op, [source, AXIS], [result], f"{ADDED}/{op}")
    return helper.make_node(op, [source], [result], f"{ADDED}/{op}", axes=[0])
