"""The figures and tables of the documentation are those of the program, and every method has a section."""

from __future__ import annotations

import csv
import re
import runpy
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import ground_truth
import xcam

DOCS = Path(__file__).parents[2] / "docs"
PAGES = DOCS / "explanation"
SECTIONS = {
    heading.strip("`"): text
    for page in ("methods", "gradients", "principal", "perturbation")
    for heading, text in re.findall(
        r"^## ([^\n]+)\n(.*?)(?=^## |\Z)",
        (PAGES / f"{page}.md").read_text(encoding="utf-8"),
        re.DOTALL | re.MULTILINE,
    )
}
COSTLY = ("scorecam", "sscam", "iscam")
LARGEST = 1_500_000
"""The largest total size of the figures of the explanation pages, in bytes."""


@cache
def script(name: str) -> dict[str, Any]:
    return runpy.run_path(str(DOCS / f"{name}.py"))


@cache
def model() -> Any:
    return xcam.load("demo", "onnx")


def table(name: str) -> list[dict[str, str]]:
    with (PAGES / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_script_draws_the_committed_figures(tmp_path: Path) -> None:
    script("make_pictures")["main"](tmp_path)
    names = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.png"))
    assert names == [Path("demo.png"), *sorted(Path("pictures", path.name) for path in DOCS.glob("pictures/*"))]
    for name in names:
        again, committed = (cv2.imread(str(folder / name)).astype(int) for folder in (tmp_path, DOCS))
        assert again.shape == committed.shape, name
        difference = np.abs(again - committed)
        assert difference.mean() < 0.5, name
        assert (difference > 16).mean() < 0.002, name


def test_figures_are_small() -> None:
    assert sum(path.stat().st_size for path in DOCS.glob("pictures/*")) < LARGEST


@pytest.mark.parametrize("name", xcam.list_methods())
def test_every_method_has_a_section(name: str) -> None:
    """Formula, source, cost, options and figure, and when the method misleads."""
    method, text = xcam.list_methods()[name], SECTIONS[name]
    assert re.search(r"^\$\$.+?\$\$$", text, re.DOTALL | re.MULTILINE)
    assert f"- Source: {method.source}" in text
    assert f"- Cost: {method.passes}" in text
    options = ", ".join(f"`{option}={value}`" for option, value in method.options.items()) or "none"
    assert f"- Options: {options}\n" in text
    assert f"{{image}} ../pictures/{script('make_pictures')['file_name'](name)}\n:alt: " in text
    assert "When it misleads: " in text or name == "random"


def test_every_figure_is_shown_and_described() -> None:
    shown = {}
    for page in PAGES.glob("*.md"):
        for name, alt in re.findall(r"\{image\} \.\./pictures/(\S+)\n:alt: (.+)", page.read_text(encoding="utf-8")):
            shown[name] = alt
    assert set(shown) == {path.name for path in DOCS.glob("pictures/*")}
    assert all(len(alt) > 40 for alt in shown.values())


def test_the_scenes_are_those_of_the_tests() -> None:
    for ours, theirs in zip(
        script("make_figures")["scenes_with_two"](3), ground_truth.scenes_with_two(3), strict=True
    ):
        np.testing.assert_array_equal(ours.image, theirs.image)


def test_the_table_of_logits() -> None:
    headings, rows = script("make_figures")["LOGITS"], script("make_figures")["logit_rows"](model())
    for row, stored in zip(rows, table("logits.csv"), strict=True):
        assert tuple(stored) == headings
        assert row[:2] == [stored["image"], stored["class"]]
        actual, expected = ([float(cell) for cell in cells[2:]] for cells in (row, list(stored.values())))
        assert actual == pytest.approx(expected, rel=0.01, abs=2e-4)


def test_the_table_of_peaks_names_every_method() -> None:
    rows = table("peaks.csv")
    assert tuple(rows[0]) == script("make_figures")["PEAKS"]
    assert [row["method"].strip("`") for row in rows] == list(xcam.list_methods())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in xcam.list_methods() if name not in COSTLY])
def test_the_table_of_peaks(name: str) -> None:
    """One map of forty may differ: the maximum may move from one of two equal values to the other."""
    stored = next(row for row in table("peaks.csv") if row["method"] == f"`{name}`")
    layers = 2 if name == "reciprocam" else 3  # conv3 has 1024 positions
    scenes = ground_truth.scenes_with_two(20)
    (_, on_target, on_any, *rest) = stored.values()
    for layer, share in zip(script("make_figures")["LAYERS"][:layers], (on_target, *rest), strict=False):
        assert ground_truth.hits(model(), scenes, name, layer=layer) == pytest.approx(float(share), abs=0.026), layer
    assert script("make_figures")["peaks"](model(), scenes, name, "conv5")[1] == pytest.approx(
        float(on_any), abs=0.026
    )


def test_methods_that_the_pages_call_equal_are_equal() -> None:
    image = script("make_figures")["scenes_with_two"]()[18].image

    def cam(method: str, layer: str) -> Any:
        raw = xcam.explain(model(), image, layer=layer, target="ring", method=method).cam
        return raw / np.abs(raw).max()

    for method in ("xgradcam", "hirescam", "shapleycam"):
        np.testing.assert_allclose(cam(method, "conv5"), cam("gradcam", "conv5"), atol=1e-3)
    assert np.abs(cam("hirescam", "conv4") - cam("gradcam", "conv4")).max() > 0.1
    np.testing.assert_allclose(cam("gradcam-elementwise", "conv4"), cam("layercam", "conv4"), atol=1e-6)


def test_a_class_can_win_with_an_empty_map() -> None:
    """The numbers of logits.md on the image without a shape."""
    from xcam.models.demo import scenes

    rng = np.random.default_rng(77_002)
    image = [scenes.scene(rng, []).image for _ in range(42)][-1]
    with pytest.warns(xcam.ZeroHeatmapWarning):
        e = xcam.explain(model(), image)
    assert e.label == "star"
    assert e.scores[e.index] == pytest.approx(0.61, abs=0.01)
    assert -46 < e.outputs.min() < e.outputs.max() < -38
    assert xcam.explain(model(), image, score="probability").heatmap.max() > 0.9
