"""Docstrings, as they reach the reference: parameters become fields, code becomes code, formulas stay as they stand."""

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


def test_parameters_become_fields(docstrings: Any) -> None:
    """On lines of their own, behind each other, two under one text, and continued."""
    lines = ["Do it.", "", "a: one. b, c: two,", "    and more. d: four.", "Then this."]
    found = list(docstrings.converted(lines, ["a", "b", "c", "d"]))
    assert [line for line in found if line] == [
        "Do it.",
        ":param a: one.",
        ":param b: two, and more.",
        ":param c: two, and more.",
        ":param d: four.",
        "Then this.",
    ]


def test_a_word_with_a_colon_that_is_no_parameter_stays(docstrings: Any) -> None:
    assert list(docstrings.converted(["Default: a. Note: b."], ["a"])) == ["Default: a. Note: b."]


def test_markup(docstrings: Any) -> None:
    assert docstrings.marked("[N, C, *spatial] of `x_` max |Δ|") == r"[N, C, \*spatial] of \ ``x_``\  max \|Δ\|"
    assert docstrings.marked("Raises InputError.") == r"Raises \ :py:exc:`~xcam.InputError`\ ."
    assert docstrings.marked("`xcam.load` and `load`") == r"\ :py:obj:`xcam.load <xcam.load>`\  and \ ``load``\ "
    assert docstrings.marked("with --require") == r"with \ ``--require``\ "


def test_indented_code_stays_code(docstrings: Any) -> None:
    assert list(docstrings.converted(["See:", "", "    a * b", "", "Then."], [])) == [
        "See:", "", "::", "", "    a * b", "", "Then.",
    ]  # fmt: skip
