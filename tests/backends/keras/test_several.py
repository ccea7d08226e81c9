"""Keras models with several inputs: the values of the others are fixed when the model is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import several_inputs as network
import xcam
from several_inputs import IMAGE, META, SIDE, VALUES
from xcam.errors import InputError, ModelError, XcamError
from xcam.images.resizing import resize
from xcam_keras.backend import keras

L = keras.layers
X = np.moveaxis(resize(IMAGE, (SIDE, SIDE)), -1, 0)[None].astype(np.float32) / 255


def filled(model: Any) -> Any:
    """Return the model with the weights of the other frameworks' networks."""
    weights = network.WEIGHTS
    values = {
        "conv": weights["conv"].transpose(2, 3, 1, 0),
        "mlp": weights["meta"].T,
        "embedding": weights["domain"],
        "head": weights["head"].T,
    }
    for layer in model._flatten_layers():
        if layer.name in values:
            layer.set_weights([values[layer.name]])
    return model


def functional(kind: str = "list") -> Any:
    image, meta = L.Input((SIDE, SIDE, 3), name="image"), L.Input((5,), name="meta")
    domain = L.Input((), dtype="int32", name="domain")
    features = L.ReLU(name="relu")(L.Conv2D(6, 3, padding="same", use_bias=False, name="conv")(image))
    others = L.Dense(4, "tanh", use_bias=False, name="mlp")(meta), L.Embedding(3, 2, name="embedding")(domain)
    joined = L.Concatenate()([L.GlobalAveragePooling2D()(features), *others])
    inputs = [meta, image, domain] if kind == "list" else {"visual": image, "meta": meta, "domain": domain}
    return filled(keras.Model(inputs, L.Dense(3, use_bias=False, name="head")(joined), name="three"))


class Subclassed(keras.Model):
    """The network, of three arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = L.Conv2D(6, 3, padding="same", use_bias=False, name="conv")
        self.relu = L.ReLU(name="relu")
        self.mlp = L.Dense(4, "tanh", use_bias=False, name="mlp")
        self.embedding, self.head = L.Embedding(3, 2, name="embedding"), L.Dense(3, use_bias=False, name="head")

    def call(self, image: Any, meta: Any, domain: Any) -> Any:
        """Return the scores."""
        features = keras.ops.mean(self.relu(self.conv(image)), (1, 2))
        return self.head(keras.ops.concatenate([features, self.mlp(meta), self.embedding(domain)], 1))


class OfDictionary(Subclassed):
    """The same, of a dictionary."""

    def call(self, batch: Any) -> Any:
        """Return the scores."""
        return super().call(batch["visual"], batch["meta"], batch["domain"])


def subclassed(kind: type[Subclassed]) -> Any:
    model = kind()
    values = [np.zeros(shape, "float32") for shape in ((1, SIDE, SIDE, 3), (1, 5))] + [np.zeros(1, "int32")]
    model(*values) if kind is Subclassed else model(dict(zip(("visual", "meta", "domain"), values, strict=True)))
    return filled(model)


MODELS = {
    "list": lambda: (functional(), {}),
    "dictionary": lambda: (functional("dictionary"), {}),
    "subclassed": lambda: (subclassed(Subclassed), {"size": (SIDE, SIDE)}),
    "subclassed, a dictionary": lambda: (subclassed(OfDictionary), {"size": (SIDE, SIDE), "image_input": "visual"}),
}


@pytest.mark.filterwarnings("ignore:When providing")
@pytest.mark.parametrize("kind", MODELS)
def test_map_and_scores_are_those_of_plain_torch(kind: str) -> None:
    source, options = MODELS[kind]()
    model = xcam.load(source, inputs=VALUES, preprocess="unit", **options)
    for index in (0, 1):
        cam, scores = network.expected(X, index)
        for e in (
            xcam.explain(model, IMAGE, layer="relu", target=index),
            xcam.explain(model, [IMAGE[::-1].copy(), IMAGE, IMAGE], layer="relu", target=index)[1],
        ):
            np.testing.assert_allclose(e.cam, cam, atol=1e-4 * np.abs(cam).max())
            assert e.score == pytest.approx(scores[index], rel=1e-4)
            assert e.notes[-1] == "other inputs are fixed: meta [5], domain = 2"
    assert xcam.explain(model, IMAGE).layer == "relu"
    other = xcam.load(source, inputs=VALUES | {"meta": -META}, preprocess="unit", **options)
    scores = network.expected(X, 0, -META)[1]
    np.testing.assert_allclose(other.predict(np.moveaxis(X, 1, -1))[0], scores, rtol=1e-4, atol=1e-5)


def test_ablation_and_shuffled_weights_keep_the_other_inputs() -> None:
    model = xcam.load(functional(), inputs=VALUES, preprocess="unit")
    twin = xcam.load(network.Network(), inputs=VALUES, preprocess="unit", size=(SIDE, SIDE))
    cams = [xcam.explain(m, IMAGE, layer="relu", method="ablationcam", target=1).cam for m in (model, twin)]
    np.testing.assert_allclose(cams[0], cams[1], atol=1e-3 * np.abs(cams[1]).max())
    shuffled = model.with_shuffled_weights(["head"], 0)
    assert shuffled.predict(np.moveaxis(X, 1, -1)).shape == (1, 3)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's format")
def test_a_saved_model_and_an_exported_file(tmp_path: Path) -> None:
    source = functional()
    source.export(tmp_path / "saved", verbose=False)
    cam, scores = network.expected(X, 1)
    models = [xcam.load(tmp_path / "saved", inputs=VALUES, preprocess="unit")]
    xcam.export(xcam.load(source, inputs=VALUES, preprocess="unit"), tmp_path / "one.onnx")
    models.append(xcam.load(tmp_path / "one.onnx"))
    for model in models:
        for e in (xcam.explain(model, IMAGE, target=1), xcam.explain(model, [IMAGE, IMAGE], target=1)[1]):
            np.testing.assert_allclose(e.cam, cam, atol=1e-4 * np.abs(cam).max())
            assert e.score == pytest.approx(scores[1], rel=1e-4)
    with pytest.raises(ModelError, match=r"the image is image; give the others values \(.*meta float32"):
        xcam.load(tmp_path / "saved")


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({}, ModelError, r"it takes 3 inputs, and the image is image; give the others values \(meta.*--input meta=…"),
        ({"inputs": VALUES | {"mata": 1}}, InputError, "unknown input 'mata' of .*; known: "),
        ({"inputs": {"meta": META[:3], "domain": 1}}, InputError, r"meta.*\[3\]|\[3\].*meta"),
    ],
)
def test_refused(options: dict[str, Any], kind: type[XcamError], message: str) -> None:
    for model in (functional(), subclassed(Subclassed)):
        with pytest.raises(kind, match=message) as raised:
            xcam.explain(xcam.load(model, size=(SIDE, SIDE), **options), IMAGE)
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="its call takes 'batch' alone; if that is a dictionary"):
        xcam.load(subclassed(OfDictionary), inputs=VALUES)
    with pytest.raises(InputError, match="takes int32; give integers"):
        xcam.load(functional(), inputs={"meta": META, "domain": 1.5})
