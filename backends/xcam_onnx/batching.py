"""Models of a single image, without a batch axis: rewritten as models of batches of one."""

from __future__ import annotations

import dataclasses

from onnx import ModelProto, NodeProto, TensorProto, helper

from xcam_onnx.graph import FLOATS, Graph, copied
from xcam_onnx.names import ADDED
from xcam_onnx.signature import Output, Signature, sized

AXIS = "xcam/batch_axis"
COMPUTED = "xcam/row"
"""Suffix of the values without a batch axis, and prefix of the names of the nodes that compute them."""
AXES_ARE_INPUT = 13
"""The operator set from which on Squeeze and Unsqueeze take their axes as an input."""


def with_batch(model: ModelProto, signature: Signature) -> tuple[ModelProto, Signature]:
    """Return a model that takes batches of one, and its signature; both unchanged where the model takes batches.

    The input is squeezed in front of the first nodes. Each value without a batch axis, as torch exports those of a module
    that was traced with [C, H, W], gets one and loses it again, so that the model can be opened there. A batch axis is
    added to the outputs that have none; the graph's own outputs remain.
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
    opened = set[str]()
    for node in list(result.graph.node[1:]):
        known = shapes.shape(node.output[0]) if node.output and node.output[0] in shapes.live else None
        if known is not None and len(known) > 1 and known[0] != 1 and shapes.dtype(node.output[0]) in FLOATS:
            opened.add(node.output[0])
            _open(result, node, opset)
    outputs = []
    for output in signature.outputs:
        known = shapes.shape(output.tensor)
        if known is not None and (len(known) < 2 or known[0] != 1):
            row = f"{output.tensor}/{ADDED}"
            if output.tensor not in opened:
                result.graph.node.append(_node("Unsqueeze", output.tensor, row, opset))
            output = Output(output.name, row, output.activation)
        outputs.append(output)
    return result, dataclasses.replace(batched, read_outputs=lambda: outputs)


def _open(model: ModelProto, node: NodeProto, opset: int) -> None:
    """Add a batch axis to a node's first output, and remove it again; the layer of the node is the value in between."""
    tensor = node.output[0]
    computed, row = f"{tensor}/{COMPUTED}", f"{tensor}/{ADDED}"
    opened = _node("Unsqueeze", computed, row, opset)
    opened.name = node.name or tensor
    opened.metadata_props.extend(node.metadata_props)
    node.output[0], node.name = computed, f"{COMPUTED}/{node.name or tensor}"
    position = list(model.graph.node).index(node) + 1
    model.graph.node.insert(position, opened)
    model.graph.node.insert(position + 1, _node("Squeeze", row, tensor, opset))


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
        return helper.make_node(op, [source, AXIS], [result], f"{ADDED}/{op}/{source}")
    return helper.make_node(op, [source], [result], f"{ADDED}/{op}/{source}", axes=[0])
