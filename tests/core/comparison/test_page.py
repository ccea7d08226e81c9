"""The report as text: what it says, what it weighs, what it refuses, and what a hostile name can do in it: nothing."""

from __future__ import annotations

import base64
import builtins
import hashlib
import math
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from xcam import ClassScore
from xcam.comparison import chart, page, sentences
from xcam.comparison.result import Comparison, Divergence, ImageComparison, Measures, Step, Verdict
from xcam.errors import BackendError, InputError
from xcam.explanation.result import Explanation
from xcam.report import rendering, thumbnails

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><style>*{display:none}",
    "</script><script>alert(1)</script>",
    "{{7*7}}{% include 'style.css' %}",
    "--><!-- javascript:alert(1)",
    "Straße/日本語/שלום/\N{RIGHT-TO-LEFT OVERRIDE}gpj.🐯",
    "nul\0bell\a\x9b",
    "undecodable \udcff",
    "long" * 1000,
)


def explained(picture: np.ndarray, cam: np.ndarray, label: str = "tiger", **fields: Any) -> Explanation:
    outputs = np.array([0.5, 3.0, 1.0, 0.0], np.float32)
    scores = np.exp(outputs) / np.exp(outputs).sum()
    known: dict[str, Any] = {
        "layer": "conv5",
        "method": "gradcam",
        "backend": "onnx",
        "model": "net",
        "path": Path("picture.jpg"),
    } | fields
    return Explanation(picture, cam.astype(np.float32), outputs, scores, ClassScore(1), 1, label, 3.0, **known)


def measured(verdict: Verdict = "identical", largest: float = 1e-6, same_class: bool = True) -> Measures:
    return Measures(largest, 0.99999, 0.98765, 1.0, 0.75, 0.123, math.nan, same_class, verdict)


