"""The report in a browser: its controls, its requests to the network (none), and its layout on a phone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from xcam import ClassScore, Comparison
from xcam.comparison import Diagnosis, Divergence, ImageComparison, Measures, Step, Verdict
from xcam.explanation import page as explanation_page
from xcam.explanation.result import Explanation

pytestmark = pytest.mark.slow

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></script><svg onload=alert(1)>",
    "{{7*7}}<b>日本語" + "long" * 500,
)


def explained(seed: int, cam: np.ndarray, label: str = "tiger", **fields: Any) -> Explanation:
    rng = np.random.default_rng(seed)
    image = cv2.resize(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC)
    outputs = np.array([0.5, 3.0, 1.0, 0.0], np.float32)
    facts: dict[str, Any] = {"layer": "conv5", "method": "gradcam", "backend": "onnx", "model": "net"}
    facts |= {"path": Path(f"{seed}.jpg")} | fields
    scores = np.exp(outputs) / np.exp(outputs).sum()
    return Explanation(image, cam.astype(np.float32), outputs, scores, ClassScore(1), 1, label, 3.0, **facts)


def comparison(n: int = 5, models: int = 3, name: str = "") -> Comparison:
    rng = np.random.default_rng(7)
    images = []
    for k in range(n):
        first = rng.random((7, 7)) ** 3
        cams = [first] * (models - 1) + [rng.random((7, 7)) ** 3 if k == 1 else first]
        measures = {}
        for a in range(models):
            for b in range(a + 1, models):
                bad = k == 1 and b == models - 1
                verdict: Verdict = "different" if bad else "equivalent"
                measures[a, b] = Measures(
                    0.83 if bad else 3e-5, 0.31, 0.9999999, 0.99, 0.4, 0.21, 0.02, not bad, verdict
                )
        path = {"path": Path(name)} if name else {}
        images.append(
            ImageComparison(
                Path(name or f"{k}.jpg"), tuple(explained(k, c, name or "tiger", **path) for c in cams), measures
            )
        )
    layers = [f"features/block{k // 4}/conv{k}" + name for k in range(24)]
    steps = tuple(Step(x, x, 2e-7 * (k + 1) if k < 14 else 0.02 * (k - 12)) for k, x in enumerate(layers))
    calm = tuple(Step(x, x, 1e-7) for x in layers)
    names = ("net (keras)", "net (torch)", "net, quantised to 8 bits (onnx)")[:models]
    return Comparison(
        tuple(name or x for x in names),
        (name or "features/conv5",) * models,
        name or "gradcam",
        tuple(images),
        (
            Divergence(
                (0, models - 1),
                steps,
                14,
                Diagnosis("half-precision", name or "the weights of this layer were rounded"),
            ),
            Divergence((0, 1), calm, None),
        ),
        (name or "net (torch) resizes images with another filter: bicubic, not bilinear.",),
        ((name or "broken.jpg", name or "cannot read broken.jpg: empty, truncated, or not an image"),),
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "comparison.html"
    comparison().save(path)
    return path


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "single.html"
    cam = np.random.default_rng(5).random((7, 7)) ** 3
    explanation_page.write(
        [
            explained(1, cam, "tiger"),
            explained(1, cam.T, "cat"),
            explained(1, -cam, "dog"),
            explained(2, cam, "tiger"),
        ],
        path,
    )
    return path


def opacities(page: Any) -> set[str]:
    return set(page.eval_on_selector_all(".heat", "all => all.map(e => getComputedStyle(e).opacity)"))


def overflow(page: Any) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


@pytest.mark.parametrize("which", ["compared", "single"])
def test_the_slider_changes_every_heatmap(opened: Any, which: str, request: pytest.FixtureRequest) -> None:
    page = opened(request.getfixturevalue(which))
    assert opacities(page) == {"0.5"}
    slider = page.get_by_label("Heatmap opacity")
    slider.fill("80")
    assert opacities(page) == {"0.8"}
    slider.press("ArrowRight")
    assert opacities(page) == {"0.81"}
    slider.press("Home")
    assert opacities(page) == {"0"}
    assert page.locator("#alpha-value").inner_text() == "0%"


def test_a_heatmap_covers_its_image(opened: Any, compared: Path) -> None:
    """The slider shows the image alone at one end and the heatmap alone at the other, at the same position."""
    page = opened(compared)
    image, heat = page.locator(".pane.original svg").first, page.locator(".pane.model svg").first

    def pixels(element: Any) -> np.ndarray:
        return cv2.imdecode(np.frombuffer(element.screenshot(), np.uint8), cv2.IMREAD_COLOR).astype(float)

    slider = page.get_by_label("Heatmap opacity")
    slider.fill("0")
    assert np.abs(pixels(image) - pixels(heat)).mean() < 8  # panes begin at fractions of a pixel
    slider.fill("100")
    assert np.abs(pixels(image) - pixels(heat)).mean() > 30


def test_the_switch_shows_models_side_by_side_blinking_or_their_differences(opened: Any, compared: Path) -> None:
    page = opened(compared)
    card = page.locator("details.card[open]")
    models, differences = card.locator(".pane.model"), card.locator(".pane.diff")

    def visible(panes: Any) -> list[bool]:
        return [panes.nth(k).is_visible() for k in range(panes.count())]

    assert (visible(models), visible(differences)) == ([True] * 3, [False] * 3)
    page.get_by_label("Difference", exact=True).check()
    assert (visible(models), visible(differences)) == ([False] * 3, [True] * 3)

    page.get_by_label("Blink").check()
    page.get_by_role("button", name="Pause").click()
    assert sum(visible(models)) == 1
    assert visible(differences) == [False] * 3
    boxes = [models.nth(k).bounding_box() for k in range(3)]
    assert len({(box["x"], box["y"]) for box in boxes}) == 1  # all at one position
    before = visible(models)
    page.get_by_role("button", name="Next model").click()
    assert visible(models) == before[-1:] + before[:-1]

    page.get_by_role("button", name="Resume").click()
    before = visible(models)
    page.wait_for_function(
        "was => document.querySelectorAll('details[open] .model')[was].classList.contains('current') === false",
        arg=before.index(True),
    )
    page.get_by_label("Side by side").check()
    assert visible(models) == [True] * 3
    assert not page.get_by_role("button", name="Pause").is_visible()


def test_nothing_blinks_with_reduced_motion(opened: Any, compared: Path) -> None:
    page = opened(compared, reduced_motion="reduce")
    page.get_by_label("Blink").check()
    assert page.get_by_role("button", name="Resume").is_visible()
    first = page.locator("details[open] .pane.model").first
    page.wait_for_timeout(1200)
    assert first.is_visible()


def test_the_view_is_chosen_with_the_keyboard(opened: Any, compared: Path) -> None:
    page = opened(compared)
    page.get_by_label("Side by side").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.documentElement.dataset.view") == "difference"


@pytest.mark.parametrize("which", ["compared", "single"])
def test_tabs_by_click_and_by_arrow_keys(opened: Any, which: str, request: pytest.FixtureRequest) -> None:
    page = opened(request.getfixturevalue(which))
    tabs = page.get_by_role("tablist").first.get_by_role("tab")
    n = tabs.count()

    def state() -> tuple[list[bool], list[bool]]:
        chosen = [tabs.nth(k).get_attribute("aria-selected") == "true" for k in range(n)]
        panels = [page.locator("#" + tabs.nth(k).get_attribute("aria-controls")).is_visible() for k in range(n)]
        return chosen, panels

    def only(k: int) -> tuple[list[bool], list[bool]]:
        return ([j == k for j in range(n)],) * 2

    assert n > 1
    assert state() == only(0)
    tabs.nth(1).click()
    assert state() == only(1)
    page.keyboard.press("ArrowLeft")
    assert state() == only(0)
    page.keyboard.press("ArrowLeft")
    assert state() == only(n - 1)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("End")
    assert state() == only(n - 1)
    page.keyboard.press("Home")
    assert state() == only(0)
    assert page.evaluate("document.activeElement.id") == tabs.nth(0).get_attribute("id")


def test_images_are_folded_and_unfolded(opened: Any, compared: Path) -> None:
    page = opened(compared)
    assert page.locator("details.card[open]").count() == 1
    page.get_by_role("button", name="Unfold all").click()
    assert page.locator("details.card[open]").count() == 5
    page.get_by_role("button", name="Fold all").click()
    assert page.locator("details.card[open]").count() == 0
    page.locator("details.card > summary").nth(2).press("Enter")
    assert page.locator("details.card[open]").count() == 1


def test_the_chart_names_the_layer_under_the_pointer(opened: Any, compared: Path) -> None:
    page = opened(compared)
    page.locator(".chart.wide .dot").nth(3).hover()
    assert page.locator(".readout").first.inner_text().startswith("4 of 24, features/block0/conv3: error 8.0")
    page.mouse.move(0, 0)
    assert page.locator(".readout").first.inner_text() == "The marked layer is the first that differs."


@pytest.mark.parametrize("which", ["compared", "single"])
def test_dark_mode_changes_the_colours(opened: Any, which: str, request: pytest.FixtureRequest) -> None:
    page = opened(request.getfixturevalue(which), color_scheme="light")
    colours = (
        "(() => { const s = getComputedStyle(document.documentElement); return [s.backgroundColor, s.color]; })()"
    )
    light = page.evaluate(colours)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(colours)
    assert light == ["rgb(246, 246, 243)", "rgb(27, 31, 36)"]
    assert dark == ["rgb(19, 22, 25)", "rgb(233, 235, 238)"]


@pytest.mark.parametrize("width", [320, 360, 390, 560, 761, 1280])
@pytest.mark.parametrize("which", ["compared", "single"])
def test_no_width_scrolls_sideways(opened: Any, which: str, width: int, request: pytest.FixtureRequest) -> None:
    page = opened(request.getfixturevalue(which), viewport={"width": width, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert overflow(page) <= 0
    for view in page.locator('input[name="view"]').all():
        view.check()
        assert overflow(page) <= 0


def test_a_printed_page_is_complete_and_has_no_controls(opened: Any, compared: Path) -> None:
    page = opened(compared)
    page.get_by_label("Difference", exact=True).check()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    for selector in (".pane.model", ".pane.diff", ".panel", ".measures"):
        assert all(part.is_visible() for part in page.locator(selector).all()), selector
    assert not page.locator(".controls").is_visible()
    assert not page.get_by_role("tablist").is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details.card[open]").count() == 1


def test_without_scripts_everything_can_be_read(chromium: Any, compared: Path) -> None:
    page = chromium.new_page(java_script_enabled=False)
    page.goto(compared.as_uri())
    assert page.get_by_role("heading", level=1).inner_text().startswith("Different")
    assert page.locator(".panel").nth(1).is_visible()
    assert not page.locator(".controls").is_visible()
    page.close()


def test_every_visible_element_has_a_name(opened: Any, compared: Path) -> None:
    page = opened(compared)
    images = page.locator("details[open]").get_by_role("img").all()
    names = [image.get_attribute("aria-label") for image in images]
    assert all(names)
    assert any("strongest" in name for name in names)
    for role in ("button", "radio", "slider", "tab"):
        assert page.get_by_role(role).count() == page.get_by_role(role, name="").count() > 0
    assert "conv14" in page.get_by_role("group", name="Relative error").first.get_attribute("aria-label")


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_name_does_nothing(opened: Any, tmp_path: Path, name: str) -> None:
    comparison(4, 3, name).save(tmp_path / "comparison.html")
    one = explained(1, np.eye(5), name, method=name, layer=name, model=name, notes=(name,), path=Path(name))
    two = explained(1, np.eye(5), name + "2", method=name, layer=name, model=name, path=Path(name))
    explanation_page.write([one, two], tmp_path / "single.html")
    for file in ("comparison.html", "single.html"):
        page = opened(tmp_path / file, viewport={"width": 360, "height": 800})
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        page.wait_for_timeout(100)
        assert page.locator("script").count() == page.locator("style").count() == 1
        assert page.locator("main img, main script, main b:not(.letter):not(li > b)").count() == 0
        assert overflow(page) <= 0


def test_the_policy_blocks_injected_markup(chromium: Any, compared: Path, tmp_path: Path) -> None:
    """The policy also stops markup that is not escaped: it can neither run nor load anything."""
    html = compared.read_text("utf-8")
    evil = '<img src="https://example.invalid/x.png" onerror="document.title=1"><script>document.title = 2</script>'
    broken = tmp_path / "broken.html"
    broken.write_text(html.replace("<main>", "<main>" + evil), "utf-8")
    page = chromium.new_page()
    requests: list[str] = []
    page.on("requestfinished", lambda request: requests.append(request.url))
    page.goto(broken.as_uri())
    page.wait_for_timeout(200)
    assert page.title().startswith("Different")
    assert not [url for url in requests if "invalid" in url]
    page.close()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["compared", "single"])
def test_screenshots_are_not_empty(
    opened: Any, tmp_path: Path, which: str, scheme: str, width: int, request: pytest.FixtureRequest
) -> None:
    page = opened(request.getfixturevalue(which), viewport={"width": width, "height": 900}, color_scheme=scheme)
    path = tmp_path / f"{which}-{scheme}-{width}.png"
    page.screenshot(path=path, full_page=True)
    image = cv2.imread(str(path))
    assert image.shape[1] == width
    assert len(np.unique(image.reshape(-1, 3)[::7], axis=0)) > 500  # not an empty page
