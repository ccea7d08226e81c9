"""Resizing: areas are averaged, and images are not enlarged for display."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from xcam.images.resizing import linear, resize, shrunk


def test_an_image_of_the_requested_size_is_returned_itself() -> None:
    image = np.zeros((3, 4, 3), np.uint8)
    assert resize(image, (3, 4)) is image


def test_a_large_image_is_averaged_over_areas() -> None:
    image = np.random.default_rng(0).integers(0, 256, (640, 480, 3), dtype=np.uint8)
    areas = image.reshape(20, 32, 15, 32, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(resize(image, (20, 15)), areas, atol=1.01)  # two steps, each rounded
    np.testing.assert_allclose(resize(image, (20, 15)).mean(), image.mean(), atol=0.2)


def test_a_small_image_is_interpolated_bilinearly() -> None:
    image = np.array([[0, 80]], np.uint8)[..., None].repeat(3, 2)
    assert resize(image, (1, 4))[0, :, 0].tolist() == [0, 20, 60, 80]


def test_the_longer_side_for_display() -> None:
    image = np.arange(40, dtype=np.uint8).reshape(4, 10, 1).repeat(3, 2)
    assert shrunk(image, 10) is image
    half = image[..., 0].reshape(2, 2, 5, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(shrunk(image, 5)[..., 0], half, atol=0.51)
    assert shrunk(np.zeros((1, 100, 3), np.uint8), 10).shape == (1, 10, 3)


@pytest.mark.parametrize("size", [(9, 14), (5, 6), (3, 11), (2, 2), (1, 1)])
def test_linear_resizing_of_two_axes_is_that_of_opencv(size: tuple[int, int]) -> None:
    cam = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    expected = cv2.resize(cam, size[::-1], interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(linear(cam, size), expected, atol=1e-5)


def test_linear_resizing_of_one_and_three_axes() -> None:
    np.testing.assert_allclose(linear(np.array([0.0, 4.0]), (4,)), [0, 1, 3, 4])
    assert linear(np.array([7.0]), (3,)).tolist() == [7, 7, 7]
    cube = np.arange(8.0).reshape(2, 2, 2)
    large = linear(cube, (4, 2, 6))
    assert large.shape == (4, 2, 6)
    assert large.dtype == np.float32
    np.testing.assert_allclose(large[:, 0, 0], [0, 1, 3, 4])  # from 0 to 4 along the first axis
    np.testing.assert_allclose(large[0, 0], linear(np.array([0.0, 1.0]), (6,)))
