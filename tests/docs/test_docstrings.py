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


def test_code_and_directives_of_a_docstring_stay(docstrings: Any) -> None:
    lines = ["See a*b::", "", "    a * b", "", "Then a*b.", "", ".. note:: a*b"]
    docstrings.process(None, "", "", None, None, lines)
    assert lines == [r"See a\*b::", "", "    a * b", "", r"Then a\*b.", "", ".. note:: a*b"]


def test_errors_of_xcam_are_linked(docstrings: Any) -> None:
    lines = [":raises InputError: An index is wrong.", ":raises KeyError: never"]
    docstrings.process(None, "", "", None, None, lines)
    assert lines == [":raises xcam.InputError: An index is wrong.", ":raises KeyError: never"]


def test_names_of_the_project_are_shown_without_their_module(docstrings: Any) -> None:
    signature = "(layer: xcam.contract.types.Layer, path: os.PathLike)"
    assert docstrings.sign(None, "", "", None, None, signature, "xcam.Model") == (
        "(layer: ~xcam.contract.types.Layer, path: os.PathLike)",
        "~xcam.Model",
    )
