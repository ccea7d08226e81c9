"""From a model and images to explanations, with a backend whose numbers are known."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import xcam
from fake import FakeModel
from quadratic import Quadratic
from xcam import ContractError, InputError, ModelError, OptionError, Preprocessing, XcamWarning, ZeroHeatmapWarning

rng = np.random.default_rng(3)
IMAGES = [rng.integers(0, 256, (4, 6, 3), dtype=np.uint8) for _ in range(3)]


@pytest.fixture
def model() -> FakeModel:
    model = FakeModel()
    model.input = xcam.InputSpec((4, 6), preprocessing=Preprocessing("raw"))
    return model


def by_hand(image: np.ndarray, column: int) -> np.ndarray:
    """Grad-CAM of the fake model: mean gradient w/24 times each channel, ReLU, over its maximum."""
    weights = FakeModel().weights[:, column] / 24
    cam = np.maximum(image.astype(np.float32) @ weights, 0)
    return cam / cam.max()


def test_gradcam_of_the_top_class(model: FakeModel) -> None:
    e = xcam.explain(model, IMAGES[0])
    scores = IMAGES[0].astype(float).mean(axis=(0, 1)) @ model.weights
    top = int(scores.argmax())
    assert (e.index, e.label, e.layer) == (top, ("cat", "dog")[top], "features")
    np.testing.assert_allclose(e.heatmap, by_hand(IMAGES[0], top), atol=1e-6)
    np.testing.assert_allclose(e.outputs, scores, rtol=1e-5)
    np.testing.assert_allclose(e.score, scores[top], rtol=1e-5)
    np.testing.assert_allclose(e.scores.sum(), 1, rtol=1e-5)
    assert (e.method, e.backend, e.model) == ("gradcam", "fake", "fake")


def test_cam_is_raw_and_signed(model: FakeModel) -> None:
    e = xcam.explain(model, IMAGES[0], target=0)
    assert e.cam.min() < 0 < e.cam.max()
    np.testing.assert_array_equal(e.positive, np.maximum(e.cam, 0))
    np.testing.assert_allclose(e.cam, IMAGES[0].astype(np.float32) @ model.weights[:, 0] / 24, atol=1e-4)


def test_probability_scales_the_gradient_by_p_times_1_minus_p(model: FakeModel) -> None:
    model.weights /= 50
    logit = xcam.explain(model, IMAGES[0], target="dog")
    p = xcam.explain(model, IMAGES[0], target="dog", score="probability")
    z = logit.outputs
    e = np.exp(z - z.max())
    e /= e.sum()
    weights = e[1] * (np.eye(2)[1] - e) @ model.weights.T / 24
    np.testing.assert_allclose(p.cam, IMAGES[0].astype(np.float32) @ weights, atol=1e-5)
    np.testing.assert_allclose(p.score, e[1], rtol=1e-5)


def test_a_list_gives_a_list_in_batches_equal_to_one_by_one(model: FakeModel) -> None:
    many = xcam.explain(model, IMAGES * 4)
    assert model.calls == [8, 4]
    for image, e in zip(IMAGES * 4, many, strict=True):
        one = xcam.explain(model, image)
        assert e.index == one.index
        np.testing.assert_allclose(e.heatmap, one.heatmap, atol=1e-6)
    assert xcam.explain(model, []) == []


def test_several_targets_of_one_image_cost_one_pass(model: FakeModel) -> None:
    both = xcam.explain(model, IMAGES[0], target=["cat", 1])
    assert model.calls == [1]
    assert [e.label for e in both] == ["cat", "dog"]
    for column, e in enumerate(both):
        np.testing.assert_allclose(e.heatmap, by_hand(IMAGES[0], column), atol=1e-6)


def test_one_target_for_each_image_or_an_error(model: FakeModel) -> None:
    result = xcam.explain(model, IMAGES, target=[0, 1, 0])
    assert [e.index for e in result] == [0, 1, 0]
    mixed = xcam.explain(model, IMAGES, target=[[0, 1], 1, [0]])
    assert [e.index for e in mixed[0]] == [0, 1]
    assert mixed[1].index == 1
    assert [e.index for e in mixed[2]] == [0]
    with pytest.raises(InputError, match="2 targets for 3 images"):
        xcam.explain(model, IMAGES, target=[0, 1])
    with pytest.raises(InputError, match="an empty list of targets"):
        xcam.explain(model, IMAGES[0], target=[])


def test_a_target_of_ones_own(model: FakeModel) -> None:
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


def test_a_zero_map_is_reported_with_its_cause(model: FakeModel) -> None:
    with pytest.warns(ZeroHeatmapWarning, match="every activation of the layer is zero"):
        e = xcam.explain(model, np.zeros((4, 6, 3), np.uint8), target=0)
    np.testing.assert_array_equal(e.heatmap, 0)
    model.weights[:] = [[-1, 1], [-1, 1], [-1, 1]]
    with pytest.warns(ZeroHeatmapWarning, match="the whole map is negative: it argues against the class"):
        e = xcam.explain(model, IMAGES[0], target=0)
    np.testing.assert_array_equal(e.heatmap, 0)
    assert e.cam.max() < 0
    model.weights[:] = 0
    with pytest.warns(ZeroHeatmapWarning, match="the gradient is zero"):
        xcam.explain(model, IMAGES[0], target=0)


def test_the_random_method_asks_for_no_gradient(model: FakeModel) -> None:
    a, b = (xcam.explain(model, IMAGES[0], target=t, method="random", method_options={"seed": 1}) for t in (0, 1))
    np.testing.assert_array_equal(a.cam, b.cam)
    assert np.any(a.cam != xcam.explain(model, IMAGES[0], method="random", method_options={"seed": 2}).cam)


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


def test_nan_is_an_error(model: FakeModel) -> None:
    model.weights[0, 0] = np.nan
    with pytest.raises(ModelError, match="fake gives NaN or infinity in its outputs at layer 'features'"):
        xcam.explain(model, IMAGES[0])


def test_unknown_layers_methods_and_options(model: FakeModel) -> None:
    with pytest.raises(InputError, match=r"unknown layer 'feature' in fake; known: features, loose, pool"):
        xcam.explain(model, IMAGES[0], layer="feature")
    with pytest.raises(InputError, match="layer 'scores': it has no spatial axes"):
        xcam.explain(model, IMAGES[0], layer="scores")
    with pytest.raises(InputError, match=r"layer 'loose': no output of .* depends on it"):
        xcam.explain(model, IMAGES[0], layer="loose")
    with pytest.raises(InputError, match="unknown method 'gradcamm'"):
        xcam.explain(model, IMAGES[0], method="gradcamm")
    with pytest.raises(InputError, match="method 'gradcam' has no option 'seed'; its options: eigen_smooth"):
        xcam.explain(model, IMAGES[0], method_options={"seed": 1})
    with pytest.raises(OptionError, match=r"explain\(\) has no option 'lyer'; nearest: layer$"):
        xcam.explain(model, IMAGES[0], lyer="features")  # type: ignore[call-overload]
    with pytest.raises(OptionError, match=r"options of a method are given as method_options={'seed': ...}"):
        xcam.explain(model, IMAGES[0], method="random", seed=1)  # type: ignore[call-overload]
    with pytest.raises(InputError, match="unknown class 2: there are 2 classes; give 0 to 1"):
        xcam.explain(model, IMAGES[0], target=2)
    with pytest.raises(InputError, match="unknown class 'bird'"):
        xcam.explain(model, IMAGES[0], target="bird")


def test_a_model_without_a_stated_preprocessing_is_warned_of() -> None:
    with pytest.warns(XcamWarning, match="fake does not state how images are scaled: 'unit'") as record:
        xcam.explain(FakeModel(), IMAGES[0])
    assert record[0].filename == __file__, "the line of the caller"


def test_no_warning_without_a_cause(model: FakeModel) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        xcam.explain(model, IMAGES[0], target=0)


@pytest.mark.parametrize("image", [None, 3, b"x", [IMAGES[0]], IMAGES[0].astype(float), object()])
def test_values_that_are_not_images(model: FakeModel, image: Any) -> None:
    with pytest.raises(InputError, match="give a path, or RGB as uint8"):
        xcam.explain(model, [image] if isinstance(image, list) else image)


def test_arguments_of_the_wrong_type(model: FakeModel) -> None:
    with pytest.raises(InputError, match="unknown layer 3 in fake"):
        xcam.explain(model, IMAGES[0], layer=3)  # type: ignore[call-overload]
    assert xcam.explain(model, IMAGES[0], layer=model.layers[0]).layer == "features"  # type: ignore[call-overload]
    for aim in (xcam.ClassScore(1.5), xcam.ClassScore("cat"), xcam.ClassScore(0, "nonsense"), xcam.ClassScore, 1.5):  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"cannot use .* as a target"):
            xcam.explain(model, IMAGES[0], target=aim)
    for size in (224, (None, 3), (0, 3), (3, 10**9), (3,)):
        with pytest.raises(InputError, match=r"give \(height, width\) in pixels"):
            xcam.load("demo", "keras", size=size)  # type: ignore[arg-type]
    assert xcam.load("demo", "keras", size=[128, 128]).input.size == (128, 128)  # type: ignore[arg-type]
    for options in ({"layout": "sideways"}, {"preprocess": 3}, {"labels": [1, 2]}, {"labels": []}):
        with pytest.raises(InputError):
            xcam.load("demo", "keras", **options)


def test_integer_inputs_take_pixels_unchanged(model: FakeModel) -> None:
    model.input = xcam.InputSpec((4, 6), dtype="int32", preprocessing=Preprocessing("unit", scale=1 / 255))
    with pytest.raises(InputError, match=r"takes integers \(int32\), and 'unit' gives fractions; use raw"):
        xcam.explain(model, IMAGES[0])


def test_a_model_of_one_channel_takes_no_preprocessing_for_three(model: FakeModel) -> None:
    model.input = xcam.InputSpec((4, 6), channels=1, preprocessing=xcam.contract.preprocessing.PRESETS["caffe"])
    with pytest.raises(InputError, match="'caffe' is for three channels, and the model takes one"):
        xcam.explain(model, IMAGES[0])


@pytest.mark.parametrize("shape", [(), (5,), (0, 2)])
def test_outputs_without_a_row_for_each_image(model: FakeModel, shape: tuple[int, ...]) -> None:
    model.spoil_outputs = lambda _: np.zeros(shape, np.float32)
    with pytest.raises(ModelError, match="each image needs a row of its own"):
        xcam.explain(model, IMAGES[0])


def test_classes_have_probabilities_too(model: FakeModel) -> None:
    model.weights /= 50
    one, two = xcam.explain(model, IMAGES[0], target=["cat", "cat-dog"])
    np.testing.assert_allclose(two.scores, one.scores)
    np.testing.assert_allclose(two.scores.sum(), 1, rtol=1e-5)
    assert (two.index, two.label) == (None, "cat-dog")


def test_layers_images_and_targets_give_lists_in_that_shape(model: FakeModel) -> None:
    model.trace, trace = lambda x, layer, cotangents=None: trace(x, "features", cotangents), model.trace  # type: ignore[method-assign]
    result = xcam.explain(model, IMAGES, layer=["features", "pool"], target=[["top2", 0], 1, (None,)], fuse="max")
    assert [[e.index for e in row] if isinstance(row, list) else row.index for row in result][1] == 1
    assert [len(row) if isinstance(row, list) else 0 for row in result] == [3, 0, 1]
    assert {e.layer for e in result[0]} == {"features max pool"}
    assert {e.index for e in result[0][:2]} == {0, 1}
    assert result[0][2].index == 0


def test_invalid_layers_are_refused_before_the_work(model: FakeModel) -> None:
    for layer, options, message in (
        (["features", "features"], {}, "layer 'features' is given twice"),
        (["features", "nowhere"], {}, "unknown layer 'nowhere'"),
        (["features", "pool"], {"fuse": "sum"}, "unknown fusion 'sum'"),
        ([], {}, "an empty list of layers"),
        (None, {"augment": "no"}, "cannot use augment='no'; give True or False"),
    ):
        with pytest.raises(InputError, match=message):
            xcam.explain(model, IMAGES[0], layer=layer, **options)  # type: ignore[call-overload]
    assert model.calls == []


def test_augmenting_integers_keeps_them_integers_and_pixels(model: FakeModel) -> None:
    """0.9 and 1.1 as integers are 0 and 1."""
    model.input = xcam.InputSpec((4, 6), dtype="int32", preprocessing=Preprocessing("raw"))
    seen: list[np.ndarray] = []
    trace = model.trace

    def record(x: Any, layer: str, cotangents: Any = None) -> Any:
        seen.append(x)
        return trace(x.astype(np.float32), layer, cotangents)

    model.trace = record  # type: ignore[method-assign]
    xcam.explain(model, IMAGES[0], target=0, augment=True)
    assert len(seen) == 6
    assert {x.dtype for x in seen} == {np.dtype(np.int32)}
    np.testing.assert_array_equal(seen[1], np.rint(seen[0] * 0.9))
    np.testing.assert_array_equal(seen[5], np.minimum(np.rint(seen[0][..., ::-1] * 1.1), 255))


def test_nan_on_augmented_images_is_an_error(model: FakeModel) -> None:
    model.spoil_outputs = lambda outputs: outputs * np.float32(np.nan if model.calls[1:] else 1)
    with pytest.raises(ModelError, match="fake gives NaN or infinity in its outputs"):
        xcam.explain(model, IMAGES[0], target=0, augment=True)


def test_a_layer_with_one_or_three_spatial_axes_is_refused(model: FakeModel) -> None:
    for shape in ((3, 24), (3, 2, 2, 6)):
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
    assert (e.outputs.shape, e.scores.shape, e.index) == ((1,), (1,), 0)
    np.testing.assert_allclose([e.outputs[0], e.score], [z, 1 / (1 + np.exp(-z))], rtol=1e-5)


def test_a_cotangent_for_one_of_several_outputs_serves_every_method() -> None:
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


def test_the_image_is_a_copy(model: FakeModel) -> None:
    image = IMAGES[0].copy()
    one, (other,) = xcam.explain(model, image, target=0), xcam.explain(model, [image], target=0)
    image[:] = 0
    for e in (one, other):
        np.testing.assert_array_equal(e.image, IMAGES[0])
