"""The page as a file: it loads nothing, and hostile names in it do nothing."""

from __future__ import annotations

import base64
import builtins
import hashlib
import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from report_pages import HOSTILE, Reader, comparison, detailed_image, divergence, explained, measured, written
from xcam import Comparison
from xcam.comparison import Diagnosis, Divergence, ImageComparison, Step
from xcam.errors import BackendError, InputError


@pytest.mark.parametrize("kind", ["comparison", "single"])
def test_the_policy_names_the_one_style_and_the_one_script(tmp_path: Path, kind: str) -> None:
    html = written(
        tmp_path, comparison() if kind == "comparison" else [explained(detailed_image(0), np.ones((2, 2)))]
    )
    reader = Reader(html)
    policies = [m["content"] for m in reader.has("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    rules = dict(rule.strip().split(" ", 1) for rule in policies[0].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert "unsafe" not in policies[0]
    for tag in ("style", "script"):
        assert len(reader.has(tag)) == 1
        digest = hashlib.sha256("".join(reader.inline[tag]).encode()).digest()
        assert rules[f"{tag}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert html.index("Content-Security-Policy") < html.index("<style>")  # it applies to the elements after it only


@pytest.mark.parametrize("kind", ["comparison", "single"])
def test_nothing_is_loaded_and_nothing_is_inline(tmp_path: Path, kind: str) -> None:
    full = comparison(2, 3, "different", divergences=(divergence(),))
    html = written(tmp_path, full if kind == "comparison" else [explained(detailed_image(0), np.ones((2, 2)))] * 2)
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
    plain, hostile = Reader(harmless), Reader(nasty)
    # The same elements with the same attributes: the name added none, and broke out of none.
    assert [(t, sorted(a)) for t, a in hostile.tags] == [(t, sorted(a)) for t, a in plain.tags]
    assert hostile.inline == plain.inline
    shown = re.sub("[\0\a\x9b]", "\N{REPLACEMENT CHARACTER}", name).replace("\udcff", "?")
    assert shown in hostile.text
    assert not re.search("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", nasty)


def page_with(name: str, kind: str, tmp_path: Path) -> str:
    image = detailed_image(0, 40, 60)
    explanations = tuple(
        explained(
            image,
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
        return written(tmp_path, list(explanations))
    steps = (Step(name, name, 1e-7), Step(name, name + "2", 0.1))
    return written(
        tmp_path,
        Comparison(
            (name, name),
            (name, name),
            name,
            (ImageComparison(Path(f"d/{name}"), explanations, {(0, 1): measured("different", 0.4)}),),
            (Divergence((0, 1), steps, 1, Diagnosis("activation", name), (name,)),),
            (name,),
            ((name, name + " fails"),),
            (name,),
        ),
    )


@pytest.mark.parametrize("name", ["report.htm", "report", "report.html.png", "re\0port.html"])
def test_a_name_without_html_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"end it in \.html"):
        comparison().save(tmp_path / name)


def test_a_folder_that_is_missing_or_in_the_way_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the folder .*nowhere does not exist; create it first"):
        comparison().save(tmp_path / "nowhere" / "report.html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(InputError, match="it is a folder"):
        comparison().save(tmp_path / "folder.html")


def test_an_upper_case_ending_is_fine(tmp_path: Path) -> None:
    comparison().save(tmp_path / "REPORT.HTML")
    assert (tmp_path / "REPORT.HTML").exists()


def test_a_failure_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InputError, match="No space left"):
        comparison().save(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_without_jinja2_the_message_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def guarded(name: str, *rest: Any, **named: Any) -> Any:
        if name == "jinja2":
            raise ModuleNotFoundError("No module named 'jinja2'", name="jinja2")
        return original(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", guarded)
    with pytest.raises(BackendError) as caught:
        comparison().save(tmp_path / "report.html")
    assert 'pip install "xcam-explain[report]"' in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_templates_never_disable_escaping() -> None:
    for file in resources.files("xcam.report").joinpath("templates").iterdir():
        if file.name.endswith(".html"):
            assert not re.search(r"\|\s*safe|autoescape|Markup", file.read_text("utf-8")), file.name


def palettes() -> list[dict[str, str]]:
    style = resources.files("xcam.report").joinpath("templates").joinpath("style.css").read_text("utf-8")
    roots = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    palettes = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", root)) for root in roots]
    assert len(palettes) == 3  # light, dark, paper
    return palettes


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
    for ink in ("accent",):  # of controls and marks, not of text
        assert contrast(colours[ink], colours["card"]) >= 3