def photo(seed: int, height: int = 600, width: int = 800) -> np.ndarray:
    """Something with as much detail as a photograph: waves, edges and noise."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8), (width, height))
    noise = rng.normal(0, 12, (height, width, 3))
    return np.clip(coarse + noise, 0, 255).astype(np.uint8)


def comparison(n: int = 2, models: int = 2, verdict: Verdict = "identical", **fields: Any) -> Comparison:
    rng = np.random.default_rng(7)
    pairs = [(a, b) for a in range(models) for b in range(a + 1, models)]
    seen = [
        ImageComparison(
            Path(f"folder/{k}.jpg"),
            tuple(
                explained(photo(k, 120, 160), rng.random((7, 7)), path=Path(f"folder/{k}.jpg")) for _ in range(models)
            ),
            dict.fromkeys(pairs, measured(verdict)),
        )
        for k in range(n)
    ]
    names = tuple(f"net {k}" for k in range(models))
    return Comparison(
        **{"names": names, "layers": ("conv5",) * models, "method": "gradcam", "images": tuple(seen)} | fields
    )


def written(tmp_path: Path, content: Comparison | list[Explanation]) -> str:
    path = tmp_path / "report.html"
    if isinstance(content, Comparison):
        rendering.write(content, path)
    else:
        rendering.write_single(content, path)
    return path.read_text("utf-8")


class Reader(HTMLParser):
    """The elements of a page with their attributes, and its text without style and script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.inline: dict[str, list[str]] = {"style": [], "script": []}
        self._in = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._in = tag

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in in self.inline:
            self.inline[self._in].append(data)
        else:
            self.text += data

    def has(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.mark.slow
def test_ten_pictures_of_three_models_weigh_less_than_two_megabytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    pairs = [(0, 1), (0, 2), (1, 2)]
    seen = tuple(
        ImageComparison(
            Path(f"{k}.jpg"),
            tuple(explained(photo(k, 1200, 1600), rng.random((14, 14))) for _ in range(3)),
            dict.fromkeys(pairs, measured("different", 0.9)),
        )
        for k in range(10)
    )
    rendering.write(Comparison(("a", "b", "c"), ("l",) * 3, "gradcam", seen), tmp_path / "big.html")
    assert 200_000 < (tmp_path / "big.html").stat().st_size < 2_000_000


def test_embedded_pictures_are_what_they_were(tmp_path: Path) -> None:
    picture, cam = photo(1, 300, 1024), np.zeros((4, 4))
    cam[1, 2] = 5
    html = written(tmp_path, [explained(picture, cam)])
    found = re.findall(r"data:image/(?:png|jpeg);base64,([A-Za-z0-9+/=]+)", html)
    assert len(found) == 2  # the photo once, and its heatmap
    small, heat = (cv2.imdecode(np.frombuffer(base64.b64decode(f), np.uint8), cv2.IMREAD_COLOR_RGB) for f in found)
    assert small.shape == (150, 512, 3)
    expected = cv2.resize(picture, (512, 150), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - expected).mean() < 8
    hot = heat[round(heat.shape[0] * 0.375), round(heat.shape[1] * 0.625)]
    cold = heat[-4, 4]
    assert hot[0] > 100 > hot[2]  # red: jet's upper end
    assert cold[2] > 100 > cold[0]  # blue


def test_a_small_drawing_is_kept_without_loss() -> None:
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[8:24, 8:24] = (250, 10, 10)
    embedded = thumbnails.photo(picture)
    kind, data = embedded.uri.split(";base64,")
    assert kind == "data:image/png"
    assert (embedded.width, embedded.height) == (32, 32)
    back = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(back, picture)


@pytest.mark.parametrize("shape", [(2, 5000), (5000, 2), (2, 2)])
def test_extreme_shapes(tmp_path: Path, shape: tuple[int, int]) -> None:
    picture = np.full((*shape, 3), 90, np.uint8)
    assert "data:image/" in written(tmp_path, [explained(picture, np.ones((3, 3)))])


def test_many_pictures_shrink() -> None:
    assert thumbnails.side_for(1) == thumbnails.side_for(12) == 512
    assert thumbnails.side_for(48) == 256
    assert thumbnails.side_for(10_000) == 192


@pytest.mark.parametrize("kind", ["comparison", "single"])
def test_the_policy_names_the_one_style_and_the_one_script(tmp_path: Path, kind: str) -> None:
    html = written(tmp_path, comparison() if kind == "comparison" else [explained(photo(0), np.ones((2, 2)))])
    page = Reader(html)
    policies = [m["content"] for m in page.has("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    rules = dict(rule.strip().split(" ", 1) for rule in policies[0].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert "unsafe" not in policies[0]
    for tag in ("style", "script"):
        assert len(page.has(tag)) == 1
        digest = hashlib.sha256("".join(page.inline[tag]).encode()).digest()
        assert rules[f"{tag}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert html.index("Content-Security-Policy") < html.index("<style>")  # it holds for what follows it only


@pytest.mark.parametrize("kind", ["comparison", "single"])
def test_nothing_is_loaded_and_nothing_is_inline(tmp_path: Path, kind: str) -> None:
    full = comparison(2, 3, "different", divergences=(divergence(),))
    html = written(tmp_path, full if kind == "comparison" else [explained(photo(0), np.ones((2, 2)))] * 2)
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    for tag, attributes in Reader(html).tags:
        assert tag not in ("iframe", "object", "embed", "base", "form")
        assert not [a for a in attributes if a.startswith("on") or a == "style"]
        for name in ("src", "href", "xlink:href", "srcset", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:"))


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("kind", ["comparison", "single"])
def test_a_hostile_name_is_text(tmp_path: Path, name: str, kind: str) -> None:
    harmless, nasty = page_with("harmless", kind, tmp_path), page_with(name, kind, tmp_path)
    plain, page = Reader(harmless), Reader(nasty)
    # The same elements with the same attributes: the name added none, and broke out of none.
    assert [(t, sorted(a)) for t, a in page.tags] == [(t, sorted(a)) for t, a in plain.tags]
    assert page.inline == plain.inline
    shown = re.sub("[\0\a\x9b]", "\N{REPLACEMENT CHARACTER}", name).replace("\udcff", "?")
    assert shown in page.text
    assert not re.search("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", nasty)


def page_with(name: str, kind: str, tmp_path: Path) -> str:
    picture = photo(0, 40, 60)
    seen = tuple(
        explained(
            picture,
            np.eye(3),
            name,
            layer=name,
            method=name,
            model=name,
            backend=name,
            path=Path(f"d/{name}"),
            notes=(name,),
        )
        for _ in range(2)
    )
    if kind == "single":
        return written(tmp_path, list(seen))
    steps = (Step(name, name, 1e-7), Step(name, name + "2", 0.1))
    return written(
        tmp_path,
        Comparison(
            (name, name),
            (name, name),
            name,
            (ImageComparison(Path(f"d/{name}"), seen, {(0, 1): measured("different", 0.4)}),),
            (Divergence((0, 1), steps, 1, name),),
            (name,),
            ((name, name + " why"),),
            (name,),
        ),
    )


def divergence(culprit: int | None = 2) -> Divergence:
    errors = (0.0, 2e-7, 0.04, 0.1)
    return Divergence(
        (0, 1), tuple(Step(f"a{k}", f"b{k}", e) for k, e in enumerate(errors)), culprit, "a bias is missing"
    )


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("identical", "Both models look at the same places in both pictures"),
        ("equivalent", "differ by 1.0\u00a0×\u00a010⁻⁶ at most. On these pictures, one can stand in for the other."),
        ("different", "In both pictures, the two models look at different places."),
    ],
)
def test_the_verdict_in_words(tmp_path: Path, verdict: Verdict, said: str) -> None:
    page = Reader(written(tmp_path, comparison(verdict=verdict)))
    assert said in page.text
    assert [a["class"] for a in page.has("header")] == [f"verdict {verdict}"]


def test_the_verdict_counts_pictures_pairs_and_classes() -> None:
    c = comparison(3, 3)
    c.images[1].measures[0, 2] = measured("different", 0.5, same_class=False)
    said = sentences.sentences(c)
    assert said == [
        "In 1 of 3 pictures, the models look at different places: 1 of their 3 pairs differ.",
        "They name different classes in 1 picture.",
    ]


def test_the_culprit_and_its_cause_are_on_top(tmp_path: Path) -> None:
    html = written(tmp_path, comparison(verdict="different", divergences=(divergence(None), divergence())))
    top = Reader(html[: html.index("</header>")]).text
    assert "begins at layer b2 of model B (a2 in A): the relative error of its activations is 0.04" in " ".join(
        top.split()
    )
    assert "Likely cause: a bias is missing" in top


def test_no_culprit_is_said(tmp_path: Path) -> None:
    text = Reader(written(tmp_path, comparison(verdict="different", divergences=(divergence(None),)))).text
    assert "No single layer was found" in text


def test_nothing_compared_is_no_good_news(tmp_path: Path) -> None:
    page = Reader(written(tmp_path, comparison(0, failed=(("a.jpg", "a.jpg is not a picture"),))))
    assert "Nothing could be compared" in page.text
    assert "dentical" not in page.text
    assert "is not a picture" in page.text


def test_one_model_is_no_comparison(tmp_path: Path) -> None:
    text = Reader(written(tmp_path, comparison(1, 1))).text
    assert "takes two models" in text
    assert "dentical" not in text


def test_the_worst_picture_comes_first_and_is_open(tmp_path: Path) -> None:
    c = comparison(6)
    c.images[4].measures[0, 1] = measured("different", 0.7)
    c.images[2].measures[0, 1] = measured("different", 0.9)
    cards = [a for a in Reader(written(tmp_path, c)).has("details") if a["class"] == "card"]
    assert ["open" in a for a in cards] == [True] + [False] * 5
    assert [card["name"] for card in page.comparison_page(c)["cards"]][:3] == ["2.jpg", "4.jpg", "0.jpg"]


def test_difference_maps_share_a_scale_on_which_rounding_stays_dark() -> None:
    quiet = page.comparison_page(comparison(1, 2))
    assert quiet["top"] == "0.05"
    loud = comparison(2, 2)
    loud.images[0].measures[0, 1] = measured("different", 0.31)
    assert page.comparison_page(loud)["top"] == "0.5"


def test_a_photo_is_embedded_once(tmp_path: Path) -> None:
    html = written(tmp_path, comparison(1, 3))
    assert html.count("data:image/") == 1 + 3 + 3  # the photo, three heatmaps, three differences
    assert html.count('<use href="#photo-0"/>') == 1 + 3 + 3


def test_tabs_are_what_tells_explanations_apart(tmp_path: Path) -> None:
    a = explained(photo(0), np.eye(3))
    b = explained(photo(0), np.eye(3), method="layercam")
    page = Reader(written(tmp_path, [a, b]))
    tabs = [attributes for attributes in page.has("button") if attributes.get("role") == "tab"]
    panels = [attributes for _, attributes in page.tags if attributes.get("role") == "tabpanel"]
    assert [t["aria-controls"] for t in tabs] == [p["id"] for p in panels]
    assert [p["aria-labelledby"] for p in panels] == [t["id"] for t in tabs]
    assert page.text.index("layercam") > 0


def test_two_files_of_one_name_are_told_apart() -> None:
    es = [explained(photo(0), np.eye(3), path=Path(p)) for p in ("x/a.jpg", "y/a.jpg", "b.jpg")]
    assert [g["name"] for g in page.single_page(es)["groups"]] == [
        str(Path("x/a.jpg")),
        str(Path("y/a.jpg")),
        "b.jpg",
    ]


def test_a_heatmap_that_is_zero_everywhere_is_said_to_be(tmp_path: Path) -> None:
    assert "Zero everywhere" in written(tmp_path, [explained(photo(0), -np.eye(3))])
    assert "Zero everywhere" not in written(tmp_path, [explained(photo(0), np.eye(3))])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-0.0, "0"),
        (1, "1"),
        (0.123456, "0.123"),
        (0.00099996, "0.001"),
        (0.00012345, "1.2\u00a0×\u00a010⁻⁴"),
        (-36.66, "−36.7"),
        (12345.6, "12\u202f346"),
        (3e12, "3.0\u00a0×\u00a010¹²"),
        (math.nan, "–"),
        (math.inf, "∞"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert sentences.number(value) == text


def test_nothing_is_rounded_to_perfect() -> None:
    assert [sentences.likeness(v) for v in (1.0, 0.99999, 0.98765, -0.5)] == [
        "1",
        ">\u00a00.9999",
        "0.9877",
        "−0.5000",
    ]
    assert [sentences.share(v) for v in (0.0, 1e-5, 0.123, 0.9999, 1.0)] == [
        "0%",
        "<\u00a00.1%",
        "12.3%",
        ">\u00a099.9%",
        "100%",
    ]


def test_the_chart_is_logarithmic() -> None:
    steps = tuple(Step(str(k), str(k), e) for k, e in enumerate((1e-6, 1e-4, 1e-2, 0.0, math.inf, math.nan)))
    drawn = chart.chart(Divergence((0, 1), steps, 2))
    ys = [dot.y for dot in drawn.dots]
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2)
    assert ys[0] < ys[3] == drawn.bottom  # the smallest stands above zero
    assert ys[2] == ys[4] == ys[5] == drawn.top  # the largest, and what is beyond all measure
    assert [dot.kind for dot in drawn.dots] == ["before", "before", "culprit", "after", "after", "after"]
    assert all(drawn.left <= dot.x <= drawn.right for dot in drawn.dots)


def test_a_layer_without_an_error_is_drawn_below_what_rounding_makes() -> None:
    steps = tuple(Step(str(k), str(k), error) for k, error in enumerate((0.0, 0.0, 0.3, 4.0)))
    drawn = chart.chart(Divergence((0, 1), steps, 2))
    assert drawn.dots[0].y == drawn.bottom
    assert drawn.dots[0].y - drawn.dots[2].y > 0.6 * (drawn.bottom - drawn.top), "nothing, and 0.3, are far apart"


@pytest.mark.parametrize("errors", [(0.0,), (0.0, 0.0), (math.nan,), (1e-30, 1e30)])
def test_the_chart_of_what_no_logarithm_knows(errors: tuple[float, ...]) -> None:
    drawn = chart.chart(Divergence((0, 1), tuple(Step("a", "b", e) for e in errors), None))
    assert all(drawn.top <= dot.y <= drawn.bottom for dot in drawn.dots)


def test_each_layer_has_a_name_in_the_chart(tmp_path: Path) -> None:
    html = written(tmp_path, comparison(verdict="different", divergences=(divergence(),)))
    assert "<title>3 of 4, a2 ↔ b2: error 0.04 (first that differs)</title>" in html


@pytest.mark.parametrize("name", ["report.htm", "report", "report.html.png", "re\0port.html"])
def test_a_name_that_is_no_html_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"end it in \.html"):
        rendering.write(comparison(), tmp_path / name)


def test_a_folder_that_is_missing_or_in_the_way_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*nowhere; make it first"):
        rendering.write(comparison(), tmp_path / "nowhere" / "report.html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(InputError, match="it is a folder"):
        rendering.write(comparison(), tmp_path / "folder.html")


def test_nothing_to_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to report"):
        rendering.write_single([], tmp_path / "report.html")


def test_an_upper_case_ending_is_fine(tmp_path: Path) -> None:
    rendering.write(comparison(), tmp_path / "REPORT.HTML")
    assert (tmp_path / "REPORT.HTML").exists()


def test_a_failure_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InputError, match="No space left"):
        rendering.write(comparison(), path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_without_jinja2_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def guarded(name: str, *rest: Any, **named: Any) -> Any:
        if name == "jinja2":
            raise ModuleNotFoundError("No module named 'jinja2'", name="jinja2")
        return original(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", guarded)
    with pytest.raises(BackendError) as caught:
        rendering.write(comparison(), tmp_path / "report.html")
    assert 'pip install "xcam-explain[report]"' in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_same_comparison_gives_the_same_file(tmp_path: Path) -> None:
    assert written(tmp_path, comparison()) == written(tmp_path, comparison())


def test_the_templates_trust_nobody() -> None:
    for file in resources.files("xcam.report").joinpath("templates").iterdir():
        if file.name.endswith(".html"):
            assert not re.search(r"\|\s*safe|autoescape|Markup", file.read_text("utf-8")), file.name


def palettes() -> list[dict[str, str]]:
    style = resources.files("xcam.report").joinpath("templates").joinpath("style.css").read_text("utf-8")
    roots = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    found = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", root)) for root in roots]
    assert len(found) == 3  # light, dark, paper
    return found


def contrast(a: str, b: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("k", range(3), ids=["light", "dark", "paper"])
def test_every_text_has_the_contrast_that_wcag_asks_for(k: int) -> None:
    colours = palettes()[0] | palettes()[k]
    pairs = [(ink, on) for ink in ("ink", "soft", "good", "near", "bad") for on in ("paper", "card")]
    pairs += [("ink", "fill"), ("soft", "fill"), ("on-accent", "accent"), ("card", "badge")]
    pairs += [(tone, f"{tone}-fill") for tone in ("good", "near", "bad")] + [
        ("card", t) for t in ("good", "near", "bad")
    ]
    for ink, on in pairs:
        assert contrast(colours[ink], colours[on]) >= 4.5, (ink, on)
    for ink in ("accent",):  # of controls and marks, no text
        assert contrast(colours[ink], colours["card"]) >= 3
