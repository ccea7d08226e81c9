"""The preprocessing that a model's own scaling needs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from xcam import InputSpec, Preprocessing, XcamWarning
from xcam.contract.preprocessing import PRESETS
from xcam.contract.scaling import computed, warn_of_two

SPEC = InputSpec((4, 6), layout="channels_last")
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
CAFFE = np.array([103.939, 116.779, 123.68])


def patches(x: Any) -> Any:
    """Return the pixels of patches as one axis, as a vision transformer's first Dense receives them."""
    return (x.reshape(1, 2, 2, 3, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(1, 4, -1) / 255 - MEAN.repeat(6)[0]) / 0.2


def features(x: Any) -> Any:
    """Return the values of 16 filters, in the range of scaled pixels."""
    return np.maximum(x @ np.random.default_rng(0).uniform(0, 1, (3, 16)) / 600 + 0.1, 0)


def focus(x: Any) -> Any:
    return np.concatenate([x[:, i::2, j::2] for i in range(2) for j in range(2)], -1) / 255


CASES: dict[str, tuple[Callable[[Any], Any], str | None]] = {
    "identity": (lambda x: x, None),
    "flip": (lambda x: x[..., ::-1], None),
    "padding": (lambda x: np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]), None),
    "fixed numbers": (lambda x: x * 0 + 3, None),
    "1/256": (lambda x: x / 256, "raw"),
    "inverted": (lambda x: 1 - x / 255, "raw"),
    "inverted 0…1": (lambda x: 1 - x, None),
    "padded 1/255": (lambda x: np.pad(x / 255, [(0, 0), (1, 1), (1, 1), (0, 0)]), "raw"),
    "grey": (lambda x: (x @ [0.299, 0.587, 0.114]) / 255, "raw"),
    "grey of 0…1": (lambda x: x @ [0.299, 0.587, 0.114], None),
    "MNIST": (lambda x: (x / 255 - 0.1307) / 0.3081, "raw"),
    "MNIST of 0…1": (lambda x: (x - 0.1307) / 0.3081, "unit"),
    "caffe": (lambda x: x[..., ::-1] - CAFFE, "raw"),
    "caffe, 0.017": (lambda x: (x[..., ::-1] - CAFFE) * 0.017, "raw"),
    "caffe, blue first": (lambda x: x - CAFFE, "raw, BGR"),
    "caffe of 0…1": (lambda x: 255 * x[..., ::-1] - CAFFE, "unit"),
    "torch": (lambda x: (x / 255 - MEAN) / STD, "raw"),
    "torch of 0…1": (lambda x: (x - MEAN) / STD, "unit"),
    "torch of 0…1, channels first": (lambda x: np.moveaxis((x - MEAN) / STD, -1, 1), "unit"),
    "torch of 0…1, blue first": (lambda x: (x - MEAN[::-1]) / STD[::-1], "unit, BGR"),
    "mean of 0…1": (lambda x: x - MEAN, "unit"),
    "torch of −1…1": (lambda x: ((x + 1) / 2 - MEAN) / STD, "tf"),
    "caffe of −1…1": (lambda x: (x[..., ::-1] + 1) * 127.5 - CAFFE, "tf"),
    "inception of torch's": (lambda x: (x * STD + MEAN - 0.5) / 0.5, "torch"),
    "patches": (patches, "raw"),
    "focus": (focus, "raw"),
    "features": (features, None),
    "a mean for each pixel": (lambda x: (x - 120 - np.arange(72).reshape(4, 6, 3)) / 60, "raw"),
    "batch norm of torch's": (lambda x: (x - 0.1) / 0.9, None),
    "square": (lambda x: (x / 255) ** 2, None),
    "clip": (lambda x: np.clip(x, 0, 1) * 2 - 1, None),
    "each image": (lambda x: (x - x.mean()) / (x.std() + 1e-3), None),
    "not a number": (lambda x: x * np.nan, None),
}


@pytest.mark.parametrize("name", CASES)
def test_the_range_that_reaches_the_first_kernel_decides(name: str) -> None:
    function, expected = CASES[name]
    result = computed(SPEC, function)
    assert (result and result.name) == expected


@pytest.mark.parametrize("name", ["raw", "unit"])
def test_models_that_take_blue_first_get_it_first(name: str) -> None:
    factor = 255 if name == "raw" else 1
    result = computed(SPEC, lambda x: (x - MEAN[::-1] * factor) / factor)
    assert result is not None
    scaled = PRESETS[name](np.array([[[10, 20, 30]]]))
    np.testing.assert_array_equal(result(np.array([[[10, 20, 30]]])), scaled[..., ::-1])


def test_the_input_is_one_image_as_the_model_takes_it() -> None:
    seen: list[Any] = []

    def reach(x: Any) -> Any:
        seen.append(x)
        return x / 255

    assert computed(InputSpec((4, 6), 3, "channels_first", "float16"), reach) == Preprocessing("raw")
    assert [x.shape for x in seen] == [(1, 3, 4, 6)] * 6
    assert {x.dtype for x in seen} == {np.dtype(np.float16)}
    np.testing.assert_array_equal(
        [x[0, :, 3, 5] for x in seen],
        [[255, 255, 255], [0, 0, 0], [128, 128, 128], [255, 0, 0], [0, 255, 0], [0, 0, 255]],
    )


def test_a_model_that_leaves_its_input_as_it_is_is_run_once() -> None:
    seen: list[Any] = []
    assert computed(SPEC, lambda x: seen.append(x) or x) is None
    assert len(seen) == 1


def test_grey_integers_and_models_without_a_kernel() -> None:
    assert computed(InputSpec((4, 6), channels=1), lambda x: x / 255) == Preprocessing("raw")
    grey = InputSpec((4, 6), channels=1, layout="channels_last")
    assert computed(grey, lambda x: x * np.linspace(0.5, 1.5, 8) / 255) is None
    assert computed(InputSpec((4, 6), dtype="uint8"), lambda x: x / 255) is None
    assert computed(InputSpec((4, 6), channels=5), lambda x: x / 255) is None
    assert computed(InputSpec((4, 6, 8)), lambda x: x / 255) is None
    assert computed(InputSpec(None, axes=1), lambda x: x / 255) is None
    assert computed(InputSpec((4, None)), lambda x: x / 255) == Preprocessing("raw")
    assert computed(SPEC, lambda x: None) is None


def test_two_scalings_are_warned_of() -> None:
    def text(chosen: Preprocessing, needed: Preprocessing) -> str:
        with pytest.warns(XcamWarning) as caught:
            warn_of_two("net", chosen, needed)
        (warning,) = caught
        return str(warning.message)

    assert text(PRESETS["tf"], PRESETS["raw"]) == (
        "net scales its input itself and takes pixels in 0…255, and 'tf' scales images before it; use preprocess='raw' "
        "(--preprocess raw)"
    )
    assert text(Preprocessing("0.5/0.2", 1 / 255, (0.5,), (0.2,)), PRESETS["unit"]) == (
        "net scales its input itself and takes values in 0…1, and '0.5/0.2' scales images before it; use "
        "preprocess='unit' (--preprocess unit)"
    )
    assert text(PRESETS["raw"], Preprocessing("raw, BGR", order="BGR")).endswith(
        "takes pixels in 0…255, blue first, and 'raw' scales images before it; leave it out"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_two("net", Preprocessing("own", 1 / 255), PRESETS["unit"])
        warn_of_two("net", Preprocessing("raw, BGR", order="BGR"), PRESETS["raw"])
        warn_of_two("net", None, PRESETS["raw"])
        warn_of_two("net", PRESETS["raw"], None)
