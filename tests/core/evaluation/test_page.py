"""The page on an evaluation: what is on it, and that names from outside do nothing there."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from xcam import InputError
from xcam.evaluation.page import _lead, _ticks, page
from xcam.evaluation.registry import get
from xcam.evaluation.result import Evaluation

HOSTILE = "<script>alert(1)</script>"


def evaluation(n: int = 12, name: str = "gradcam") -> Evaluation:
    rng = np.random.default_rng(0)
    columns = {
        method: {"deletion": rng.normal(mean, 0.02, n), "insertion": rng.normal(1 - mean, 0.02, n)}
        for method, mean in ((name, 0.1), ("random", 0.4))
    }
    return Evaluation(
        model=f"net {HOSTILE} (onnx)",
        layer="conv5",
        pictures=tuple(f"{HOSTILE}{k}.png" for k in range(n)),
        targets=("cat",) * n,
        values=columns,
        measures=(get("deletion"), get("insertion")),
        failed=((f"{HOSTILE}.png", f"cannot read {HOSTILE}.png"),),
        notes=("weights are random",),
    )


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.styled = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.styled += any(key == "style" or key.startswith("on") for key, _ in attrs)


def test_the_page_holds_the_numbers_and_nothing_that_runs(tmp_path: Path) -> None:
    found = evaluation()
    found.save(tmp_path / "trust.html")
    text = (tmp_path / "trust.html").read_text(encoding="utf-8")
    seen = Seen()
    seen.feed(text)
    assert seen.tags.count("script") == 1
    assert seen.styled == 0, "the page's policy forbids it"
    assert HOSTILE not in text
    assert "&lt;script&gt;alert(1)" in text
    assert seen.tags.count("svg") == 4, "wide and narrow, for two measures"
    assert len(re.findall("better than random: ", text)) == 2
    assert "gradcam comes out best, with a mean place of 1.0 of 2" in text
    assert "weights are random" in text
    assert "2 of 2" in text


def test_methods_that_are_equally_good_are_all_named() -> None:
    found = evaluation()
    twin = dataclasses.replace(found, values={**found.values, "hirescam": found.values["gradcam"]})
    said = _lead(twin)
    assert "gradcam and hirescam come out equally well, with a mean place of 1.5 of 3." in said
    assert "best" not in said
    assert "gradcam comes out best" in _lead(found)


def test_where_things_are_drawn() -> None:
    """On one scale: gradcam is left of random by deletion, and the interval lies around the mean."""
    ((_, wide), _) = page(evaluation())["measures"][0]["charts"]
    ours, floor = wide["bars"]
    assert ours.low <= ours.mean <= ours.high < floor.low <= floor.mean <= floor.high
    assert (ours.kind, floor.kind) == ("before", "culprit")
    assert wide["floor"] is floor
    assert all(wide["left"] <= x <= wide["width"] for x, _ in wide["ticks"])
    assert len(wide["ticks"]) >= 3


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.3, 0.31), (0.0878, 0.0979), (-1e-4, 2e-4), (0, 250)])
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    found = _ticks(low, high, 5)
    assert 2 <= len(found) <= 6
    assert low <= found[0] < found[-1] <= high
    assert np.allclose(np.diff(found), found[1] - found[0])


def test_one_picture_has_no_intervals_and_no_method_but_one(tmp_path: Path) -> None:
    single = evaluation(1)
    assert "One picture gives no intervals" in page(single)["lead"]
    single.save(tmp_path / "one.html")
    assert " to " not in str([m["cells"] for m in page(single)["measures"]])


def test_a_place_that_is_no_page() -> None:
    with pytest.raises(InputError, match=r"end it in \.html"):
        evaluation().save("trust.pdf")
