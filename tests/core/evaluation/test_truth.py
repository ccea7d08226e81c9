"""Boxes and masks in the forms that users give, and the messages for those that cannot be used."""

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


def pixels(mask: Any) -> list[tuple[int, int]]:
    return [(int(y), int(x)) for y, x in np.argwhere(mask)]


@pytest.mark.parametrize(
    ("box", "where"),
    [
        ((1, 2, 3, 3), [(2, 1), (2, 2)]),
        ([[1, 2, 2, 3], (5, 0, 6, 1)], [(0, 5), (2, 1)]),
        (np.array([[1, 2, 2, 3], [5, 0, 6, 1]]), [(0, 5), (2, 1)]),
        ((1.5, 0, 2.5, 1), [(0, 1), (0, 2)]),  # a pixel that it touches belongs to it
        ((0, 0, 1, 1), [(0, 0)]),
    ],
)
def test_boxes_of_an_image(box: Any, where: list[tuple[int, int]]) -> None:
    assert pixels(of(boxes=[box])) == where


@pytest.mark.parametrize("box", [None, [], [[]], np.zeros((0, 4))])
def test_without_a_box_the_location_is_unknown(box: Any) -> None:
    assert of(boxes=[box]) is None


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (5, "cannot read 5 as a box of p.png; give four numbers, x0, y0, x1, y1"),
        ([{"x0": 1}], "cannot read [{'x0': 1}] as a box of p.png; give four numbers"),
        ({"x0": 1}, "give four numbers"),
        ("1,2,3,4", "give four numbers"),
        ([[1, 2]], "give four numbers"),
        ([(0, 0, 1, 1), (0, 0, 1)], "give four numbers"),
        ((v for v in (0, 0, 1, 1)), "give four numbers"),
        ((0.1, 0.1, 0.9, 0.9), "looks like shares of the image; give pixels (6×4)"),
        ((0, 0, 0.5, 1), "looks like shares"),
        ((0, 0, float("nan"), 1), "is empty, or not within the image's 6×4 pixels"),
        ((0, 0, 7, 4), "the box 0, 0, 7, 4 of p.png is empty, or not within the image's 6×4 pixels"),
        ((2, 2, 2, 3), "is empty, or not"),
    ],
)
def test_boxes_that_cannot_be_used(box: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        of(boxes=[box])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["boxes", "masks"])
@pytest.mark.parametrize("entries", [5, "a.png", {"a.png": (0, 0, 1, 1)}, iter([(0, 0, 1, 1)]), np.array(5), {1}])
def test_entries_that_are_not_a_list(name: str, entries: Any) -> None:
    with pytest.raises(
        InputError, match=rf"^cannot use {name} of type \w+; give a list: one for each image, None where"
    ):
        Truth(**{"boxes": None, "masks": None, name: entries})


def rgba(colour: Any, alpha: Any) -> np.ndarray:
    image = np.zeros((*IMAGE.shape[:2], 4), np.uint8)
    image[..., :3], image[..., 3] = np.asarray(colour)[..., None], alpha
    return image


ONE = np.zeros(IMAGE.shape[:2], bool)
ONE[1, 2] = True


@pytest.mark.parametrize(
    "mask",
    [
        ONE,
        ONE.tolist(),
        ONE * 0.5,
        ONE * np.uint16(256),
        ONE[..., None] * np.uint8([0, 7, 0]),
        np.stack([ONE, ONE & False], axis=-1),  # two objects, one of them empty
        rgba(255, ONE * 255),
        rgba(0, ONE * 255),
    ],
)
def test_masks_as_arrays(mask: Any) -> None:
    np.testing.assert_array_equal(of(masks=[mask]), ONE)


def test_a_box_is_added_to_a_mask_and_the_given_mask_is_unchanged() -> None:
    mask = ONE.copy()
    assert pixels(of([(5, 0, 6, 1)], [mask])) == [(0, 5), (1, 2)]
    np.testing.assert_array_equal(mask, ONE)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            np.where(ONE, 1, np.nan),
            "cannot use the mask of p.png: it contains NaN; give numbers, 0 outside the object",
        ),
        (np.where(ONE, "cat", ""), "cannot use the mask of p.png: it contains <U3 values; give numbers"),
        (np.where(ONE, 1, None), "cannot use the mask of p.png: it contains object values"),
        ([[1, 2, 3], [1]], "cannot read the mask of p.png as an array: ValueError: "),
        (np.ones((3, 2)), "the mask of p.png is 2×3, the image 6×4; give a mask of the image's size"),
        (np.ones(24), "the mask of p.png is [24], the image 6×4"),
    ],
)
def test_masks_that_cannot_be_used(mask: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        of(masks=[mask])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mask_from_a_file_keeps_its_depth(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "m.png"), ONE * np.uint16(7))
    np.testing.assert_array_equal(of(masks=[tmp_path / "m.png"]), ONE)


@pytest.mark.parametrize("name", ["boxes", "masks"])
def test_more_and_fewer_images_than_entries(name: str) -> None:
    truth = Truth(**{"boxes": None, "masks": None, name: [None, None]})
    truth.check(2)
    with pytest.raises(InputError, match=rf"2 {name}, and there are more images; give one for each image"):
        truth.of(2, IMAGE, "p.png")
    with pytest.raises(InputError, match=rf"2 {name} for 1 images; give one for each image"):
        truth.check(1)
