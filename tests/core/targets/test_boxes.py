"""Forms of boxes, overlaps and suppression, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from xcam.targets.boxes import overlaps, suppressed, to_xyxy


@pytest.mark.parametrize(
    ("corners", "numbers"),
    [
        ("xyxy", (10, 20, 30, 60)),
        ("cxcywh", (20, 40, 20, 40)),
        ("ltwh", (10, 20, 20, 40)),
        ("yxyx", (20, 10, 60, 30)),
    ],
)
def test_each_form_of_one_box(corners: str, numbers: tuple[float, ...]) -> None:
    boxes = np.array([[numbers], [numbers]], float)
    np.testing.assert_array_equal(to_xyxy(boxes, corners), [[[10, 20, 30, 60]]] * 2)  # type: ignore[arg-type]


def test_overlaps_by_hand() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [3, 3, 3, 8]], float)
    np.testing.assert_allclose(overlaps(boxes, (0, 0, 10, 10)), [1, 50 / 150, 0, 0])


def test_suppression_leaves_the_better_of_two_boxes_of_one_class() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [1, 0, 11, 10], [50, 50, 60, 60]], float)
    scores, classes = np.array([0.5, 0.9, 0.3, 0.6]), np.array([0, 0, 1, 0])
    assert suppressed(boxes, scores, classes, 9) == [1, 3, 2]  # 0 overlaps 1; 2 is of another class
    assert suppressed(boxes, scores, classes, 2) == [1, 3]
    assert suppressed(boxes, scores, classes, 9, overlap=0.9) == [1, 3, 0, 2]
