"""The preprocessing, the channels and the augmentation of an input."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import xcam
from fake import IMAGES, FakeModel
from xcam import InputError, Preprocessing, XcamWarning
from xcam.explanation.inputs import input_size
from xcam.images.resizing import resize


def test_a_model_without_a_stated_preprocessing_is_warned_of() -> None:
    with pytest.warns(XcamWarning, match="fake does not state how images are scaled: 'unit'") as record:
        xcam.explain(FakeModel(), IMAGES[0])
    assert record[0].filename == __file__, "the line of the caller"


def test_no_warning_without_a_cause(model: FakeModel) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        xcam.explain(model, IMAGES[0], target=0)


def test_integer_inputs_take_pixels_unchanged(model: FakeModel) -> None:
    model.input = xcam.InputSpec((4, 6), dtype="int32", preprocessing=Preprocessing("unit", scale=1 / 255))
    with pytest.raises(
        InputError, match=r"takes integers \(int32\), and 'unit' gives fractions; use preprocess='raw'"
    ):
        xcam.explain(model, IMAGES[0])


def test_a_model_of_one_channel_takes_no_preprocessing_for_three(model: FakeModel) -> None:
    model.input = xcam.InputSpec((4, 6), channels=1, preprocessing=xcam.contract.preprocessing.PRESETS["caffe"])
    with pytest.raises(InputError, match="'caffe' is for three channels, and the model takes one"):
        xcam.explain(model, IMAGES[0])


def test_augmenting_integers_keeps_them_integers_and_pixels(model: FakeModel) -> None:
    """The scales 0.9 and 1.1 would be 0 and 1 as integers."""
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


class Correcting(FakeModel):
    """It states one channel until its layers are read, and then the three that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.input = xcam.InputSpec((4, 6), channels=1, preprocessing=Preprocessing("raw"), channels_known=False)

    @property
    def layers(self) -> Any:
        self.input = xcam.InputSpec((4, 6), preprocessing=Preprocessing("raw"))
        return self._listed

    @layers.setter
    def layers(self, value: Any) -> None:
        self._listed = value


def test_the_input_is_read_after_the_first_run_which_may_correct_it(model: FakeModel) -> None:
    expected = xcam.explain(model, IMAGES[0]).outputs
    np.testing.assert_allclose(xcam.explain(Correcting(), IMAGES[0]).outputs, expected, rtol=1e-5)
    np.testing.assert_allclose(xcam.explain(Correcting(), IMAGES[0], layer=["features"]).outputs, expected, rtol=1e-5)
    compared = xcam.compare([Correcting(), Correcting()], IMAGES[0]).images[0].explanations
    np.testing.assert_allclose([e.outputs for e in compared], [expected, expected], rtol=1e-5)
    evaluation = xcam.evaluate(Correcting(), IMAGES[:1], measures="average-drop")
    assert evaluation.images == ("image 1",)


OPEN = xcam.InputSpec((4, None), preprocessing=Preprocessing("raw"), fixed=True)
SHAPES = [(8, 24), (4, 6), (2, 6), (30, 45)]
"""Widths at a height of 4: 12, 6, 12, 6."""


def open_model() -> FakeModel:
    model = FakeModel()
    model.input = OPEN
    return model


def several_sizes() -> list[np.ndarray]:
    return [np.random.default_rng(k).integers(0, 256, (*shape, 3), dtype=np.uint8) for k, shape in enumerate(SHAPES)]


@pytest.mark.parametrize(
    ("size", "image", "result"),
    [
        (None, (30, 60), (224, 224)),
        ((48, None), (375, 500), (48, 64)),
        ((48, None), (500, 375), (48, 36)),
        ((None, 320), (375, 500), (240, 320)),
        ((None, 320), (10_000, 1), (16384, 320)),
        ((48, None), (10_000, 1), (48, 1)),
        ((48, 50), (30, 60), (48, 50)),
    ],
)
def test_an_open_side_follows_from_the_ratio_of_the_image(size: Any, image: Any, result: Any) -> None:
    assert input_size(xcam.InputSpec(size), (*image, 3)) == result


def test_images_of_several_ratios_are_run_in_their_own_sizes_and_returned_in_order() -> None:
    images, model = several_sizes(), open_model()
    explanations = xcam.explain(model, images, target=0)
    assert [e.cam.shape for e in explanations] == [(4, 12), (4, 6), (4, 12), (4, 6)]
    assert model.calls == [2, 2], "images of one size share a forward pass"
    for e, image, width in zip(explanations, images, (12, 6, 12, 6), strict=True):
        resized = resize(image, (4, width)).astype(np.float32)
        np.testing.assert_allclose(e.outputs, resized.mean(axis=(0, 1)) @ model.weights, rtol=1e-5)
        np.testing.assert_allclose(e.cam, resized @ model.weights[:, 0] / (4 * width), atol=1e-4)
        assert e.heatmap.shape == image.shape[:2]
        single = xcam.explain(model, image, target=0)
        np.testing.assert_array_equal(single.cam, e.cam)


def test_a_comparison_fills_open_sides_from_the_other_models() -> None:
    image = several_sizes()[0]
    wide = FakeModel()
    wide.input = xcam.InputSpec((4, 8), preprocessing=Preprocessing("raw"), fixed=True)
    free = FakeModel()
    free.input = xcam.InputSpec(None, preprocessing=Preprocessing("raw"))
    assert [e.cam.shape for e in xcam.compare([open_model(), free], image).images[0].explanations] == [(4, 12)] * 2
    result = xcam.compare([open_model(), wide, free], image)
    assert [e.cam.shape for e in result.images[0].explanations] == [(4, 8)] * 3
    assert result.findings == ()
    one = FakeModel()
    one.input = xcam.InputSpec((6, None), preprocessing=Preprocessing("raw"), fixed=True)
    assert (
        "the models take images of different sizes: 4×any, 6×any" in xcam.compare([open_model(), one], image).findings
    )


def test_an_evaluation_measures_images_in_their_own_sizes() -> None:
    images, options = several_sizes(), {"measures": ["average-drop", "complexity"], "floor": False, "target": 0}
    together = xcam.evaluate(open_model(), images, **options)
    for measure in ("average-drop", "complexity"):
        (values,) = together.values["gradcam"][measure][None]
        alone = [xcam.evaluate(open_model(), [one], **options).values["gradcam"][measure][0] for one in images]
        np.testing.assert_allclose(values, alone, rtol=1e-6)
