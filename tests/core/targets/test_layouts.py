"""Boxes, probabilities and predicted classes in each layout, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from xcam.targets.layouts import BoxLayout, MapLayout

ROWS = np.array([[[8, 8, 4, 4, 0.5, 0.2, 0.6], [4, 4, 2, 2, 0.1, 0.9, 0.3]]])
"""Centre, size, objectness, two classes of two boxes."""


@pytest.mark.parametrize("axis", [1, 2])
def test_probabilities_are_multiplied_by_the_objectness(axis: int) -> None:
    layout = BoxLayout(2, 2, "cxcywh", objectness=True, axis=axis)
    y = ROWS if axis == 1 else np.moveaxis(ROWS, 1, 2)
    np.testing.assert_allclose(layout.probabilities(y)[0], [[0.1, 0.3], [0.09, 0.03]])
    np.testing.assert_array_equal(layout.corners_in(y, (16, 16))[0], [[6, 6, 10, 10], [3, 3, 5, 5]])
    number, score = layout.best(y)
    assert (number.tolist(), score[0].tolist()) == ([[1, 0]], pytest.approx([0.3, 0.09]))
    assert layout.text == "2 classes, 2 boxes, xywh, objectness"


def test_the_background_of_a_softmax_has_no_score_and_boxes_are_fractions_of_the_input() -> None:
    outputs = {"scores": np.array([[[1.0, 3.0, 0.0]]]), "boxes": np.array([[[0.5, 0.25, 1.0, 0.75]]])}
    layout = BoxLayout(1, 3, relative=True, background=0, link="softmax", output="scores", boxes="boxes")
    total = np.exp([1.0, 3.0, 0.0]).sum()
    np.testing.assert_allclose(layout.probabilities(outputs)[0, 0], [0, np.exp(3) / total, 1 / total])
    np.testing.assert_array_equal(layout.corners_in(outputs, (100, 200))[0], [[100, 25, 200, 75]])
    assert layout.text == "2 classes, 1 box, relative xyxy, no objectness, background 0"


def test_selected_boxes_have_one_class_each() -> None:
    y = np.array([[[0, 0, 4, 4, 0.9, 3], [1, 1, 2, 2, 0.4, 0]]])
    layout = BoxLayout(2, 0, selected=True)
    number, score = layout.best(y)
    assert (number.tolist(), score.tolist()) == ([[3, 0]], [[0.9, 0.4]])
    np.testing.assert_array_equal(layout.probabilities(y)[0], [[0, 0, 0, 0.9], [0.4, 0, 0, 0]])
    separate = {"b": y[..., :4], "s": y[..., 4], "n": y[..., 5]}
    layout = BoxLayout(2, 5, output="s", boxes="b", numbers="n", selected=True)
    np.testing.assert_array_equal(layout.best(separate)[0], [[3, 0]])
    assert layout.probabilities(separate).shape == (1, 2, 5)


@pytest.mark.parametrize("last", [False, True])
def test_predicted_classes_of_a_map(last: bool) -> None:
    z = np.array([[[[1.0, 2.0]], [[3.0, 0.0]]]])  # [1, 2, 1, 2]
    y = np.moveaxis(z, 1, -1) if last else z
    assert MapLayout(2, (1, 2), last).predicted(y).tolist() == [[[1, 0]]]
    one = np.array([[[[0.3, -0.3]]]])
    assert MapLayout(1, (1, 2), link="sigmoid").predicted(one).tolist() == [[[0, -1]]]
    np.testing.assert_allclose(MapLayout(2, (1, 2), last).probabilities(y).sum(axis=1), 1)
