"""Resizing: areas are averaged, and images are not enlarged for display."""

from __future__ import annotations

import numpy as np

from xcam.images.resizing import resize, shrunk


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
