"""The codes of diagnoses: stable, used, and documented."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from xcam.comparison.diagnosis import CODES, REMEDIES, Diagnosis

ROOT = Path(__file__).parents[3]


def test_all_codes_that_checks_return_are_listed() -> None:
    paths = [p for p in (ROOT / "core/xcam/comparison").rglob("*.py") if p.name != "diagnosis.py"]
    sources = [path.read_text("utf-8") for path in paths]
    returned = {code for source in sources for code in re.findall(r'"([a-z]+(?:-[a-z]+)*)"', source)}
    kinds = {"activation", "pooling", "interpolation"}
    assert returned | kinds >= set(CODES)
    calls = [call for source in sources for call in re.findall(r'(?:Diagnosis|Suspicion)\(\s*"([^"]*)"', source)]
    assert set(calls) <= set(CODES)
    assert calls


def test_every_code_has_a_remedy() -> None:
    assert set(REMEDIES) == set(CODES)
    for text in REMEDIES.values():
        assert re.fullmatch(r"[A-Z].*\.", text)
    assert Diagnosis("missing-bias", "text").remedy == "Copy the bias."


def test_every_code_is_documented_with_its_meaning() -> None:
    text = (ROOT / "docs/reference/diagnoses.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", text, re.MULTILINE))
    assert rows == CODES


def test_an_unknown_code_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown code 'gremlins'"):
        Diagnosis("gremlins", "small creatures")


def test_as_json() -> None:
    assert Diagnosis("missing-bias", "no bias", "rerun", 0.01).to_dict() == {
        "code": "missing-bias",
        "text": "no bias",
        "proof": "rerun",
        "left": 0.01,
        "remedy": "Copy the bias.",
    }


@pytest.mark.parametrize(
    ("proof", "left", "text"),
    [
        ("rerun", 0.0, "proven: undone, it leaves less than 0.1 % of the difference"),
        ("rerun", 0.0123, "proven: undone, it leaves 1.2 % of the difference"),
        ("fit", 0.05, "fits: undone, it leaves 5 % of the difference"),
        ("fit", None, "fits the values"),
        ("rerun", None, "proven by running it again"),
    ],
)
def test_the_evidence(proof: Any, left: float | None, text: str) -> None:
    assert Diagnosis("missing-bias", "no bias", proof, left).evidence == text
