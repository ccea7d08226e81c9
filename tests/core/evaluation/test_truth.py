"""Boxes and masks as people give them: what they say of a picture, and what is refused in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from xcam import InputError
from xcam.evaluation.truth import Truth

IMAGE = np.zeros((4, 6, 3), np.uint8)


def of(boxes: Any = None, masks: Any = None) -> Any:
    return Truth(boxes, masks).of(0, IMAGE, "p.png")


def places(found: Any) -> list[tuple[int, int]]:
    return [(int(y), int(x)) for y, x in np.argwhere(found)]


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ((1, 2, 3, 3), [(2, 1), (2, 2)]),
        ([[1, 2, 2, 3], (5, 0, 6, 1)], [(0, 5), (2, 1)]),
        (np.array([[1, 2, 2, 3], [5, 0, 6, 1]]), [(0, 5), (2, 1)]),
        ((1.5, 0, 2.5, 1), [(0, 1), (0, 2)]),  # a pixel that it touches belongs to it
        ((0, 0, 1, 1), [(0, 0)]),
    ],
)
def test_boxes_of_a_picture(given: Any, where: list[tuple[int, int]]) -> None:
    assert places(of(boxes=[given])) == where


@pytest.mark.parametrize("given", [None, [], [[]], np.zeros((0, 4))])
def test_no_box_is_nothing_known(given: Any) -> None:
    assert of(boxes=[given]) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (5, "the box of p.png is 5; give four numbers, x0, y0, x1, y1"),
        ([{"x0": 1}], "the box of p.png is [{'x0': 1}]; give four numbers"),
        ({"x0": 1}, "give four numbers"),
        ("1,2,3,4", "give four numbers"),
        ([[1, 2]], "give four numbers"),
        ([(0, 0, 1, 1), (0, 0, 1)], "give four numbers"),
        ((v for v in (0, 0, 1, 1)), "give four numbers"),
        ((0.1, 0.1, 0.9, 0.9), "these look like shares of the picture; give pixels (6×4)"),
        ((0, 0, 0.5, 1), "these look like shares"),
        ((0, 0, float("nan"), 1), "does not lie within its 6×4 pixels"),
        ((0, 0, 7, 4), "the box 0, 0, 7, 4 of p.png does not lie within its 6×4 pixels"),
        ((2, 2, 2, 3), "(or is empty)"),
    ],
)
def test_boxes_that_are_none(given: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        of(boxes=[given])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", ["boxes", "masks"])
@pytest.mark.parametrize("given", [5, "a.png", {"a.png": (0, 0, 1, 1)}, iter([(0, 0, 1, 1)]), np.array(5), {1}])
def test_what_is_no_list(what: str, given: Any) -> None:
    with pytest.raises(InputError, match=rf"^{what} is a \w+; give a list: one for each picture, None where"):
        Truth(**{"boxes": None, "masks": None, what: given})


def rgba(colour: Any, alpha: Any) -> np.ndarray:
    found = np.zeros((*IMAGE.shape[:2], 4), np.uint8)
    found[..., :3], found[..., 3] = np.asarray(colour)[..., None], alpha
    return found


ONE = np.zeros(IMAGE.shape[:2], bool)
ONE[1, 2] = True


@pytest.mark.parametrize(
    "given",
    [
        ONE,
        ONE.tolist(),
        ONE * 0.5,
        ONE * np.uint16(256),
        ONE[..., None] * np.uint8([0, 7, 0]),
        np.stack([ONE, ONE & False], axis=-1),  # two objects, of which one is nowhere
        rgba(255, ONE * 255),
        rgba(0, ONE * 255),
    ],
)
def test_masks_as_arrays(given: Any) -> None:
    np.testing.assert_array_equal(of(masks=[given]), ONE)


def test_a_box_is_added_to_a_mask_and_the_mask_stays_as_it_was() -> None:
    mask = ONE.copy()
    assert places(of([(5, 0, 6, 1)], [mask])) == [(0, 5), (1, 2)]
    np.testing.assert_array_equal(mask, ONE)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.where(ONE, 1, np.nan), "the mask of p.png holds NaN; give numbers, 0 where the object is not"),
        (np.where(ONE, "cat", ""), "the mask of p.png holds <U3 values; give numbers"),
        (np.where(ONE, 1, None), "the mask of p.png holds object values"),
        ([[1, 2, 3], [1]], "the mask of p.png is no array (ValueError: "),
        (np.ones((3, 2)), "the mask of p.png is 2×3, the picture 6×4; give a mask of the picture's size"),
        (np.ones(24), "the mask of p.png is [24], the picture 6×4"),
    ],
)
def test_masks_that_are_none(given: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        of(masks=[given])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mask_from_a_file_keeps_its_depth(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "m.png"), ONE * np.uint16(7))
    np.testing.assert_array_equal(of(masks=[tmp_path / "m.png"]), ONE)


@pytest.mark.parametrize("what", ["boxes", "masks"])
def test_more_pictures_than_were_told_of_and_fewer(what: str) -> None:
    truth = Truth(**{"boxes": None, "masks": None, what: [None, None]})
    truth.check(2)
    with pytest.raises(InputError, match=rf"2 {what}, and there are more pictures; give one for each"):
        truth.of(2, IMAGE, "p.png")
    with pytest.raises(InputError, match=rf"2 {what} for 1 pictures; give one for each"):
        truth.check(1)
