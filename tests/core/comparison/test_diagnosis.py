"""The codes of diagnoses: stable, used, and documented."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from xcam.comparison.diagnosis import CODES, Diagnosis

ROOT = Path(__file__).parents[3]


def test_all_codes_that_checks_return_are_listed() -> None:
    sources = [path.read_text("utf-8") for path in (ROOT / "core/xcam/comparison").glob("*.py")]
    calls = [call for source in sources for call in re.findall(r"Diagnosis\(\s*([^)]*)", source)]
    returned = {code for call in calls for code in re.findall(r'"([a-z]+(?:-[a-z]+)*)"', call)}
    assert returned == set(CODES)


def test_every_code_is_documented_with_its_meaning() -> None:
    text = (ROOT / "docs/reference/diagnoses.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", text, re.MULTILINE))
    assert rows == CODES


def test_an_unknown_code_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown code 'gremlins'"):
        Diagnosis("gremlins", "small creatures")


def test_as_json() -> None:
    assert Diagnosis("rgb-bgr", "swapped").to_dict() == {"code": "rgb-bgr", "text": "swapped"}
