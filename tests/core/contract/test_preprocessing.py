"""Preprocessing: presets by their published numbers, and user-defined values."""

from __future__ import annotations

import numpy as np
import pytest

from xcam import InputError, Preprocessing
from xcam.contract.preprocessing import preprocessing, preset

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
    scaling = preprocessing(name)
    assert scaling is not None
    np.testing.assert_allclose(scaling(PIXEL)[0, 0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", ["caff", "1,2/3", "a/b", "0/0", "1/-1", "/", "nan/1"])
def test_an_unknown_preprocessing(text: str) -> None:
    with pytest.raises(InputError, match="unknown preprocessing"):
        preprocessing(text)


def test_a_callable_of_ones_own() -> None:
    scaling = Preprocessing("mine", scale=2, mean=(1.0, 2.0, 3.0), order="BGR")
    np.testing.assert_array_equal(scaling(PIXEL)[0, 0], [0 * 2 - 1, 128 * 2 - 2, 255 * 2 - 3])


@pytest.mark.parametrize(
    ("scaling", "name"),
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
def test_the_preset_that_computes_the_same(scaling, name):
    assert preset(scaling).name == name
