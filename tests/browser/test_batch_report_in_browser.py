"""The report on a batch in a real browser: its slider, links and widths, and names that contain markup."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from xcam.dataset.output import Output, schema
from xcam.dataset.page import page
from xcam.images import writing

pytestmark = pytest.mark.slow

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></script><svg onload=alert(1)>",
    "{{7*7}}<b>日本語" + "long" * 500,
)


def written(folder: Path, name: str = "") -> Path:
    """Write a report with all parts: twelve of each kind, wide, tall and missing images, many classes, failures."""
    rng = np.random.default_rng(7)
    spot, corner, frame = (np.zeros((14, 14), np.float32) for _ in range(3))
    spot[5:8, 6:9], corner[:3, 11:] = 1, 1
    frame[0] = frame[-1] = 1
    rows: list[dict[str, Any]] = []
    for k in range(60):
        size = [(240, 320), (320, 240), (256, 256), (60, 60)][k % 4]
        image = cv2.resize(
            rng.integers(0, 255, (9, 12, 3), dtype=np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC
        )
        file = folder / f"{k:02d}-an-image-with-quite-a-long-name-indeed.jpg"
        if k % 7:
            writing.write(file, image)
        cam = np.roll((spot, corner, frame, spot, -spot)[k % 5], k % 3, axis=1)
        label = name or f"kind {k % 9}"
        row: dict[str, Any] = {"path": name or str(file), "class": label, "prediction": name or f"kind {k % 11}"}
        row |= {"prediction_index": k % 11, "probability": float(rng.random()), "target": name or f"kind {k % 11}"}
        row |= {"correct": not name and k % 9 == k % 11, "target_index": k % 11, "score": 3.0, "zero": k % 5 == 4}
        row |= {"rival": name or "another", "rival_correlation": 0.98 if k % 5 == 3 else 0.2, "error": None}
        rows.append(row | {"map_height": 14, "map_width": 14, "map": cam.ravel()})
    rows += [{"path": name or f"bad{k}.jpg", "error": name or "it is not an image"} for k in range(3)]
    (folder / "table").mkdir(parents=True, exist_ok=True)
    output = Output(str(folder))
    output.write(0, rows, schema([], True, True))
    (folder / "run.json").write_text('{"model": "net.onnx", "method": "gradcam", "layer": "block5"}')
    path = folder / "report.html"
    path.write_bytes(page(output))
    return path


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("batch"))


def overflow(page: Any) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def test_the_slider_changes_every_overlay_and_no_average(opened: Any, report: Path) -> None:
    page = opened(report)
    slider = page.get_by_label("Heatmap opacity")
    slider.fill("80")
    opacities = page.eval_on_selector_all(".heat", "all => all.map(e => getComputedStyle(e).opacity)")
    assert set(opacities) == {"0.8"}
    assert len(opacities) == 36  # all kinds except the all-zero maps
    assert page.locator(".averages .shot").count() == 10
    assert page.locator(".averages .heat").count() == 0
    slider.press("Home")
    assert page.locator("#alpha-value").inner_text() == "0%"


def test_an_overlay_covers_its_image(opened: Any, report: Path) -> None:
    """The heatmap of a wide image covers the image, not the square around it."""
    page = opened(report)
    boxes = page.eval_on_selector_all(
        ".found .shot:has(.heat)",
        "all => all.map(e => [e.querySelector('use'), e.querySelector('.heat')].map(p => {"
        "const b = p.getBoundingClientRect(); return [b.x, b.y, b.width, b.height].map(Math.round); }))",
    )
    assert all(image == heat for image, heat in boxes)
    assert {round(image[2] / image[3], 1) for image, _ in boxes} >= {0.7, 1.0, 1.3}


def test_the_counts_lead_to_their_sections_by_keyboard(opened: Any, report: Path) -> None:
    page = opened(report)
    links = page.locator(".tally a")
    assert links.count() == 5
    for k in range(5):
        links.nth(k).focus()
        page.keyboard.press("Enter")
        target = page.evaluate("location.hash.slice(1)")
        top = page.evaluate("id => document.getElementById(id).getBoundingClientRect().top", target)
        controls = page.locator(".controls").bounding_box()
        end = page.evaluate("scrollY + innerHeight >= document.documentElement.scrollHeight - 1")
        assert 0 <= top < 900
        assert end or top >= controls["y"] + controls["height"] or controls["y"] > top  # not covered by the controls


@pytest.mark.parametrize("width", [320, 360, 390, 560, 761, 1280])
def test_no_width_scrolls_sideways(opened: Any, report: Path, width: int) -> None:
    page = opened(report, viewport={"width": width, "height": 800})
    assert overflow(page) <= 0
    widths = page.eval_on_selector_all(".found .shot", "all => all.map(e => e.getBoundingClientRect().width)")
    assert min(widths) >= 130  # two in a row on the smallest phone


def test_all_images_have_names(opened: Any, report: Path) -> None:
    page = opened(report)
    names = [image.get_attribute("aria-label") for image in page.get_by_role("img").all()]
    assert len(names) == 48 + 10 + 1  # findings, averages, the colour scale
    assert all(names)
    assert any("map for kind" in name and "top right corner" in name for name in names)
    assert any(name.startswith("Average map of All images: maximum") for name in names)
    assert page.get_by_role("heading", level=1).inner_text() == "What looks wrong in 63 images?"
    sections = page.get_by_role("region")
    assert sections.count() == page.locator("main section").count() == 7


def test_dark_mode_and_paper(opened: Any, report: Path) -> None:
    page = opened(report, color_scheme="light")
    colour = "getComputedStyle(document.querySelector('.tally a')).color"
    light = page.evaluate(colour)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(colour) != light
    page.emulate_media(media="print")
    assert not page.locator(".controls").is_visible()
    assert page.locator(".found .pane").count() == 48
    assert all(pane.is_visible() for pane in page.locator(".found .pane").all())


def test_without_scripts_everything_can_be_read(chromium: Any, report: Path) -> None:
    page = chromium.new_page(java_script_enabled=False)
    page.goto(report.as_uri())
    assert page.locator(".found .pane").last.is_visible()
    assert not page.locator(".controls").is_visible()
    page.close()


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_name_does_nothing(opened: Any, tmp_path: Path, name: str) -> None:
    page = opened(written(tmp_path, name), viewport={"width": 360, "height": 800})
    page.wait_for_timeout(100)
    assert page.locator("script").count() == page.locator("style").count() == 1
    assert page.locator("main img, main script, bdi b").count() == 0
    assert overflow(page) <= 0


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_screenshots(opened: Any, report: Path, tmp_path: Path, scheme: str, width: int) -> None:
    page = opened(report, viewport={"width": width, "height": 900}, color_scheme=scheme)
    path = tmp_path / f"batch-{scheme}-{width}.png"
    page.screenshot(path=path, full_page=True)
    image = cv2.imread(str(path))
    assert image.shape[1] == width
    assert len(np.unique(image.reshape(-1, 3)[::7], axis=0)) > 500  # not an empty page
