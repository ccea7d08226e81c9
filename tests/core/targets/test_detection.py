"""The boxes of a detector: the axis of the boxes, objectness, separate outputs, and values by hand."""

from __future__ import annotations

import numpy as np
import pytest

from differences import numerical_cotangent
from xcam import Detection, InputError
from xcam.errors import XcamWarning

RNG = np.random.default_rng(5)
REGION = (60, 60, 140, 140)


def boxes(count: int = 40, size: float = 320) -> np.ndarray:
    """Return boxes [1, count, 4] by centre and size; box 7 is REGION."""
    centre = RNG.uniform(0.2, 0.8, (1, count, 2))
    result = np.concatenate([centre, RNG.uniform(0.05, 0.3, (1, count, 2))], 2) * size
    result[0, 7] = np.array([100, 100, 80, 80]) * size / 320
    return result


def corners(b: np.ndarray) -> np.ndarray:
    return np.concatenate([b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2], 2)


def probabilities(count: int, classes: int) -> np.ndarray:
    scores = RNG.uniform(0, 0.1, (1, count, classes))
    scores[0, 7] = 0.5 + np.arange(classes) / (4 * classes)
    return scores


LAYOUTS = {
    "features last": lambda y: y,
    "boxes last": lambda y: np.moveaxis(y, 1, 2).copy(),
}
KINDS = {
    "pixels and probabilities": lambda b, n, k: (b, probabilities(n, k)),
    "pixels and logits": lambda b, n, k: (b, np.log(probabilities(n, k))),
    "fractions and probabilities": lambda b, n, k: (b / 320, probabilities(n, k) / 10),
}


@pytest.mark.parametrize("form", ["xyxy", "cxcywh"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("count", "classes"), [(40, 80), (300, 80), (84, 80), (200, 8)])
def test_the_axis_of_the_boxes(layout: str, kind: str, form: str, count: int, classes: int) -> None:
    b, s = KINDS[kind](boxes(count), count, classes)
    y = LAYOUTS[layout](np.concatenate([b if form == "cxcywh" else corners(b), s], 2))
    region = tuple(n / 320 for n in REGION) if "fractions" in kind else REGION
    aim = Detection(3, region, corners=form, objectness=False).resolve(y)  # type: ignore[arg-type]
    assert (aim.box, aim.axis) == (7, 1 if layout == "features last" else 2)
    np.testing.assert_array_equal(aim.value(y), s[:, 7, 3])
    expected = np.zeros((1, count, 4 + classes))
    expected[0, 7, 7] = 1
    np.testing.assert_array_equal(aim.cotangent(y), LAYOUTS[layout](expected))
    assert Detection(-1, region, corners=form, objectness=False).resolve(y).value(y) == s[:, 7, -1]  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{"classes": 80}, {"objectness": True}, {}])
def test_an_objectness_before_the_classes(layout: str, options: dict[str, int]) -> None:
    b, s = boxes(), probabilities(40, 80)
    b[0, 9] = b[0, 7]
    s[0, 9] = 0.9
    o = np.full((1, 40, 1), 0.01)
    o[0, 7] = 0.8
    y = LAYOUTS[layout](np.concatenate([b, o, s], 2))
    aim = Detection(2, REGION, corners="cxcywh", **options).resolve(y)
    assert aim.box == 7  # the other box there has a larger score of the class, and no objectness
    np.testing.assert_array_equal(aim.value(y), s[:, 7, 2])
    np.testing.assert_allclose(aim.cotangent(y), numerical_cotangent(aim, y), atol=1e-8)


def test_a_number_of_classes_that_leaves_the_objectness_open_is_warned_of() -> None:
    y = np.concatenate([boxes(), probabilities(40, 3)], 2)
    with pytest.warns(XcamWarning, match="column 4 of the 7 numbers for a box is taken for the score of class 0"):
        assert Detection(0, REGION, corners="cxcywh").resolve(y).value(y) == y[0, 7, 4]
    assert Detection(0, REGION, corners="cxcywh", classes=3).resolve(y).value(y) == y[0, 7, 4]
    assert Detection(0, REGION, corners="cxcywh", classes=2).resolve(y).value(y) == y[0, 7, 5]


@pytest.mark.parametrize("names", [("scores", "boxes"), ("0", "1")])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_separate_boxes_and_scores(layout: str, names: tuple[str, str]) -> None:
    b, s = boxes(), probabilities(40, 6)
    outputs = {names[1]: b, "map": np.zeros((1, 3, 8, 8)), names[0]: LAYOUTS[layout](s)}
    for options in ({}, {"boxes": names[1], "output": names[0]}, {"boxes": names[1]}):
        aim = Detection(4, REGION, corners="cxcywh", **options).resolve(outputs)  # type: ignore[arg-type]
        assert (aim.box, aim.boxes, aim.output) == (7, names[1], names[0])
        np.testing.assert_array_equal(aim.value(outputs), s[:, 7, 4])
        slope = aim.cotangent(outputs)
        assert not slope[names[1]].any()  # type: ignore[call-overload]
        assert slope[names[0]].sum() == LAYOUTS["features last"](slope[names[0]]).max() == 1  # type: ignore[call-overload]


def test_further_columns_behind_the_stated_classes() -> None:
    y = np.moveaxis(np.concatenate([boxes(), probabilities(40, 5), RNG.normal(size=(1, 40, 32))], 2), 1, 2)
    aim = Detection(-1, REGION, corners="cxcywh", classes=5).resolve(y)
    assert (aim.box, aim.value(y)) == (7, y[0, 8, 7])
    with pytest.raises(InputError, match="unknown class 5: there are 5 classes"):
        Detection(5, REGION, corners="cxcywh", classes=5).resolve(y)


def test_boxes_that_cannot_be_distinguished_are_refused() -> None:
    y = RNG.uniform(0.4, 0.6, (1, 30, 30))
    with pytest.raises(
        InputError, match=r"cannot tell the boxes from the classes in an output of shape \(1, 30, 30\)"
    ):
        Detection(0, (0, 0, 1, 1), corners="cxcywh").resolve(y)
    assert Detection(0, (0, 0, 1, 1), corners="cxcywh", axis=2, objectness=False).resolve(y).axis == 2


def test_selected_boxes_are_refused_with_the_score_that_can_be_explained() -> None:
    y = np.concatenate([corners(boxes()), RNG.random((1, 40, 1)), RNG.integers(0, 5, (1, 40, 1))], 2)
    y[0, 7, 5] = 3
    with pytest.raises(
        InputError, match=r"selected boxes.*; give target=xcam.Element\(\(7, 4\)\), the score of the box"
    ):
        Detection(3, REGION).resolve(y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"axis": 3}, "cannot use axis=3; give 1 for"),
        ({"axis": 2}, "axis 1 of the output of shape"),
        ({"classes": 90, "axis": 1}, "is too short for 4 coordinates and 90 classes"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, int], message: str) -> None:
    y = np.ones((1, 4, 10)) if options["axis"] == 2 else np.ones((1, 40, 10))
    with pytest.raises(InputError, match=message):
        Detection(0, REGION, **options).resolve(y)  # type: ignore[arg-type]
