"""The report of a blame."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import blocks
import xcam
from report_pages import HOSTILE, Reader
from xcam.comparison.diagnosis import Diagnosis


@pytest.fixture(scope="module")
def result() -> xcam.Blame:
    models = [blocks.network(), blocks.network("second", b1=lambda w: w * 1.3, fc=lambda w: w[:, ::-1])]
    return xcam.blame(models, blocks.images(2))


def written(tmp_path: Path, blame: xcam.Blame) -> Reader:
    blame.save(tmp_path / "blame.html")
    return Reader((tmp_path / "blame.html").read_text("utf-8"))


def test_named_locations_and_contributions(tmp_path: Path, result: xcam.Blame) -> None:
    reader = written(tmp_path, result)
    text = " ".join(reader.text.split())
    assert "2 locations of second (numpy) have errors of their own" in text
    assert "pool → fc" in text
    assert "inside1 → b1" in text
    rects = [tag for tag, attributes in reader.tags if tag == "rect" and "part" in attributes.get("class", "")]
    assert len(rects) == 2 + 2 * 2 * len(result.stretches), "two series in two charts, and their keys"
    marked = [a for tag, a in reader.tags if tag == "circle" and a["class"] == "dot marked"]
    assert len(marked) == 2 * 2


def test_no_difference_has_no_chart(tmp_path: Path) -> None:
    reader = written(tmp_path, xcam.blame([blocks.network(), blocks.network("second")], blocks.images()))
    assert "No difference" in reader.text
    assert not [tag for tag, _ in reader.tags if tag == "circle"]


def test_estimates_are_marked(tmp_path: Path) -> None:
    models = [blocks.network(), blocks.network("second", b1=lambda w: w * 1.3)]
    text = written(tmp_path, xcam.blame(models, blocks.images(), fast=True)).text
    assert "Estimated contributions" in text
    assert "The shares add up" not in text


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_not_markup(tmp_path: Path, result: xcam.Blame, name: str) -> None:
    first, *others = result.stretches
    hostile = replace(first, start=name, second=name, first=name, named=True, cause=Diagnosis("channel-scale", name))
    changed = replace(
        result, names=(name, name), stretches=(hostile, *others), findings=(name,), failed=((name, name),)
    )
    reader = written(tmp_path, changed)
    assert {tag for tag, _ in reader.tags} == {
        tag for tag, _ in written(tmp_path, replace(result, failed=(("a", "b"),), findings=("a",))).tags
    } | {"br"} - {"br"}


def test_a_notebook_shows_the_table(result: xcam.Blame) -> None:
    reader = Reader(result._repr_html_())
    assert "pool → fc" in " ".join(reader.text.split())
    assert "script" not in {tag for tag, _ in reader.tags}
