"""Values of other inputs, from files and numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from xcam.contract import InputSpec
from xcam.contract.fixed import ImageValue, TextValue
from xcam.contract.preprocessing import PRESETS
from xcam.errors import InputError
from xcam.models.inputs import fixed_inputs, has_images, with_images


@pytest.mark.parametrize(
    ("name", "content", "result"),
    [
        ("a.json", "[[1, 2]]", [[1, 2]]),
        ("a.txt", "1 2,3\n", [1, 2, 3]),
        ("a.txt", "1 2\n3 4\n", [[1, 2], [3, 4]]),
        ("a.csv", "1\n2.5\n", [1, 2.5]),
    ],
)
def test_numbers_in_files(tmp_path: Path, name: str, content: str, result: Any) -> None:
    (tmp_path / name).write_text(content)
    fixed = fixed_inputs({"x": tmp_path / name}, None)
    np.testing.assert_array_equal(fixed.values["x"], result)
    assert fixed.plain == {"x"}


def test_literals_texts_and_types(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a dog\n\na cat\n")
    np.save(tmp_path / "a.npy", np.arange(3))
    values = {"n": "2", "f": "2.5", "b": "true", "l": "[1, 2]", "t": tmp_path / "a.txt", "a": tmp_path / "a.npy"}
    fixed = fixed_inputs(values | {"array": np.arange(2)}, "x")
    assert [fixed.values[name] for name in "nfb"] == [2, 2.5, True]
    assert isinstance(fixed.values["n"], int)
    assert fixed.values["t"] == TextValue(("a dog", "a cat"))
    assert fixed.plain == {"n", "f", "b", "l", "t"}
    assert fixed.image == "x"
    assert not fixed_inputs(None, None)


def test_images_are_prepared_as_the_model_states(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), pixels[..., ::-1])
    for value in (tmp_path / "a.png", pixels):
        fixed = fixed_inputs({"x": value, "y": 1}, None)
        assert has_images(fixed)
        assert isinstance(fixed.values["x"], ImageValue)
        done = with_images(fixed, InputSpec((4, 4), preprocessing=PRESETS["tf"]))
        np.testing.assert_allclose(done.values["x"], np.moveaxis(pixels, -1, 0)[None] / 127.5 - 1, atol=1e-6)
        assert done.values["y"] == 1
        raw = with_images(fixed, InputSpec((4, 4), layout="channels_last", dtype="uint8"))
        np.testing.assert_array_equal(raw.values["x"], pixels[None])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("text", "cannot use 'text' for the input 'x': give FILE.npy"),
        ("none.json", "cannot read none.json"),
        ({"a": 1}, "not an array of numbers"),
        ([[1], [1, 2]], "rows differ in length"),
    ],
)
def test_refused(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fixed_inputs({"x": value}, None)


def test_damaged_and_empty_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1,")
    (tmp_path / "a.txt").write_text(" \n")
    (tmp_path / "b.txt").write_text("1 2\n3\n")
    for name, message in (("a.json", "give JSON"), ("a.txt", "it is empty"), ("b.txt", "rows differ")):
        with pytest.raises(InputError, match=message):
            fixed_inputs({"x": tmp_path / name}, None)
    with pytest.raises(InputError, match="give the name of an input"):
        fixed_inputs(None, 3)
