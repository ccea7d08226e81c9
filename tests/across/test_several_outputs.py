"""Which of several outputs is explained: the class scores that the others lead to, in every framework."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import xcam
from xcam.contract import validation
from xcam_keras.backend import keras

pytestmark = pytest.mark.filterwarnings("ignore::xcam.errors.ZeroHeatmapWarning")
IMAGE = np.random.default_rng(2).integers(0, 256, (16, 16, 3), dtype=np.uint8)


class Network(nn.Module):
    """A convolution, a vector of features, and a head; `end` returns some of these."""

    def __init__(self, end: Callable[..., Any], classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, classes)
        self.aux = nn.Linear(8, classes)
        self.end = end

    def forward(self, x: torch.Tensor) -> Any:
        a = torch.relu(self.conv(x))
        features = a.mean((2, 3))
        return self.end(a, features, self.head(features), self.aux(features))


def opened(end: Callable[..., Any], framework: str, tmp_path: Path, classes: int = 3) -> Any:
    torch.manual_seed(4)
    model = xcam.load(Network(end, classes), preprocess="unit", size=(16, 16))
    if framework == "torch":
        return model
    model.to_onnx(tmp_path / "m.onnx")
    return xcam.load(tmp_path / "m.onnx", preprocess="unit")


ENDS = {
    "features first": (lambda a, f, z, aux: (f, z), "1"),
    "logits first": (lambda a, f, z, aux: (z, f), "0"),
    "an auxiliary head": (lambda a, f, z, aux: (z, aux), "0"),
    "a map first": (lambda a, f, z, aux: (a, f, z), "2"),
    "probabilities and features": (lambda a, f, z, aux: (f, z.softmax(1)), "1"),
    "names": (lambda a, f, z, aux: {"aux": aux, "embedding": f, "logits": z}, "logits"),
    "an auxiliary head by name": (lambda a, f, z, aux: {"aux_head": aux, "head": z}, "head"),
    "names without order": (lambda a, f, z, aux: {"other": aux, "scores": z}, "scores"),
    "a measure of certainty": (lambda a, f, z, aux: (z.softmax(1), z.softmax(1).max(1).values), "0"),
}


@pytest.mark.parametrize("framework", ["torch", "onnx"])
@pytest.mark.parametrize("case", ENDS)
def test_the_main_output_is_the_first(case: str, framework: str, tmp_path: Path) -> None:
    end, expected = ENDS[case]
    model = opened(end, framework, tmp_path)
    x = np.zeros((1, 3, 16, 16), np.float32)
    assert next(iter(validation.predict(model, x))) == expected
    with pytest.warns(xcam.XcamWarning, match=rf"has \d outputs, and '{expected}' is explained, not "):
        e = xcam.explain(model, IMAGE, layer="conv")
    plain = Network(lambda a, f, z, aux: z)
    torch.manual_seed(4)
    plain.load_state_dict(Network(end).state_dict())
    x = torch.tensor(np.moveaxis(IMAGE, -1, 0)[None] / np.float32(255))
    np.testing.assert_allclose(e.outputs, plain(x)[0].detach(), rtol=1e-4, atol=1e-6)
    assert e.output == expected


@pytest.mark.parametrize("framework", ["torch", "onnx"])
def test_one_logit_behind_features(framework: str, tmp_path: Path) -> None:
    model = opened(lambda a, f, z, aux: (f, z), framework, tmp_path, classes=1)
    assert xcam.explain(model, IMAGE, target=1, output="1").outputs.shape == (2,)
    assert next(iter(model.output_activation)) == "1"


@pytest.mark.parametrize("framework", ["torch", "onnx"])
def test_a_chosen_output_is_explained_by_every_function(framework: str, tmp_path: Path) -> None:
    model = opened(lambda a, f, z, aux: {"logits": z, "aux": aux}, framework, tmp_path)
    chosen = xcam.explain(model, IMAGE, layer="conv", target=2, output="aux")
    by_target = xcam.explain(model, IMAGE, layer="conv", target=xcam.ClassScore(2, output="aux"))
    np.testing.assert_array_equal(chosen.cam, by_target.cam)
    assert (chosen.output, by_target.output, model.chosen_output) == ("aux", "aux", None)
    evaluation = xcam.evaluate(model, [IMAGE], layer="conv", target=2, measures=["deletion"], output="aux")
    assert evaluation.targets == ("2",)
    comparison = xcam.compare([model, model], IMAGE, layer="conv", target=2, output=["aux", "logits"])
    scores = [p.score for p in comparison.images[0].predictions]
    assert scores[0] == pytest.approx(chosen.score) != scores[1]
    with pytest.raises(xcam.InputError, match=r"unknown output .axu. of .*; known: logits, aux"):
        xcam.explain(model, IMAGE, output="axu")


def test_an_output_that_is_chosen_at_load(tmp_path: Path) -> None:
    torch.manual_seed(4)
    module = Network(lambda a, f, z, aux: (z, f, aux))
    model = xcam.load(module, preprocess="unit", size=(16, 16), output="2")
    top = xcam.explain(model, IMAGE, layer="conv")
    assert (top.output, top.outputs.shape) == ("2", (3,))
    xcam.export(model, tmp_path / "e.onnx", layer="conv")
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "e.onnx", providers=["CPUExecutionProvider"])
    x = np.moveaxis(IMAGE, -1, 0)[None] / np.float32(255)
    (gradients,) = session.run(["xcam/gradients"], {session.get_inputs()[0].name: x})
    expected = module.aux.weight[top.index].detach().numpy() / 14**2
    np.testing.assert_allclose(gradients[0].max(axis=(1, 2)), np.maximum(expected, 0), rtol=1e-4, atol=1e-8)


def test_the_main_output_of_a_keras_model() -> None:
    keras.utils.set_random_seed(1)
    source = keras.Input((16, 16, 3))
    features = keras.layers.GlobalAveragePooling2D(name="vector")(keras.layers.Conv2D(8, 3, name="conv")(source))
    auxiliary = keras.layers.Dense(3, name="aux")(features)
    scores = keras.layers.Dense(3, activation="softmax", name="classes")(features)
    model = xcam.load(keras.Model(source, [auxiliary, features, scores]), preprocess="unit")
    with pytest.warns(xcam.XcamWarning, match="has 3 outputs, and 'classes' is explained"):
        e = xcam.explain(model, IMAGE)
    assert e.scores.sum() == pytest.approx(1)
    assert list(model.output_activation.items()) == [("classes", "softmax"), ("aux", None), ("vector", None)]
    assert xcam.explain(model, IMAGE, output="vector").outputs.shape == (8,)
