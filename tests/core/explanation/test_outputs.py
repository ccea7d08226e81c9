"""The activation of a single output, by its values; warnings for several outputs and for embeddings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import xcam
from fake import IMAGES, FakeModel
from xcam.explanation import outputs


def single(model: FakeModel, end: Callable[[np.ndarray], np.ndarray]) -> FakeModel:
    """Return the model with one output, `end` of the mean of all values."""
    model.labels, model.output_activation = None, None
    model.predict = lambda x: end(x.mean(axis=(1, 2, 3))[:, None]).astype(np.float32)  # type: ignore[method-assign]
    return model


def test_an_output_between_0_and_1_on_all_noise_is_a_probability(model: FakeModel) -> None:
    bounded = single(model, lambda z: np.clip(z, 0, 1))
    with pytest.warns(xcam.XcamWarning, match="is taken for the probability of class 1; for a logit give target="):
        assert outputs.activation_of(bounded, np.float32([[0.4]])) == "identity"
    assert outputs.activation_of(bounded, np.float32([[1.4]])) is None


def test_a_linear_output_is_a_logit_also_between_0_and_1(model: FakeModel) -> None:
    assert outputs.activation_of(single(model, lambda z: z), np.float32([[0.4]])) is None


def test_the_noise_is_tried_once_for_a_model(model: FakeModel) -> None:
    calls: list[int] = []
    tried = single(model, lambda z: calls.append(len(z)) or z)  # type: ignore[func-returns-value]
    for _ in range(3):
        outputs.activation_of(tried, np.float32([[0.4]]))
    assert calls == [len(outputs.MAGNITUDES)]


def test_an_activation_that_was_cut_off_is_returned(model: FakeModel) -> None:
    model.output_activation = {"a": None, "b": "softmax"}
    y = {"a": np.zeros((1, 3)), "b": np.zeros((1, 3))}
    assert [outputs.activation_of(model, y, name) for name in ("a", "b", None)] == [None, "softmax", None]


def test_an_embedding_that_is_explained_as_classes(model: FakeModel) -> None:
    with pytest.warns(xcam.XcamWarning, match=r"has the length 1, .* give target=xcam.Similarity\(reference\)"):
        outputs.check(model, xcam.ClassScore(0), np.float32([[0.6, -0.8]]))
    outputs.check(model, xcam.ClassScore(0), np.float32([[0, 1]]))  # a distribution
    outputs.check(model, xcam.Similarity(np.ones(2)), np.float32([[0.6, -0.8]]))


def test_the_first_of_several_outputs_is_named(model: FakeModel) -> None:
    y = {"a": np.zeros((1, 3)), "b": np.zeros((1, 3))}
    with pytest.warns(
        xcam.XcamWarning, match="fake has 2 outputs, and 'a' is explained, not 'b'; choose one with output="
    ):
        outputs.check(model, xcam.ClassScore(0), y)
    outputs.check(model, xcam.ClassScore(0, output="b"), y)
    xcam.explain(model, IMAGES[0])
