"""Which input takes the image, and how the values of the others are passed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from xcam.contract.fixed import FixedInputs, Form, ImageValue, TakenInput, chosen, decided, fitted, forms, note
from xcam.errors import InputError

IMAGE = TakenInput("visual", (None, 3, 8, 8), "float32")
OTHER = TakenInput("map", (None, 1, 8, 8), "float32")
TOKENS = TakenInput("ids", (None, None), "int64")
CUBE = TakenInput("cube", (None, 4, 4, 64), "float32")


@pytest.mark.parametrize(
    ("taken", "values", "image", "result"),
    [
        ([IMAGE, TOKENS], {"ids": 1}, None, "visual"),
        ([TOKENS, IMAGE], {"ids": 1}, None, "visual"),
        ([OTHER, IMAGE], {"map": 1}, None, "visual"),
        ([OTHER, IMAGE], {"visual": 1}, None, "map"),
        ([OTHER, IMAGE], {"map": 1}, "visual", "visual"),
        ([TakenInput("a", optional=True), TakenInput("pixel_values", optional=True)], {}, None, "pixel_values"),
        ([TakenInput("a", optional=True), TakenInput("b", optional=True)], {}, None, "a"),
        ([TakenInput("a"), TakenInput("b", optional=True)], {}, None, "a"),
    ],
)
def test_the_image_s_input(
    taken: Sequence[TakenInput], values: Mapping[str, Any], image: str | None, result: str
) -> None:
    assert chosen("net", taken, FixedInputs(values, image)).name == result


def test_an_input_that_no_image_fits_is_missing_and_two_that_fit_are_listed() -> None:
    with pytest.raises(
        Exception, match=r"the image is visual; give the others values \(ids int64 \[any, any\]; cube"
    ):
        chosen("net", [TOKENS, IMAGE, CUBE], FixedInputs())
    with pytest.raises(InputError, match=r"an image fits visual and map; name the image's: image_input='visual'"):
        chosen("net", [IMAGE, TOKENS, OTHER], FixedInputs({"ids": 1}))


@pytest.mark.parametrize(
    ("value", "shape", "dtype", "result"),
    [
        (3, (None,), "int64", np.array([3])),
        (3, (None, 1), "float32", np.array([[3.0]], np.float32)),
        (3, (), "int32", np.array(3, np.int32)),
        ([1, 2], (None, 2), "float32", np.array([[1, 2]], np.float32)),
        ([[1, 2]], (None, 2), "float32", np.array([[1, 2]], np.float32)),
        ([1, 0], (None, 2), "bool", np.array([[True, False]])),
        (np.ones((4, 2), np.float32), (None, None, 2), "float16", np.ones((1, 4, 2), np.float16)),
    ],
)
def test_a_value_gets_the_type_and_the_first_axis_of_its_input(
    value: Any, shape: tuple[int | None, ...], dtype: str, result: Any
) -> None:
    array = fitted(value, TakenInput("x", shape, dtype), "net", plain=True)
    np.testing.assert_array_equal(array, result, strict=True)


def test_an_image_is_replaced_by_zeros_and_fits_images_only() -> None:
    value = ImageValue(np.zeros((4, 4, 3), np.uint8), "a.png")
    assert fitted(value, IMAGE, "net").shape == (1, 3, 8, 8)
    assert fitted(value, TakenInput("x", (None, 3, None, None), "float32"), "net", size=(5, 6)).shape == (1, 3, 5, 6)
    with pytest.raises(InputError, match=r"cannot use a.png for the input 'ids' of net: an image does not fit ids"):
        fitted(value, TOKENS, "net")


def _decided(model: Any, value: Any, plain: bool = False) -> tuple[Form, bool]:
    x = np.array([[1.0, 2.0], [3.0, 5.0]])

    def run(rows: list[int], form_of: Mapping[str, Form]) -> dict[str, Any]:
        form = form_of["v"]
        value = form.value
        if form.repeated and len(value) == 1:
            value = np.repeat(value, len(rows), 0)
        return {"out": model(x[rows], value)}

    chosen_forms, together = decided(run, {"v": forms(value, plain)})
    return chosen_forms["v"], together


def test_the_form_is_that_with_which_two_images_have_the_outputs_of_each_alone() -> None:
    join = lambda x, v: np.concatenate([x, v], 1)  # noqa: E731
    products = lambda x, v: x @ v.T  # noqa: E731
    row, column = np.array([4.0, 6.0]), np.array([[4.0, 6.0]])
    assert _decided(join, row)[0].value.shape == (1, 2)
    assert [_decided(join, v)[0].repeated for v in (row, column)] == [True, True]
    form, together = _decided(products, column)  # a text among texts: not repeated
    assert (form.repeated, together) == (False, True)
    assert _decided(lambda x, v: x * v, 2.0)[0].value == 2.0
    assert _decided(lambda x, v: x * v.astype("float32").dtype.type(1), 2, True)[0].value.shape == (1,)
    assert _decided(lambda x, v: x + 0 * v[:1] + (x - x.mean(0)), column)[1] is False  # rows depend on each other
    with pytest.raises(ZeroDivisionError):
        _decided(lambda x, v: 1 // 0, row)


def test_the_note_lists_shapes_and_numbers() -> None:
    assert note({}) == ()
    assert note({"a": np.zeros((1, 2)), "b": 3}) == ("other inputs are fixed: a [1, 2], b = 3",)
