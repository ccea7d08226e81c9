"""The errors: one line with the cause and the remedy."""

from __future__ import annotations

import inspect

import pytest

from xcam.errors import InputError, OptionError, first_line, keywords_checked, nearest


@keywords_checked(lambda: {"centred", "k"})
def resize(image: str, size: int, *, colormap: str = "jet", alpha: float = 0.5, blend: str = "mix", style: str = "heat",
           normalize: str = "max") -> str:  # fmt: skip
    """Resize."""
    if alpha < 0:
        raise TypeError("resize() got an unexpected keyword argument 'alpha'")
    return f"{image} {size} {colormap} {alpha} {blend} {style} {normalize}"


def test_a_misspelt_argument_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(OptionError) as error:
        resize("a.jpg", 3, colrmap="hot")  # type: ignore[call-arg]
    assert str(error.value) == "resize() has no option 'colrmap'; nearest: colormap"
    assert isinstance(error.value, InputError)
    assert isinstance(error.value, TypeError)


def test_an_option_of_a_method_is_shown_with_its_argument() -> None:
    with pytest.raises(OptionError) as error:
        resize("a.jpg", 3, centred=True)  # type: ignore[call-arg]
    assert str(error.value) == (
        "resize() has no option 'centred'; options of a method are given as method_options={'centred': ...}"
    )


def test_too_many_positional_arguments() -> None:
    with pytest.raises(OptionError) as error:
        resize("a.jpg", 3, "hot")  # type: ignore[call-arg]
    assert str(error.value) == "resize() takes 2 positional arguments, not 3; give all after 'size' by name"


def test_a_correct_call_passes_and_errors_from_inside_are_unchanged() -> None:
    assert resize("a.jpg", size=3, alpha=0.25) == "a.jpg 3 jet 0.25 mix heat max"
    with pytest.raises(TypeError) as error:
        resize("a.jpg", 3, alpha=-1)
    assert not isinstance(error.value, OptionError)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'size'"):
        resize("a.jpg")  # type: ignore[call-arg]


def test_the_signature_is_kept() -> None:
    assert resize.__name__ == "resize"
    assert resize.__doc__ == "Resize."
    assert list(inspect.signature(resize).parameters)[:3] == ["image", "size", "colormap"]


def test_the_nearest_names() -> None:
    names = [f"block{k}/conv" for k in range(5)] + ["scores", "pool", "pool"]
    assert nearest("scors", names) == "nearest: scores"
    assert nearest("xyz/conv", names).startswith("nearest: block")
    assert nearest("42", names) == "for example: block4/conv, scores, pool"
    assert nearest("a", ["b", "c", "b"]) == "known: b, c"
    assert nearest("a", []) == "there are none"


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("\n  one \ntwo")) == "ValueError: one"
    assert first_line(KeyError()) == "KeyError"
    assert first_line(ValueError("x" * 999)) == "ValueError: " + "x" * 300
