"""The preprocessing, the channels and the augmentation of an input."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import xcam
from fake import IMAGES, FakeModel
from xcam import InputError, Preprocessing, XcamWarning


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
    with pytest.raises(InputError, match=r"takes integers \(int32\), and 'unit' gives fractions; use raw"):
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
