"""Targets as text on detectors and segmentation: the box or region that they mean, its value and its cotangent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from differences import numerical_cotangent
from xcam import InputError, Segmentation
from xcam.errors import XcamWarning
from xcam.images.framing import Frame
from xcam.targets import Located, Task, target
from xcam.targets.layouts import BoxLayout, MapLayout
from xcam.targets.regions import BoxScore, detected, resolved

FRAME = Frame((200, 400), (100, 100), (0.5, 0.25), (0.0, 0.0))
"""An image of 400 × 200 pixels, stretched to an input of 100 × 100."""
LABELS = ["cat", "dog", "cow"]
BOXES = np.array([[10, 10, 30, 30], [11, 10, 31, 30], [60, 60, 90, 90], [60, 10, 90, 40], [2, 2, 4, 4]], float)
P = np.array([[0.9, 0.2, 0], [0.8, 0.1, 0], [0.3, 0.7, 0], [0.6, 0.1, 0], [0.05, 0.04, 0]])
Y = np.concatenate([BOXES, P], 1)[None]
TASK = Task("detection", 3, BoxLayout(5, 3), size=(100, 100))


def box(text: Any, y: np.ndarray = Y, task: Task = TASK, score: str = "logit") -> BoxScore:
    aim = target(text, score, labels=LABELS)  # type: ignore[arg-type]
    located = aim if isinstance(aim, Located) else Located(aim.index, rank=getattr(aim, "rank", 0), score=score)  # type: ignore[arg-type, attr-defined]
    result = resolved(located, task, y, FRAME, LABELS)
    assert isinstance(result, BoxScore)
    return result


@pytest.mark.parametrize(
    ("text", "number", "index"),
    [
        (None, 0, 0),
        ("dog", 2, 1),
        ("cat@240,20,360,80", 3, 0),  # 60,10,90,40 on the input
        ("@230,110,370,190", 2, 1),
        ("cat@230,110,370,190", 2, 0),
        ("box:3", 3, 0),
        (1, 2, 1),
    ],
)
def test_the_box_that_a_text_means(text: Any, number: int, index: int) -> None:
    aim = box(text)
    assert (aim.box, aim.index) == (number, index)


def test_ranks_are_counted_after_suppression() -> None:
    ranks = [resolved(Located(rank=k), TASK, Y, FRAME, LABELS).box for k in range(3)]
    assert ranks == [0, 2, 3]  # box 1 overlaps box 0
    with pytest.raises(InputError, match="only 4 boxes remain after suppression; give top4"):
        resolved(Located(rank=4), TASK, Y, FRAME, LABELS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cow", r"no box has the class 'cow': its best score is 0; give another, for example 'cat', or a box"),
        ("cat@500,10,600,90", r"the region 500,10,600,90 is outside the image of 400×200 pixels"),
        ("dog@390,180,399,199", "no box of 'dog' overlaps the region 390,180,399,199"),
        ("cat@30,30,10,10", "give x0,y0,x1,y1 with x0 < x1"),
        ("box:5", "unknown box 5: the model gives 5 boxes"),
        ("cat@10,20", "boxes are chosen by a region"),
        (7, "unknown class 7"),
        ("cat@10,20,30", "cannot read '10,20,30' as a region"),
    ],
)
def test_texts_that_mean_no_box(text: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        box(text)


def test_a_poor_fit_is_warned_of() -> None:
    with pytest.warns(XcamWarning, match="overlaps it by only"):
        assert box("@0,0,400,200").box == 2


LINKS: dict[str, tuple[BoxLayout, int]] = {
    "probabilities": (BoxLayout(3, 3), 7),
    "objectness": (BoxLayout(3, 3, objectness=True), 8),
    "sigmoid": (BoxLayout(3, 3, link="sigmoid"), 7),
    "softmax": (BoxLayout(3, 3, link="softmax", background=2), 7),
    "logits and objectness": (BoxLayout(3, 3, link="sigmoid", objectness=True), 8),
    "boxes last": (BoxLayout(3, 3, objectness=True, axis=2), 8),
    "selected": (BoxLayout(3, 0, selected=True), 6),
}


@pytest.mark.parametrize("score", ["logit", "probability", "log-probability"])
@pytest.mark.parametrize("kind", LINKS)
def test_cotangents_are_the_derivatives_of_the_values(kind: str, score: str) -> None:
    layout, width = LINKS[kind]
    y = np.random.default_rng(1).uniform(0.2, 0.8, (2, 3, width))
    y[..., :4] = BOXES[None, :3]
    if layout.selected:
        y[..., 5] = [0, 0, 1]
    y = np.moveaxis(y, 1, 2).copy() if layout.axis == 2 else y
    aim = BoxScore(layout, 2, 1, score, tuple(BOXES[2]), (100, 100))  # type: ignore[arg-type]
    slope = np.asarray(aim.cotangent(y))
    expected = numerical_cotangent(aim, y)
    np.testing.assert_allclose(slope, expected, atol=1e-7)
    assert slope.any()


def test_the_log_odds_of_a_sigmoid_that_was_not_cut_off_have_the_gradient_of_its_logit() -> None:
    z = np.array([-9.0, -1.0, 3.0])
    p = 1 / (1 + np.exp(-z))
    y = np.concatenate([BOXES[:1], p[None]], 1)[None]
    for index in range(3):
        aim = BoxScore(BoxLayout(1, 3), 0, index)
        assert aim.value(y)[0] == pytest.approx(z[index], rel=1e-6)
        slope = np.asarray(aim.cotangent(y))[0, 0, 4 + index]
        assert slope * p[index] * (1 - p[index]) == pytest.approx(1, rel=1e-6)


def test_a_selected_box_is_followed_where_the_order_changes() -> None:
    rows = np.array(
        [[[0, 0, 9, 9, 0.9, 0], [50, 50, 70, 70, 0.8, 1]], [[50, 50, 70, 70, 0.7, 1], [0, 0, 9, 9, 0.3, 0]]]
    )
    aim = BoxScore(BoxLayout(2, 2, selected=True), 1, 1, "probability", (50, 50, 70, 70), (100, 100))
    np.testing.assert_allclose(aim.value(rows), [0.8, 0.7])
    assert np.argwhere(np.asarray(aim.cotangent(rows))).tolist() == [[0, 1, 4], [1, 0, 4]]


def test_boxes_are_listed_in_pixels_of_the_image() -> None:
    listed = detected(box("cat@240,20,360,80"), Y, FRAME, LABELS)
    assert [(d.label, d.number, d.explained) for d in listed] == [
        ("cat", 0, False),
        ("dog", 2, False),
        ("cat", 3, True),
    ]
    assert listed[2].box == (240, 20, 360, 80)
    assert listed[2].score == pytest.approx(0.6)


# Segmentation.

MAP = np.zeros((1, 3, 10, 10))
MAP[0, 0] = 1
MAP[0, 1, 2:6, 2:6] = 3
MAP[0, 2, 8:, 8:] = 5
SEGMENTS = Task("segmentation", 3, map=MapLayout(3, (10, 10), background=0), size=(100, 100))


def region(text: Any, score: str = "logit", task: Task = SEGMENTS) -> Segmentation:
    aim = target(text, score, labels=LABELS)  # type: ignore[arg-type]
    result = resolved(aim if isinstance(aim, Located) else Located(aim.index, score=score), task, MAP, FRAME, LABELS)  # type: ignore[arg-type, attr-defined]
    assert isinstance(result, Segmentation)
    return result


@pytest.mark.parametrize(
    ("text", "index", "pixels"),
    [
        (None, 1, 16),
        ("cow", 2, 4),
        ("dog@100,80", 1, 1),  # (25, 40) on the input, (2, 4) on the map
        ("@399,199", 2, 1),
        ("@80,40,240,120", 1, 16),
        ("cat@80,40,240,120", 0, 16),
    ],
)
def test_the_region_that_a_text_means(text: Any, index: int, pixels: int) -> None:
    aim = region(text)
    assert (aim.index, int(np.sum(aim.mask))) == (index, pixels)  # type: ignore[arg-type]
    assert aim.value(MAP)[0] == pytest.approx(MAP[0, index][aim.mask].mean())


def test_a_point_is_one_pixel_of_the_map() -> None:
    assert np.argwhere(region("dog@100,80").mask).tolist() == [[4, 2]]  # type: ignore[arg-type]


def test_a_region_from_the_file_of_a_mask(tmp_path: Path) -> None:
    mask = np.zeros((200, 400), np.uint8)
    mask[40:120, 80:240] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    aim = region(f"dog@{tmp_path / 'mask.png'}")
    assert np.argwhere(aim.mask).min(axis=0).tolist() == [2, 2]  # type: ignore[arg-type]
    assert int(np.sum(aim.mask)) == 16  # type: ignore[arg-type]
    cv2.imwrite(str(tmp_path / "small.png"), mask[:50])
    with pytest.raises(InputError, match="is 400×50, the image 400×200"):
        region(f"dog@{tmp_path / 'small.png'}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dog@401,10", "the point 401,10 is outside the image of 400×200"),
        ("dog@missing.png", "cannot read 'missing.png' as a region"),
        ("box:1", "segmentation has no boxes"),
        (5, "unknown class 5"),
    ],
)
def test_texts_that_mean_no_region(text: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        region(text)


def test_a_class_that_is_not_predicted_is_an_error_with_those_that_are() -> None:
    hidden = MAP.copy()
    hidden[0, 2] = 0
    with pytest.raises(
        InputError, match=r"no region is predicted as 'cow' \(predicted: cat, dog\); give one of these"
    ):
        resolved(Located(2), SEGMENTS, hidden, FRAME, LABELS)
    hidden[0, 1] = 0
    with pytest.raises(InputError, match="every pixel is predicted as the background"):
        resolved(Located(), SEGMENTS, hidden, FRAME, LABELS)


def test_a_point_outside_the_crop_is_an_error() -> None:
    crop = Frame((200, 400), (100, 100), (0.5, 0.5), (0.0, -50.0))
    with pytest.raises(InputError, match="the model does not see the point 20,20"):
        resolved(Located(1, (20, 20)), SEGMENTS, MAP, crop, LABELS)
    assert np.argwhere(resolved(Located(1, (140, 60)), SEGMENTS, MAP, crop, LABELS).mask).tolist() == [[3, 2]]


def test_texts_with_a_region_need_a_detector_or_a_map() -> None:
    with pytest.raises(InputError, match="the task is classification, 3 classes; give a class"):
        resolved(
            Located(0, (1, 1, 5, 5), name="cat@1,1,5,5"), Task("classification", 3), np.zeros((1, 3)), FRAME, LABELS
        )
