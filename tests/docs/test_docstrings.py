"""The extension `docstrings` of the documentation: plain text of a docstring is escaped, markup is not."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

EXTENSIONS = Path(__file__).parents[2] / "docs" / "_extensions"


@pytest.fixture
def docstrings(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXTENSIONS))
    yield importlib.import_module("docstrings")
    sys.modules.pop("docstrings")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[N, C, *spatial] of max |Δ|", r"[N, C, \*spatial] of max \|Δ\|"),
        ("weights_ and a_b", r"weights\_ and a_b"),
        ("with --require and a - b", "with ``--require`` and a - b"),
        (r"already \*escaped", r"already \*escaped"),
        ("`*args`, ``|x|`` and :class:`a_`", "`*args`, ``|x|`` and :class:`a_`"),
    ],
)
def test_characters_outside_code_are_escaped(docstrings: Any, line: str, expected: str) -> None:
    assert docstrings.escaped(line) == expected


def converted(docstrings: Any, *lines: str) -> list[str]:
    result = list(lines)
    docstrings.process(None, "", "xcam.f", None, None, result)
    return [line for line in result if line]


def test_code_and_directives_of_a_docstring_stay(docstrings: Any) -> None:
    lines = (
        "See a*b::",
        "",
        "    a * b",
        "",
        "    c * d",
        "",
        "Then a*b.",
        "",
        "    A quoted a*b.",
        "",
        ".. note:: a*b",
    )
    assert converted(docstrings, *lines) == [
        *(r"See a\*b::", "    a * b", "    c * d", r"Then a\*b.", r"    A quoted a\*b.", ".. note:: a*b"),
    ]


def test_sections_become_fields_and_errors_of_xcam_are_linked(docstrings: Any) -> None:
    lines = (
        "Do it.",
        "",
        "Args:",
        "    x: An array [N, *space].",
        "Raises:",
        "    InputError: It is wrong.",
        "    KeyError: Never.",
    )
    assert converted(docstrings, *lines) == [
        *(
            "Do it.",
            r":param x: An array [N, \*space].",
            ":raises xcam.InputError: It is wrong.",
            ":raises KeyError: Never.",
        ),
    ]


def test_markup_of_napoleon_stays(docstrings: Any) -> None:
    assert converted(docstrings, "Warns:", "    UserWarning: It is [*x].") == [
        r":Warns: **UserWarning** -- It is [\*x]."
    ]


def test_text_before_a_colon_is_not_a_type(docstrings: Any) -> None:
    assert converted(docstrings, "In −1…1: the raw map.") == ["In −1…1: the raw map."]
    assert converted(docstrings, "Returns:", "    The model: a new object.") == [":returns: The model: a new object."]


def test_names_of_the_project_are_shown_without_their_module(docstrings: Any) -> None:
    signature = "(layer: xcam.contract.types.Layer, path: os.PathLike)"
    assert docstrings.sign(None, "", "", None, None, signature, "xcam.Model") == (
        "(layer: ~xcam.contract.types.Layer, path: os.PathLike)",
        "~xcam.Model",
    )
