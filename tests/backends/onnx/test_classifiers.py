"""Files that end in ZipMap, labels, LinearClassifier and Normalizer: scores, class names and gradients by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

import onnx_small as small
import xcam

ML = "ai.onnx.ml"
NAMES = ["ant", "bee", "cat", "dog", "elk"]
X = small.images(3)


def node(kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> NodeProto:
    ml = kind in ("ZipMap", "LinearClassifier", "Normalizer", "ArrayFeatureExtractor", "LabelEncoder")
    return helper.make_node(kind, inputs, outputs, kind, domain=ML if ml else "", **attributes)


def dictionaries(name: str, key: int = TensorProto.STRING) -> ValueInfoProto:
    entry = helper.make_map_type_proto(key, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    return ValueInfoProto(name=name, type=helper.make_sequence_type_proto(entry))


def tensor(name: str, kind: int = TensorProto.FLOAT, shape: Any = ("N", 5)) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


SOFTMAX = node("Softmax", ["y"], ["p"], axis=1)
ARGMAX = node("ArgMax", ["p"], ["i"], axis=1, keepdims=0)
LABEL = tensor("label", TensorProto.STRING, None)
ENDS: dict[str, tuple[list[NodeProto], list[ValueInfoProto], str, list[str]]] = {
    "ZipMap": (
        [
            *(SOFTMAX, node("ZipMap", ["p"], ["loss"], classlabels_strings=NAMES), ARGMAX),
            node("ArrayFeatureExtractor", ["names", "i"], ["label"]),
        ],
        [LABEL, dictionaries("loss")],
        "loss",
        NAMES,
    ),
    "ZipMap of integers": (
        [SOFTMAX, node("ZipMap", ["p"], ["loss"], classlabels_int64s=[3, 5, 7, 9, 11])],
        [dictionaries("loss", TensorProto.INT64)],
        "loss",
        ["3", "5", "7", "9", "11"],
    ),
    "Gather of names": (
        [SOFTMAX, ARGMAX, node("Gather", ["names", "i"], ["label"])],
        [LABEL, tensor("p")],
        "p",
        NAMES,
    ),
    "LabelEncoder": (
        [SOFTMAX, ARGMAX, node("LabelEncoder", ["i"], ["label"], keys_int64s=[0, 1, 2, 3, 4], values_strings=NAMES)],
        [LABEL, tensor("p")],
        "p",
        NAMES,
    ),
    "the label alone": ([SOFTMAX, ARGMAX, node("Gather", ["names", "i"], ["label"])], [LABEL], "label", NAMES),
}


def build(steps: list[NodeProto], outputs: list[ValueInfoProto], opset: int = 18) -> onnx.ModelProto:
    model = small.build(steps, outputs=outputs, opset=opset)
    names = helper.make_tensor("names", TensorProto.STRING, [5], NAMES)
    model.graph.initializer.append(names)
    model.opset_import.append(helper.make_opsetid(ML, 2 if opset > 12 else 1))
    return model


def run(model: onnx.ModelProto, names: list[str]) -> list[Any]:
    """Return outputs of the file itself, without xcam."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(names, {"x": X})


@pytest.mark.parametrize("case", ENDS)
def test_the_scores_under_names_and_labels(case: str, tmp_path: Path) -> None:
    steps, outputs, name, labels = ENDS[case]
    proto = build([*small.nodes(), *steps], outputs)
    model = xcam.load(proto, preprocess="unit")
    y = small.by_hand(X)["y"]
    np.testing.assert_allclose(model.predict(X), y, rtol=1e-5, atol=1e-5)
    assert (list(model.labels), model.output_activation) == (labels, "softmax")
    assert list(model.recording.output_activations) == [name]
    trace = model.trace(X, "r1", lambda z: [np.eye(5, dtype=np.float32)[[1, 1, 1]]])
    np.testing.assert_allclose(trace.gradients[0], small.gradient(X, "r1", [1, 1, 1]), atol=1e-6)
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert xcam.explain(model, image, layer="r1", target=labels[2]).index == 2
    path = xcam.export(proto, tmp_path / "e.onnx", layer="r1")
    written = onnx.load(path)
    assert [v.name for v in written.graph.output][: len(outputs)] == [v.name for v in outputs]
    one = run(written, ["xcam/gradients"])[0]
    np.testing.assert_allclose(one, small.gradient(X, "r1", y.argmax(1)), atol=1e-6)
    assert list(xcam.load(path).labels) == labels


