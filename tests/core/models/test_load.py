"""Opening a model: its arguments, and names with a backend."""

from __future__ import annotations

import pytest

from xcam import InputError, ModelError, OptionError, load
from xcam.models.load import by, split_backend


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 224}, r"cannot use size=224; give \(height, width\) in pixels, each from 1 to 16384"),
        ({"size": (0, 5)}, r"cannot use size=\(0, 5\)"),
        ({"size": (5, 20_000)}, "cannot use size"),
        ({"size": (None, None)}, r"cannot use size=\(None, None\); .*, or None for one of them"),
        ({"channels": -1}, "cannot use channels=-1; give 3, or 1 for grey images, 0 where they have no channel axis"),
        ({"channels": 3.0}, "cannot use channels=3.0; give 3"),
        ({"channels": True}, "cannot use channels=True; give 3"),
        ({"layout": "NHWC"}, "unknown layout 'NHWC'; known: channels_first, channels_last"),
    ],
)
def test_invalid_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load("demo", **options)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"load\(\) has no option 'label'; nearest: labels"):
        load("demo", label=["a"])  # type: ignore[call-arg]
    with pytest.raises(OptionError, match=r"load\(\) takes 2 positional arguments, not 3; give all after 'backend'"):
        load("demo", "onnx", "unit")  # type: ignore[misc]


def test_names_that_are_not_models() -> None:
    with pytest.raises(InputError, match="the model's name is empty"):
        load("")
    with pytest.raises(InputError, match=r"no such model file: none/model\.onnx; check the path"):
        load("none/model.onnx")
    with pytest.raises(InputError, match="cannot import no_such_module: no module 'no_such_module'; install it"):
        load("no_such_module:build")
    with pytest.raises(InputError, match=r"cannot call math:absent: .*; give a function of math"):
        load("math:absent")
    with pytest.raises(ModelError, match=r"math:sqrt\(\) failed: TypeError: .*; correct the factory"):
        load("math:sqrt")


def test_a_backend_before_the_name() -> None:
    assert split_backend("onnx:demo") == ("onnx", "demo")
    assert split_backend("package.module:factory") == (None, "package.module:factory")
    assert split_backend("demo") == (None, "demo")


def test_sizes_in_messages() -> None:
    assert by((3, 4)) == "3×4"
    assert by(None) == "any size"
    assert by((48, None)) == "48×any"


def test_a_size_that_the_model_does_not_take() -> None:
    with pytest.raises(InputError, match="demo takes images of 128×128, not any×320; leave size out"):
        load("demo", "onnx", size=(None, 320))
    assert load("demo", "onnx", size=(128, None)).input.size == (128, 128)
