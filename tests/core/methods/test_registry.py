"""The registry: inputs and options follow from a method's signature; options are checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from xcam import InputError
from xcam.methods.registry import Method, get, list_methods, method


def example(activations: Any, gradients: Any, *, power: float = 1.0, name: str = "x") -> None:
    """First line.

    More.
    """


def test_a_signature_declares_inputs_and_options() -> None:
    entry = Method("example", example, "nowhere")
    assert entry.summary == "First line."
    assert entry.inputs == ("activations", "gradients")
    assert entry.options == {"power": 1.0, "name": "x"}


def test_names_are_unique_and_the_nearest_are_listed() -> None:
    with pytest.raises(ValueError, match="method 'fem' is registered already"):
        method("fem", source="nowhere")(example)
    with pytest.raises(InputError, match="unknown method 'ablation-cam'; nearest: ablationcam"):
        get("ablation-cam")
    assert get("fem") is list_methods()["fem"]
    with pytest.raises(TypeError):
        list_methods()["mine"] = get("fem")  # type: ignore[index]


def test_an_unknown_option_lists_those_of_the_method() -> None:
    with pytest.raises(InputError, match="method 'gradcam' has no option 'n'; its options: eigen_smooth"):
        get("gradcam").checked({"n": 1})
    with pytest.raises(InputError, match="method 'reciprocam' has no option 'n'; it has no options"):
        get("reciprocam").checked({"n": 1})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("iscam", {"n": 2.5}, "n=2.5 of method 'iscam' is invalid; give an integer"),
        ("iscam", {"n": "3"}, "n='3' of method 'iscam' is invalid; give an integer"),
        ("iscam", {"n": True}, "n=True of method 'iscam' is invalid; give an integer"),
        ("sscam", {"std": np.inf}, "std=inf of method 'sscam' is invalid; give a finite number"),
        ("fem", {"k": float("nan")}, "k=nan of method 'fem' is invalid; give a finite number"),
        ("fem", {"variant": None}, "variant=None of method 'fem' is invalid; give a string"),
        ("eigencam", {"centred": "false"}, "centred='false' of method 'eigencam' is invalid; give true or false"),
    ],
)
def test_options_of_another_type(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        get(name).checked(options)


def test_options_of_compatible_types() -> None:
    get("sscam").checked({"n": np.int64(3), "std": 1, "seed": np.uint8(2)})
    get("eigencam").checked({"centred": np.False_})
