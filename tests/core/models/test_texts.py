"""Texts as classes: the scores and their gradients, in every backend, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import xcam
from xcam.errors import InputError, ModelError, XcamWarning
from xcam.models.texts import TextClassifier, TextHead, checked_texts, read_embeddings

RANDOM = np.random.default_rng(3)
KERNEL = RANDOM.normal(size=(5, 3, 3, 3)).astype(np.float32)
PROJECTION = RANDOM.normal(size=(4, 5)).astype(np.float32)
EMBEDDINGS = RANDOM.normal(size=(3, 4)).astype(np.float32) * 7
TEXTS = ("a dog", "a cat", "an apple")
X = RANDOM.normal(size=(2, 3, 8, 8)).astype(np.float32)
IMAGE = RANDOM.integers(0, 256, (8, 8, 3), dtype=np.uint8)


class Encoder(nn.Module):
    """An encoder of images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.projection = nn.Conv2d(3, 5, 3, bias=False), nn.ReLU(), nn.Linear(5, 4, bias=False)
        self.conv.weight = nn.Parameter(torch.from_numpy(KERNEL.copy()))
        self.projection.weight = nn.Parameter(torch.from_numpy(PROJECTION.copy()))
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [N, 4]."""
        return self.projection(self.relu(self.conv(image)).mean((2, 3)))  # type: ignore[no-any-return]


def onnx_encoder() -> onnx.ModelProto:
    """Return the encoder in ONNX, with another output ahead of the embedding."""
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["conv"], "conv"),
        helper.make_node("Relu", ["conv"], ["relu"], "relu"),
        helper.make_node("GlobalAveragePool", ["relu"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["last_hidden"], "flatten"),
        helper.make_node("Gemm", ["last_hidden", "weight"], ["image_embeds"], "projection", transB=1),
        helper.make_node("Tanh", ["image_embeds"], ["logits"], "tanh"),
    ]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("image_embeds", TensorProto.FLOAT, ["n", 4]),
        ],
        [numpy_helper.from_array(KERNEL, "kernel"), numpy_helper.from_array(PROJECTION, "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def expected(x: Any, scale: float, bias: float) -> tuple[Any, list[Any]]:
    """Return the scores [N, K] of plain torch, and the gradient of each text's at the ReLU."""
    encoder = Encoder()
    features = encoder.relu(encoder.conv(torch.from_numpy(x))).detach().requires_grad_()
    image = nn.functional.normalize(encoder.projection(features.mean((2, 3))))
    scores = scale * image @ nn.functional.normalize(torch.from_numpy(EMBEDDINGS)).T + bias
    gradients = [torch.autograd.grad(scores[:, k].sum(), features, retain_graph=True)[0].numpy() for k in range(3)]
    return scores.detach().numpy(), gradients


def columns(z: Any) -> list[Any]:
    return [np.tile(np.eye(3, dtype=np.float32)[k], (len(z), 1)) for k in range(3)]


@pytest.mark.filterwarnings("ignore:the heatmap is zero")
@pytest.mark.parametrize("make", [Encoder, onnx_encoder])
@pytest.mark.parametrize(("scale", "bias"), [(20.0, None), (8.0, -3.0)])
def test_scores_and_gradients_are_those_of_plain_torch(make: Any, scale: float, bias: float | None) -> None:
    head = {"embeddings": EMBEDDINGS, "texts": np.array(TEXTS), "scale": scale} | (
        {} if bias is None else {"bias": bias}
    )
    model = xcam.load(make(), embeddings=head, preprocess="unit", size=(8, 8))
    scores, gradients = expected(X, scale, bias or 0.0)
    np.testing.assert_allclose(model.predict(X), scores, rtol=1e-4, atol=1e-5)
    trace = model.trace(X, "relu", columns)
    np.testing.assert_allclose(trace.outputs, scores, rtol=1e-4, atol=1e-5)
    resumed = model.resume(trace, trace.activations, cotangents=columns)
    for k in range(3):
        for one in (trace, resumed):
            np.testing.assert_allclose(one.gradients[k], gradients[k], atol=1e-4 * np.abs(gradients[k]).max())
    assert list(model.labels) == list(TEXTS)
    assert model.output_activation == ("softmax" if bias is None else "sigmoid")
    e = xcam.explain(model, IMAGE, target="a cat")
    assert (e.label, e.layer) == ("a cat", "relu")
    for method in ("scorecam", "ablationcam", "shapleycam"):
        xcam.explain(model, IMAGE, target="an apple", method=method)


