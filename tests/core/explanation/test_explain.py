"""`explain` with a backend whose values are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xcam
from fake import IMAGES, FakeModel
from xcam import InputError, OptionError


def by_hand(image: np.ndarray, column: int) -> np.ndarray:
    """Return Grad-CAM of the fake model: ReLU of the channels weighted by w/24, divided by the maximum."""
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


def test_the_random_method_computes_no_gradient(model: FakeModel) -> None:
    a, b = (xcam.explain(model, IMAGES[0], target=t, method="random", method_options={"seed": 1}) for t in (0, 1))
    np.testing.assert_array_equal(a.cam, b.cam)
    assert np.any(a.cam != xcam.explain(model, IMAGES[0], method="random", method_options={"seed": 2}).cam)


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


@pytest.mark.parametrize("image", [None, 3, b"x", [IMAGES[0].tolist()], object()])
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
    for size in (224, (None, None), (0, 3), (3, 10**9), (), (1, 2, 3, 4)):
        with pytest.raises(InputError, match=r"give \(height, width\) in pixels"):
            xcam.load("demo", "keras", size=size)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="demo takes images of 128×128, not 3; leave size out"):
        xcam.load("demo", "keras", size=(3,))
    assert xcam.load("demo", "keras", size=[128, 128]).input.size == (128, 128)  # type: ignore[arg-type]
    for options in ({"layout": "sideways"}, {"preprocess": 3}, {"labels": [1, 2]}, {"labels": []}):
        with pytest.raises(InputError):
            xcam.load("demo", "keras", **options)


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


def test_the_image_is_a_copy(model: FakeModel) -> None:
    image = IMAGES[0].copy()
    one, (other,) = xcam.explain(model, image, target=0), xcam.explain(model, [image], target=0)
    image[:] = 0
    for e in (one, other):
        np.testing.assert_array_equal(e.image, IMAGES[0])


def test_several_targets_of_one_image_cost_one_pass(model: FakeModel) -> None:
    both = xcam.explain(model, IMAGES[0], target=["cat", 1])
    assert model.calls == [1]
    assert [e.label for e in both] == ["cat", "dog"]
    for column, e in enumerate(both):
        np.testing.assert_allclose(e.heatmap, by_hand(IMAGES[0], column), atol=1e-6)