def test_labels_of_the_caller_come_first() -> None:
    steps, outputs, *_ = ENDS["ZipMap"]
    labels = ["1st", "2nd", "3rd", "4th", "5th"]
    assert xcam.load(build([*small.nodes(), *steps], outputs), labels=labels).labels == labels


@pytest.mark.parametrize("opset", [11, 18])
@pytest.mark.parametrize("norm", ["L1", "L2", "MAX", None])
@pytest.mark.parametrize("transform", ["NONE", "SOFTMAX", "LOGISTIC"])
def test_a_linear_classifier_as_standard_operators(transform: str, norm: str | None, opset: int) -> None:
    w = small.arrays()
    options = {"coefficients": w["w3"].ravel().tolist(), "intercepts": w["b3"].tolist()}
    steps = small.nodes()[:-1]
    steps.append(
        node(
            "LinearClassifier", ["f"], ["label", "z"], classlabels_strings=NAMES, post_transform=transform, **options
        )
    )
    steps.append(node("Normalizer", ["z"], ["p"], norm=norm) if norm else node("Identity", ["z"], ["p"]))
    proto = build(steps, [LABEL, tensor("p")], opset)
    model = xcam.load(proto, preprocess="unit")
    label, p = run(proto, ["label", "p"])
    assert list(model.labels) == NAMES
    assert [NAMES[i] for i in small.by_hand(X)["y"].argmax(1)] == label.tolist()
    outputs = model.predict(X)
    result = xcam.targets.probabilities(outputs, model.output_activation) if transform != "NONE" else outputs
    if norm is None or transform == "NONE" or model.output_activation is None:
        result = outputs if transform == "NONE" or model.output_activation is None else result
        np.testing.assert_allclose(result, p, rtol=1e-4, atol=1e-6)
    if norm is None:
        trace = model.trace(X, "r1", lambda z: [np.eye(5, dtype=np.float32)[[1, 1, 1]]])
        np.testing.assert_allclose(trace.gradients[0], small.gradient(X, "r1", [1, 1, 1]), atol=1e-6)


def test_two_opposite_rows_of_a_linear_classifier_are_the_logits_of_a_sigmoid() -> None:
    w = small.arrays()["w3"][0]
    options = {"coefficients": [*-w, *w], "intercepts": [-0.2, 0.2], "post_transform": "LOGISTIC"}
    steps = small.nodes()[:-1]
    steps.append(node("LinearClassifier", ["f"], ["label", "z"], classlabels_ints=[0, 1], **options))
    steps.append(node("Normalizer", ["z"], ["p"], norm="L1"))
    steps.append(node("ZipMap", ["p"], ["loss"], classlabels_int64s=[0, 1]))
    outputs = [tensor("label", TensorProto.INT64, None), dictionaries("loss", TensorProto.INT64)]
    proto = build(steps, outputs)
    model = xcam.load(proto, preprocess="unit")
    z = small.by_hand(X)["r2"].mean((2, 3)) @ w + 0.2
    np.testing.assert_allclose(model.predict(X), np.stack([-z, z], 1), rtol=1e-4, atol=1e-6)
    assert model.output_activation == "sigmoid"
    p = [[entry[0], entry[1]] for entry in run(proto, ["loss"])[0]]
    np.testing.assert_allclose(xcam.targets.probabilities(model.predict(X), "sigmoid"), p, rtol=1e-4)
