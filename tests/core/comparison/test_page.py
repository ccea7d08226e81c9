"""The report of a comparison."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from report_pages import (
    Reader,
    comparison,
    detailed_image,
    divergence,
    explained,
    measured,
    reduced_divergence,
    written,
)
from xcam import Comparison
from xcam.comparison import ImageComparison, Verdict, page


@pytest.mark.slow
def test_ten_images_of_three_models_weigh_less_than_two_megabytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    pairs = [(0, 1), (0, 2), (1, 2)]
    images = tuple(
        ImageComparison(
            Path(f"{k}.jpg"),
            tuple(explained(detailed_image(k, 1200, 1600), rng.random((14, 14))) for _ in range(3)),
            dict.fromkeys(pairs, measured("different", 0.9)),
        )
        for k in range(10)
    )
    Comparison(("a", "b", "c"), ("l",) * 3, "gradcam", images).save(tmp_path / "big.html")
    assert 200_000 < (tmp_path / "big.html").stat().st_size < 2_000_000


@pytest.mark.parametrize(
    ("verdict", "text"),
    [
        ("identical", "Both models look at the same regions in both images"),
        ("equivalent", "differ by 1.0\u00a0×\u00a010⁻⁶ at most. On these images, one can replace the other."),
        ("different", "In both images, the two models look at different regions."),
    ],
)
def test_the_verdict_in_sentences(tmp_path: Path, verdict: Verdict, text: str) -> None:
    reader = Reader(written(tmp_path, comparison(verdict=verdict)))
    assert text in reader.text
    assert [a["class"] for a in reader.has("header")] == [f"verdict {verdict}"]


def test_the_first_difference_and_its_cause_are_on_top(tmp_path: Path) -> None:
    html = written(tmp_path, comparison(verdict="different", divergences=(divergence(None), divergence())))
    top = Reader(html[: html.index("</header>")]).text
    assert "begins at layer b2 of model B (a2 in A): the relative error of its activations is 0.04" in " ".join(
        top.split()
    )
    assert "Cause: a bias is missing (fits the values)." in top


def test_a_difference_without_a_first_layer(tmp_path: Path) -> None:
    text = Reader(written(tmp_path, comparison(verdict="different", divergences=(divergence(None),)))).text
    assert "The difference does not begin at a single layer." in text


def test_a_comparison_without_images_is_not_identical(tmp_path: Path) -> None:
    reader = Reader(written(tmp_path, comparison(0, failed=(("a.jpg", "a.jpg is not an image"),))))
    assert "Nothing could be compared" in reader.text
    assert "dentical" not in reader.text
    assert "is not an image" in reader.text


def test_one_model_cannot_be_compared(tmp_path: Path) -> None:
    text = Reader(written(tmp_path, comparison(1, 1))).text
    assert "takes two models" in text
    assert "dentical" not in text


def test_the_worst_image_comes_first_and_is_open(tmp_path: Path) -> None:
    c = comparison(6)
    c.images[4].measures[0, 1] = measured("different", 0.7)
    c.images[2].measures[0, 1] = measured("different", 0.9)
    cards = [a for a in Reader(written(tmp_path, c)).has("details") if a["class"] == "card"]
    assert ["open" in a for a in cards] == [True] + [False] * 5
    assert [card["name"] for card in page.content(c)["cards"]][:3] == ["2.jpg", "4.jpg", "0.jpg"]


def test_difference_maps_share_a_scale_on_which_rounding_stays_dark() -> None:
    quiet = page.content(comparison(1, 2))
    assert quiet["brightest"] == "0.05"
    loud = comparison(2, 2)
    loud.images[0].measures[0, 1] = measured("different", 0.31)
    assert page.content(loud)["brightest"] == "0.5"


def test_an_image_is_embedded_once(tmp_path: Path) -> None:
    html = written(tmp_path, comparison(1, 3))
    assert html.count("data:image/") == 1 + 3 + 3  # the image, three heatmaps, three differences
    assert html.count('<use href="#image-0"/>') == 1 + 3 + 3


def test_each_layer_has_a_name_in_the_chart(tmp_path: Path) -> None:
    html = written(tmp_path, comparison(verdict="different", divergences=(divergence(),)))
    assert "<title>3 of 4, a2 ↔ b2: error 0.04 (first that differs)</title>" in html


def test_the_same_comparison_gives_the_same_file(tmp_path: Path) -> None:
    assert written(tmp_path, comparison()) == written(tmp_path, comparison())


def test_the_layer_that_a_reduced_precision_does_not_explain(tmp_path: Path) -> None:
    html = written(tmp_path, comparison(verdict="different", divergences=(reduced_divergence(),)))
    top = " ".join(Reader(html[: html.index("</header>")]).text.split())
    assert "Layer b1 of model B (a1 in A) differs by more than its precision explains" in top
    assert "its relative error is 0.03, and 0.002 is expected" in top
    assert "<title>2 of 4, a1 ↔ b1: own error 0.03, expected 0.002 (stands out)</title>" in html
    assert html.count("<title>4 of 4") == 0  # it adds no error
    assert html.count('class="band"') == 2  # in the wide and in the narrow chart
    assert '<td class="n">0.1</td><td class="n">0.03</td><td class="n">0.002</td>' in html


def test_a_reduced_precision_that_explains_every_layer(tmp_path: Path) -> None:
    html = written(tmp_path, comparison(verdict="equivalent", divergences=(reduced_divergence(None),)))
    text = " ".join(Reader(html).text.split())
    assert "No layer stands out. They differ evenly, as int8 does." in text
    assert "The precision explains the error of every layer." in text
    assert "(fits the values)" not in text


def test_a_check_that_failed_is_noted(tmp_path: Path) -> None:
    failing = replace(divergence(), cause=None, notes=("the check for another padding failed: ValueError: 7",))
    html = written(tmp_path, comparison(verdict="different", divergences=(failing,)))
    assert "the check for another padding failed: ValueError: 7" in Reader(html).text
    assert "Cause:" not in html