def test_torch_and_onnx_look_at_the_same_place() -> None:
    options: dict[str, Any] = {"embeddings": EMBEDDINGS, "texts": "a dog; a cat; an apple", "preprocess": "unit"}
    with pytest.warns(XcamWarning, match="no scale is stated for the similarities of Encoder"):
        models = [xcam.load(Encoder(), size=(8, 8), **options)]
    with pytest.warns(XcamWarning):
        models.append(xcam.load(onnx_encoder(), **options))
    assert xcam.compare(models, IMAGE, target="a cat").verdict == "identical"
    shuffled = models[0].with_shuffled_weights(["conv"], 0)
    assert not np.allclose(shuffled.predict(X), models[0].predict(X))


def test_a_copy_has_an_input_of_its_own() -> None:
    model = TextClassifier(xcam.load(Encoder(), size=(8, 8)), TextHead(TEXTS, EMBEDDINGS))
    other = copy.copy(model)
    other.input = xcam.load(onnx_encoder()).input
    other.labels = None
    assert model.labels == list(TEXTS)
    assert model.input != other.input


def test_texts_and_embeddings_from_files(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a dog\n\n an apple \n")
    assert checked_texts(tmp_path / "texts.txt") == checked_texts(["a dog", "an apple"]) == ("a dog", "an apple")
    assert checked_texts("a dog; an apple;") == ("a dog", "an apple")
    np.savez(tmp_path / "named.npz", **dict(zip(TEXTS, EMBEDDINGS, strict=True)))
    np.savez(tmp_path / "listed.npz", embeddings=EMBEDDINGS, texts=np.array(TEXTS), scale=3.0, bias=-1.0)
    np.save(tmp_path / "bare.npy", EMBEDDINGS)
    for name in ("named.npz", "listed.npz", "bare.npy"):
        head = read_embeddings(tmp_path / name, TEXTS if name == "bare.npy" else None)
        assert head.texts == TEXTS
        np.testing.assert_array_equal(head.embeddings, EMBEDDINGS)
        assert (head.scale, head.bias) == ((3.0, -1.0) if name == "listed.npz" else (1.0, None))


@pytest.mark.parametrize("texts", ["", "a;;b", [], ["a", ""], [1], 3, {"a": 1}])
def test_texts_that_are_none(texts: Any) -> None:
    with pytest.raises(InputError, match="cannot use texts="):
        checked_texts(texts)


def test_refused(tmp_path: Path) -> None:
    (tmp_path / "damaged.npz").write_bytes(b"PK")
    for source, message in (
        (np.zeros((2, 4)), "zero, NaN or infinite"),
        (np.ones(4), "give \\[texts, numbers\\]"),
        (tmp_path / "none.npz", "no such file"),
        (tmp_path / "damaged.npz", "cannot read embeddings"),
        ({"a": np.ones(3), "b": np.ones(4)}, "as embeddings of texts"),
        ({"embeddings": EMBEDDINGS, "texts": np.array(["a"])}, "3 embeddings for 1 texts"),
        ({"embeddings": EMBEDDINGS, "scale": np.ones(2)}, "give one number"),
    ):
        with pytest.raises(InputError, match=message):
            read_embeddings(source, None)
    with pytest.raises(InputError, match="given twice"):
        checked_texts("a;a")
    with pytest.raises(
        InputError, match=r"their embeddings have 6 numbers, and its outputs logits 4, image_embeds 4"
    ):
        xcam.load(onnx_encoder(), embeddings={"embeddings": np.ones((2, 6)), "scale": 9.0}, texts="a;b")
    for source in (Encoder(), onnx_encoder()):
        with pytest.raises(InputError, match=r"it has no text encoder; give the embeddings .* \(--embeddings\)"):
            xcam.load(source, texts="a;b", size=(8, 8))
    model = xcam.load(onnx_encoder(), embeddings={"embeddings": EMBEDDINGS, "scale": 9.0}, texts=list(TEXTS))
    with pytest.raises(ModelError, match="export it without texts"):
        xcam.export(model, tmp_path / "a.onnx")
