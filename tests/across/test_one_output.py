"""A model with one output has two classes, with the logits −z and z: the same in every framework, by plain gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import xcam
from xcam_keras.backend import keras

IMAGE = np.random.default_rng(2).integers(0, 256, (16, 16, 3), dtype=np.uint8)
LAYER = {"torch": "features", "keras": "conv2d", "onnx": "features"}


class Network(nn.Module):
    """A convolution, ReLU, mean, and one unit."""

    def __init__(self, end: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 1)
        self.end = end

    def forward(self, x: torch.Tensor) -> Any:
        return self.end(self.head(torch.relu(self.features(x)).mean((2, 3))))


def network(end: Callable[[torch.Tensor], torch.Tensor], logit: float = -0.7) -> Network:
    """Return a network whose logit for IMAGE is the given one."""
    torch.manual_seed(1)
    module = Network(end).eval()
    plain = Network(nn.Identity()).eval()
    plain.load_state_dict(module.state_dict())
    with torch.no_grad():
        module.head.bias += logit - plain(batch())[0, 0]
    return module


def batch() -> torch.Tensor:
    return torch.tensor(np.moveaxis(IMAGE, -1, 0)[None] / np.float32(255))


def ported(module: Network, activation: str | None) -> Any:
    source = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu", name="conv2d")(source)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(source, keras.layers.Dense(1, activation=activation)(x))
    kernel = module.features.weight.detach().numpy().transpose(2, 3, 1, 0)
    head = module.head.weight.detach().numpy().T
    model.set_weights([kernel, module.features.bias.detach().numpy(), head, module.head.bias.detach().numpy()])
    return model


def gradcam(module: Network, sign: int) -> np.ndarray:
    """Grad-CAM of ±z by plain torch, at the convolution."""
    a = module.features(batch()).detach().requires_grad_()
    z = module.head(torch.relu(a).mean((2, 3)))[0, 0]
    (gradient,) = torch.autograd.grad(sign * z, a)
    return np.asarray((gradient.mean((2, 3), keepdim=True) * a).sum(1)[0].detach())


def opened(framework: str, module: Network, activation: str | None, tmp_path: Path, **options: Any) -> Any:
    if framework == "keras":
        return xcam.load(ported(module, activation), preprocess="unit", **options)
    model = xcam.load(module, preprocess="unit", size=(16, 16), **options)
    if framework == "torch":
        return model
    model.to_onnx(tmp_path / "m.onnx")
    return xcam.load(tmp_path / "m.onnx", preprocess="unit", **options)


@pytest.mark.parametrize("framework", ["torch", "keras", "onnx"])
@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_one_output_is_two_classes(framework: str, activation: str | None, tmp_path: Path) -> None:
    module = network(torch.sigmoid if activation else nn.Identity())
    model = opened(framework, module, activation, tmp_path, labels=["cat", "dog"])
    p = 1 / (1 + np.exp(0.7))
    top = xcam.explain(model, IMAGE, layer=LAYER[framework])
    assert (top.label, top.index) == ("cat", 0)
    np.testing.assert_allclose([*top.outputs, *top.scores, top.score], [0.7, -0.7, 1 - p, p, 0.7], rtol=1e-5)
    if (
        framework == "keras"
    ):  # its layer includes the ReLU, whose map is that of the convolution where this is positive
        return
    cat, dog, both, first, second = xcam.explain(
        model, IMAGE, layer=LAYER[framework], target=["cat", 1, "0-1", "top2", "dog"]
    )[:5]
    np.testing.assert_allclose(cat.cam, gradcam(module, -1), atol=1e-6)
    np.testing.assert_allclose(dog.cam, gradcam(module, 1), atol=1e-6)
    np.testing.assert_allclose(both.cam, 2 * gradcam(module, -1), atol=1e-6)
    assert ([e.index for e in (cat, dog, first, second)], both.score) == ([0, 1, 0, 1], pytest.approx(1.4, rel=1e-5))
    zero, one = xcam.explain(model, IMAGE, layer=LAYER[framework], target=[0, 1], score="probability")
    np.testing.assert_allclose(zero.cam, p * (1 - p) * gradcam(module, -1), atol=1e-6)
    np.testing.assert_allclose([zero.score, one.score], [1 - p, p], rtol=1e-5)


@pytest.mark.parametrize("framework", ["torch", "onnx"])
@pytest.mark.parametrize("end", [lambda z: torch.sigmoid(z).squeeze(1), lambda z: torch.sigmoid(z).view(-1)])
def test_a_sigmoid_before_a_change_of_shape(end: Any, framework: str, tmp_path: Path) -> None:
    module = network(end)
    model = opened(framework, module, None, tmp_path)
    e = xcam.explain(model, IMAGE, layer="features")
    p = 1 / (1 + np.exp(0.7))
    np.testing.assert_allclose([e.index, *e.outputs, *e.scores], [0, 0.7, -0.7, 1 - p, p], rtol=1e-5)
    np.testing.assert_allclose(e.cam, gradcam(module, -1), atol=1e-6)
    trace = model.trace(np.asarray(batch()), "features")
    np.testing.assert_allclose(model.resume(trace, trace.activations).outputs, trace.outputs, atol=1e-6)


@pytest.mark.parametrize("framework", ["torch", "keras", "onnx"])
def test_one_label_is_that_of_class_1(framework: str, tmp_path: Path) -> None:
    model = opened(framework, network(torch.sigmoid), "sigmoid", tmp_path, labels=["tumour"])
    assert [e.label for e in xcam.explain(model, IMAGE, target=[None, "tumour"])] == ["not tumour", "tumour"]


def test_a_regression_value_is_the_score_of_class_1() -> None:
    model = xcam.load(network(nn.Identity(), 37.5), preprocess="unit", size=(16, 16))
    assert xcam.explain(model, IMAGE, target=1).score == pytest.approx(37.5)
    assert xcam.explain(model, IMAGE, target=xcam.Element((0,))).score == pytest.approx(37.5)


def smooth(z: torch.Tensor) -> torch.Tensor:
    return (torch.tanh(z / 2) + 1) / 2


def test_a_probability_whose_sigmoid_is_not_recognised() -> None:
    model = xcam.load(network(smooth), preprocess="unit", size=(16, 16))
    p = 1 / (1 + np.exp(0.7))
    with pytest.warns(xcam.XcamWarning, match="taken for the probability of class 1"):
        e = xcam.explain(model, IMAGE)
    np.testing.assert_allclose([e.index, *e.outputs, *e.scores, e.score], [0, 1 - p, p, 1 - p, p, 1 - p], rtol=1e-5)
    as_logit = xcam.explain(model, IMAGE, target=xcam.ClassScore(1, activation="sigmoid"))
    assert as_logit.score == pytest.approx(p, rel=1e-5)


def test_a_logit_between_0_and_1_is_a_logit() -> None:
    e = xcam.explain(xcam.load(network(nn.Identity(), 0.3), preprocess="unit", size=(16, 16)), IMAGE)
    np.testing.assert_allclose([e.index, *e.scores], [1, 1 / (1 + np.exp(0.3)), 1 / (1 + np.exp(-0.3))], rtol=1e-5)


def test_a_model_of_one_output_and_its_file_agree(tmp_path: Path) -> None:
    module = network(torch.sigmoid)
    models = [opened(framework, module, "sigmoid", tmp_path) for framework in ("torch", "keras", "onnx")]
    comparison = xcam.compare(models, IMAGE, layer=["features", "conv2d", "features"])
    assert [p.index for p in comparison.images[0].predictions] == [0, 0, 0]
    assert comparison.of((0, 2)) == "identical"
