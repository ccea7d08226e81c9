"""The report on an evaluation: its content, and names that contain markup."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from xcam import InputError
from xcam.evaluation.page import _lead, _ticks, page, write
from xcam.evaluation.registry import get
from xcam.evaluation.scores import Scores

HOSTILE = "<script>alert(1)</script>"


def evaluation(n: int = 12, name: str = "gradcam") -> Scores:
    rng = np.random.default_rng(0)
    columns = {
        method: {"deletion": rng.normal(mean, 0.02, n), "insertion": rng.normal(1 - mean, 0.02, n)}
        for method, mean in ((name, 0.1), ("random", 0.4))
    }
    return Scores(
        model=f"net {HOSTILE} (onnx)",
        layer="conv5",
        images=tuple(f"{HOSTILE}{k}.png" for k in range(n)),
        targets=("cat",) * n,
        values=columns,
        measures=(get("deletion"), get("insertion")),
        failed=((f"{HOSTILE}.png", f"cannot read {HOSTILE}.png"),),
        notes=("weights are random",),
    )


class Tags(HTMLParser):
    """Return the tags of a page, and the number of those with their own style or handler."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.styled = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.styled += any(key == "style" or key.startswith("on") for key, _ in attrs)


def test_the_page_has_the_values_and_no_markup_from_names(tmp_path: Path) -> None:
    write(evaluation(), tmp_path / "trust.html")
    text = (tmp_path / "trust.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert tags.tags.count("script") == 1
    assert tags.styled == 0, "the page's policy forbids it"
    assert HOSTILE not in text
    assert "&lt;script&gt;alert(1)" in text
    assert tags.tags.count("svg") == 4, "wide and narrow, for two measures"
    assert len(re.findall("better than random: ", text)) == 2
    assert "gradcam is best, with a mean rank of 1.0 of 2" in text
    assert "weights are random" in text
    assert "2 of 2" in text


def test_methods_that_are_equally_good_are_all_named() -> None:
    scores = evaluation()
    twin = dataclasses.replace(scores, values={**scores.values, "hirescam": scores.values["gradcam"]})
    lead = _lead(twin)
    assert "gradcam and hirescam are equally good, with a mean rank of 1.5 of 3." in lead
    assert "best" not in lead
    assert "gradcam is best" in _lead(scores)


def test_positions_in_the_chart() -> None:
    """On one scale: gradcam is left of random by deletion, and the interval contains the mean."""
    ((_, wide), _) = page(evaluation())["measures"][0]["charts"]
    ours, floor = wide["bars"]
    assert ours.low <= ours.mean <= ours.high < floor.low <= floor.mean <= floor.high
    assert (ours.kind, floor.kind) == ("before", "marked")
    assert wide["floor"] is floor
    assert all(wide["left"] <= x <= wide["width"] for x, _ in wide["ticks"])
    assert len(wide["ticks"]) >= 3


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.3, 0.31), (0.0878, 0.0979), (-1e-4, 2e-4), (0, 250)])
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    ticks = _ticks(low, high, 5)
    assert 2 <= len(ticks) <= 6
    assert low <= ticks[0] < ticks[-1] <= high
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_one_image_has_no_intervals(tmp_path: Path) -> None:
    single = evaluation(1)
    assert "One image gives no intervals" in page(single)["lead"]
    write(single, tmp_path / "one.html")
    assert " to " not in str([m["cells"] for m in page(single)["measures"]])


def test_a_file_name_that_does_not_end_in_html() -> None:
    with pytest.raises(InputError, match=r"end it in \.html"):
        write(evaluation(), Path("trust.pdf"))
