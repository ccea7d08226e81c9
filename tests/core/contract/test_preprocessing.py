"""Presets by their published numbers; layouts; sizes."""

from __future__ import annotations

import numpy as np
import pytest

from xcam import InputError, InputSpec, Preprocessing
from xcam.contract.preprocessing import PRESETS, preprocessing, preset
from xcam.images.batches import batch
from xcam.images.resizing import resize

PIXEL = np.array([[[255, 128, 0]]], np.uint8)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("raw", [255, 128, 0]),
        ("unit", [1, 128 / 255, 0]),
        ("tf", [1, 128 / 127.5 - 1, -1]),
        ("caffe", [0 - 103.939, 128 - 116.779, 255 - 123.68]),
        ("torch", [(1 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (0 - 0.406) / 0.225]),
        ("0.5,0.5,0.5/0.25,0.5,1", [2, (128 / 255 - 0.5) * 2, -0.5]),
        ("0.5/0.5", [1, 128 / 127.5 - 1, -1]),
    ],
)
def test_presets(name: str, expected: list[float]) -> None:
    how = preprocessing(name)
    assert how is not None
    np.testing.assert_allclose(how(PIXEL)[0, 0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("word", ["caff", "1,2/3", "a/b", "0/0", "1/-1", "/", "nan/1"])
def test_what_is_no_preprocessing(word: str) -> None:
    with pytest.raises(InputError, match="no preprocessing"):
        preprocessing(word)


def test_batch_layouts_and_grey() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    last = batch([image, image], InputSpec((4, 3), layout="channels_last"), (4, 3), PRESETS["raw"])
    first = batch([image, image], InputSpec((4, 3), layout="channels_first"), (4, 3), PRESETS["raw"])
    assert last.shape == (2, 4, 3, 3)
    assert first.shape == (2, 3, 4, 3)
    np.testing.assert_array_equal(np.moveaxis(first, 1, -1), last)
    # 2×2 areas are averaged
    np.testing.assert_allclose(last[0, 0, 0], image[:2, :2].astype(float).mean(axis=(0, 1)), atol=0.51)
    grey = batch([image], InputSpec((8, 6), channels=1, layout="channels_last"), (8, 6), PRESETS["raw"])
    assert grey.shape == (1, 8, 6, 1)
    assert batch([image], InputSpec((4, 3), dtype="uint8"), (4, 3), PRESETS["raw"]).dtype == np.uint8
    with pytest.raises(InputError, match="takes 5 channels"):
        batch([image], InputSpec((4, 3), channels=5), (4, 3), PRESETS["raw"])


def test_same_size_is_not_touched() -> None:
    image = np.zeros((3, 4, 3), np.uint8)
    assert resize(image, (3, 4)) is image


def test_a_large_picture_is_averaged_over_areas() -> None:
    image = np.random.default_rng(0).integers(0, 256, (640, 480, 3), dtype=np.uint8)
    areas = image.reshape(20, 32, 15, 32, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(resize(image, (20, 15)), areas, atol=1.01)  # in two steps, rounded twice
    np.testing.assert_allclose(resize(image, (20, 15)).mean(), image.mean(), atol=0.2)


def test_a_callable_of_ones_own() -> None:
    how = Preprocessing("mine", scale=2, mean=(1.0, 2.0, 3.0), order="BGR")
    np.testing.assert_array_equal(how(PIXEL)[0, 0], [0 * 2 - 1, 128 * 2 - 2, 255 * 2 - 3])


@pytest.mark.parametrize(
    ("own", "name"),
    [
        (Preprocessing("own", scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)), "torch"),
        (Preprocessing("own", mean=(127.5,) * 3, std=(127.50001,) * 3), "tf"),
        (Preprocessing("own", std=(255.0, 255.0, 255.0)), "unit"),
        (Preprocessing("own", mean=(103.939, 116.779, 123.68), order="BGR"), "caffe"),
        (Preprocessing("own", mean=(103.939, 116.779, 123.68)), "own"),
        (Preprocessing("own", scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.235)), "own"),
        (Preprocessing("own", scale=1 / 255, mean=(0.01,)), "own"),
    ],
)
def test_the_preset_that_computes_the_same(own, name):
    assert preset(own).name == name
