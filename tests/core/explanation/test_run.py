"""One batch of images at one layer: targets, cotangents and the shapes of the model's values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xcam
from fake import IMAGES, FakeModel
from quadratic import Quadratic
from xcam import ContractError, InputError, ModelError, Preprocessing


def test_a_custom_target(model: FakeModel) -> None:
    class Difference:
        name = "cat − dog"

        def value(self, outputs: Any) -> Any:
            return outputs[:, 0] - outputs[:, 1]

        def cotangent(self, outputs: Any) -> Any:
            return np.float32([[1, -1]])

    e = xcam.explain(model, IMAGES[0], target=Difference())
    assert (e.index, e.label) == (None, "cat − dog")
    np.testing.assert_allclose(e.score, e.outputs[0] - e.outputs[1])
    w = model.weights @ [1, -1] / 24
    np.testing.assert_allclose(e.cam, IMAGES[0].astype(np.float32) @ w, atol=1e-4)


def test_a_cotangent_of_the_wrong_shape_is_refused(model: FakeModel) -> None:
    class Wrong:
        def value(self, outputs: Any) -> Any:
            return outputs[:, 0]

        def cotangent(self, outputs: Any) -> Any:
            return np.ones(2)

    with pytest.raises(InputError, match=r"cotangent of Wrong has shape \(2,\), the outputs \(1, 2\)"):
        xcam.explain(model, IMAGES[0], target=Wrong())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: setattr(t, "activations", t.activations.astype(float)), "returned activations as float64"),
        (lambda t: setattr(t, "gradients", []), "returned 0 gradients for 1 cotangents"),
        (
            lambda t: setattr(t, "gradients", [t.gradients[0][:, :2]]),
            r"returned gradients\[0\] as float32 \(1, 2, 4, 6\)",
        ),
    ],
)
def test_a_backend_that_breaks_the_contract_is_named(model: FakeModel, spoil: Any, message: str) -> None:
    def spoiled(trace: Any) -> Any:
        spoil(trace)
        return trace

    model.spoil = spoiled
    with pytest.raises(ContractError, match=f"backend 'fake' {message}"):
        xcam.explain(model, IMAGES[0])


@pytest.mark.parametrize("shape", [(), (5,), (0, 2)])
def test_outputs_without_a_row_for_each_image(model: FakeModel, shape: tuple[int, ...]) -> None:
    model.spoil_outputs = lambda _: np.zeros(shape, np.float32)
    with pytest.raises(ModelError, match="each image needs its own row"):
        xcam.explain(model, IMAGES[0])


def test_classes_have_probabilities_too(model: FakeModel) -> None:
    model.weights /= 50
    one, two = xcam.explain(model, IMAGES[0], target=["cat", "cat-dog"])
    np.testing.assert_allclose(two.scores, one.scores)
    np.testing.assert_allclose(two.scores.sum(), 1, rtol=1e-5)
    assert (two.index, two.label) == (None, "cat-dog")


def test_a_layer_with_three_spatial_axes_is_refused(model: FakeModel) -> None:
    for shape in ((3, 2, 12, 1), (3, 2, 2, 6)):
        model.layers = [xcam.Layer("features", "Conv", shape)]
        model.spoil = lambda t, shape=shape: xcam.Trace(  # type: ignore[misc]
            t.outputs, t.activations.reshape(1, *shape), [g.reshape(1, *shape) for g in t.gradients]
        )
        with pytest.raises(ModelError, match="needs two spatial axes; choose another layer"):
            xcam.explain(model, IMAGES[0])


def test_one_output_for_each_image(model: FakeModel) -> None:
    model.weights, model.labels, model.output_activation = np.float32([0.01, 0.02, -0.01]), None, "sigmoid"
    trace = model.trace
    model.trace = lambda x, layer, cotangents=None: trace(  # type: ignore[method-assign]
        x, layer, cotangents and (lambda outputs: [v[:, None] for v in cotangents(outputs)])
    )
    model.weights = model.weights[:, None]
    model.spoil_outputs = lambda outputs: outputs[:, 0]
    e = xcam.explain(model, IMAGES[0], score="probability")
    z = IMAGES[0].astype(float).mean(axis=(0, 1)) @ [0.01, 0.02, -0.01]
    p = 1 / (1 + np.exp(-z))
    np.testing.assert_allclose([*e.outputs, *e.scores], [-z, z, 1 - p, p], rtol=1e-5)
    assert e.index == int(z > 0)
    np.testing.assert_allclose(e.score, max(p, 1 - p), rtol=1e-5)
    zero, one = xcam.explain(model, IMAGES[0], target=[0, 1])
    np.testing.assert_array_equal(zero.cam, -one.cam)
    np.testing.assert_allclose([zero.score, one.score], [-z, z], rtol=1e-5)
    model.labels = ["not cat", "cat"]
    assert xcam.explain(model, IMAGES[0], target="cat").index == 1


def test_all_methods_accept_a_cotangent_for_one_of_several_outputs() -> None:
    model = Quadratic()
    model.input = xcam.InputSpec((4, 6), preprocessing=Preprocessing("unit", scale=1 / 255))
    plain = xcam.explain(model, IMAGES[0], target=1, method="smoothgradcam++", method_options={"n": 2})
    outputs, gradient = model.outputs, model.gradient
    model.outputs = lambda a: {"first": outputs(a)[:, :1], "all": outputs(a)}  # type: ignore[method-assign]
    model.gradient = lambda a, v: gradient(a, v["all"])  # type: ignore[method-assign]

    class Second:
        def value(self, outputs: Any) -> Any:
            return outputs["all"][:, 1]

        def cotangent(self, outputs: Any) -> Any:
            return {"all": np.eye(2)[[1] * len(outputs["all"])]}

    result = xcam.explain(model, IMAGES[0], target=Second(), method="smoothgradcam++", method_options={"n": 2})
    np.testing.assert_allclose(result.cam, plain.cam, rtol=1e-5)
