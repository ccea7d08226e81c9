"""Classifiers at the end of a network, in the operators of ai.onnx.ml and in their common forms.

skl2onnx and Custom Vision end a file in ZipMap, which turns a row of scores into a dictionary by class name, and in a label:
ArgMax, then a look-up of the name. The scores under them are explained. LinearClassifier and Normalizer are replaced by
standard operators, which can be differentiated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from xcam_onnx.graph import Graph, attribute, metadata

ML = "ai.onnx.ml"
LABELS = "xcam.labels"
LOOK_UPS = ("ArrayFeatureExtractor", "Gather", "LabelEncoder")
SHAPES = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
"""Operators between ArgMax and a label."""
TRANSFORMS = {"NONE": "Identity", "SOFTMAX": "Softmax", "LOGISTIC": "Sigmoid"}


def scores_under(graph: Graph, output: str) -> str | None:
    """Return the tensor of scores that ZipMap shows as dictionaries; None for an output of another kind."""
    node = _producer(graph, output)
    return node.input[0] if node is not None and node.op_type == "ZipMap" else None


def scores_of_label(graph: Graph, output: str) -> str | None:
    """Return the scores [N, classes] of which an output is the label or index of the largest; None for other outputs."""
    node = _producer(graph, output)
    while node is not None and node.op_type in (*LOOK_UPS, *SHAPES):
        source = node.input[1] if node.op_type in ("ArrayFeatureExtractor", "Gather") else node.input[0]
        node = _producer(graph, source)
    if node is None or node.op_type != "ArgMax" or attribute(node, "axis", 0) not in (1, -1):
        return None
    return node.input[0]


def standardise(graph: Graph) -> bool:
    """Replace LinearClassifier and Normalizer by standard operators, and store the class names as metadata.

    Returns:
        Whether the nodes of the model were changed.
    """
    model = graph.model
    names = _class_names(graph)
    if names is not None and LABELS not in metadata(model):
        model.metadata_props.add(key=LABELS, value=json.dumps(names, ensure_ascii=False))
    if not any(node.domain == ML for node in graph.nodes):
        return False
    nodes: list[NodeProto] = []
    for node in graph.nodes:
        nodes += _linear(model, node) if _is(node, "LinearClassifier") else [node]
    nodes = [
        new for node in nodes for new in (_normalised(model, nodes, node) if _is(node, "Normalizer") else [node])
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return True


def _is(node: NodeProto, kind: str) -> bool:
    return node.op_type == kind and node.domain == ML


def _producer(graph: Graph, tensor: str) -> NodeProto | None:
    return graph.nodes[graph.producer[tensor]] if tensor in graph.producer else None


def _class_names(graph: Graph) -> list[str] | None:
    """Return the class names in the order of the scores; None where the graph has none."""
    for node in reversed(graph.nodes):
        if node.domain == ML and node.op_type in ("ZipMap", "LinearClassifier"):
            for name in ("classlabels_strings", "classlabels_int64s", "classlabels_ints"):
                if values := attribute(node, name):
                    return _texts(values)
    for value in graph.proto.output:
        look_up = _producer(graph, value.name)
        while look_up is not None and look_up.op_type in SHAPES:
            look_up = _producer(graph, look_up.input[0])
        if look_up is None or scores_of_label(graph, value.name) is None:
            continue
        if look_up.op_type == "LabelEncoder":
            keys = attribute(look_up, "keys_int64s", [])
            names = _texts(attribute(look_up, "values_strings") or attribute(look_up, "values_int64s") or ())
            by_key = dict(zip(keys, names, strict=False))
            return [by_key[k] for k in range(len(keys))] if set(by_key) == {*range(len(keys))} else None
        constant = graph.constant(look_up.input[0]) if look_up.op_type in LOOK_UPS else None
        if constant is not None and constant.ndim:
            return _texts(constant.ravel().tolist())
    return None


def _texts(values: Sequence[object]) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _add(model: ModelProto, name: str, value: object, dtype: type = np.float32) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), name))
    return name


def _linear(model: ModelProto, node: NodeProto) -> list[NodeProto]:
    """Return the nodes that compute a LinearClassifier; itself where it has another form."""
    labels = attribute(node, "classlabels_strings") or attribute(node, "classlabels_ints") or ()
    transform = TRANSFORMS.get(attribute(node, "post_transform", "NONE"))
    coefficients = np.asarray(attribute(node, "coefficients"), np.float32)
    intercepts = np.asarray(attribute(node, "intercepts") or np.zeros(len(labels)), np.float32)
    if transform is None or not labels or len(intercepts) != len(labels) or len(labels) < 2:
        return [node]
    (source, (label, z)), weights = (node.input[0], node.output), coefficients.reshape(len(labels), -1).T
    read = {name for other in model.graph.node for name in other.input} | {v.name for v in model.graph.output}
    z = z or f"{label}/scores"
    names = [
        _add(model, f"{z}/weights", weights),
        _add(model, f"{z}/intercepts", intercepts),
    ]
    nodes = [
        helper.make_node("Cast", [source], [f"{z}/input"], to=TensorProto.FLOAT),
        helper.make_node("Gemm", [f"{z}/input", *names], [f"{z}/linear"], name=node.name),
        helper.make_node(transform, [f"{z}/linear"], [z]),
    ]
    if transform == "Softmax":
        nodes[-1].attribute.append(helper.make_attribute("axis", 1))
    if label in read:
        texts = attribute(node, "classlabels_strings")
        kind = TensorProto.STRING if texts else TensorProto.INT64
        model.graph.initializer.append(helper.make_tensor(f"{label}/names", kind, [len(labels)], list(labels)))
        nodes += [
            helper.make_node("ArgMax", [f"{z}/linear"], [f"{label}/index"], axis=1, keepdims=0),
            helper.make_node("Gather", [f"{label}/names", f"{label}/index"], [label], axis=0),
        ]
    return nodes


def _normalised(model: ModelProto, nodes: Sequence[NodeProto], node: NodeProto) -> list[NodeProto]:
    """Return the nodes that compute a Normalizer; nothing is to be done where two probabilities sum to 1 already."""
    (source,), (result,), norm = node.input, node.output, attribute(node, "norm", "MAX")
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    if norm == "L1" and _are_opposite(model, nodes, source):
        return [helper.make_node("Identity", [source], [result])]
    reduction = {"L1": "ReduceSum", "L2": "ReduceSum", "MAX": "ReduceMax"}[norm]
    nonnegative = helper.make_node("Abs" if norm == "L1" else "Identity", [source], [f"{result}/size"])
    if norm == "L2":
        nonnegative = helper.make_node("Mul", [source, source], [f"{result}/size"])
    by_input = opset >= (13 if reduction == "ReduceSum" else 18)
    inputs = [f"{result}/size", *([_add(model, f"{result}/axes", [1], np.int64)] if by_input else [])]
    total = f"{result}/total"
    steps = [nonnegative, helper.make_node(reduction, inputs, [total], keepdims=1)]
    if not by_input:
        steps[-1].attribute.append(helper.make_attribute("axes", [1]))
    if norm == "L2":
        steps.append(helper.make_node("Sqrt", [total], [f"{total}/root"]))
        total = f"{total}/root"
    return [*steps, helper.make_node("Div", [source, total], [result])]


def _are_opposite(model: ModelProto, nodes: Sequence[NodeProto], source: str) -> bool:
    """Return whether a tensor consists of the sigmoids of −z and z, from the weights of a linear classifier."""
    by_output = {name: node for node in nodes for name in node.output}
    sigmoid = by_output.get(source)
    linear = by_output.get(sigmoid.input[0]) if sigmoid is not None and sigmoid.op_type == "Sigmoid" else None
    if linear is None or linear.op_type != "Gemm":
        return False
    weights = [numpy_helper.to_array(t) for t in model.graph.initializer if t.name in linear.input[1:]]
    return all(len(w.T) == 2 and np.array_equal(w.T[0], -w.T[1]) for w in weights)
