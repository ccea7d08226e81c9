"""The report on a batch: its content, the images it shows, and names that contain markup."""

from __future__ import annotations

import base64
import io
import re
import tarfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from batch_tables import CORNER, SPOT, collected, failed, row, table, written
from ground_truth import scenes_with_two
from xcam.dataset import findings
from xcam.dataset.batch import batch
from xcam.dataset.page import HEAT, SIDE, Thumbnail, _on_image, content, page
from xcam.images import writing
from xcam.report.thumbnails import Embedded


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(data.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def test_maps_of_several_targets_belong_to_the_targets(tmp_path: Path) -> None:
    """Labelled dog, predicted cat: the map for cat is the wrong one, and that for owl is in the mean of owl."""
    wrong = {"class": "dog", "correct": False}
    rows = [
        row("a.jpg", target="owl", cam=SPOT[::-1].copy(), **wrong),
        row("a.jpg", target="cat", cam=CORNER, **wrong),
    ]
    result = findings.collect([table(rows)], by_target=True)
    assert [(a.name, a.count) for a in result.classes()] == [("cat", 1), ("owl", 1)]
    np.testing.assert_allclose(result.averages["owl"].cam, SPOT[::-1], atol=1e-6)
    assert [f.target for f in result.worst["wrong"].findings] == ["cat"]
    assert [a.name for a in findings.collect([table(rows)]).classes()] == ["dog"]
    output = written(tmp_path, rows)
    (tmp_path / "run.json").write_text('{"targets": ["owl", "cat"]}')
    assert "of all maps of a class (the explained one)" in page(output).decode()


def test_maps_with_nan_and_tables_without_scores() -> None:
    cam = SPOT.copy()
    cam[0, :3] = np.nan, np.inf, -np.inf
    result = collected(row("a", cam, probability=None, prediction=None, prediction_index=None, score=None))
    assert np.allclose(result.everything.cam, SPOT)
    assert result.histogram.sum() == 0
    assert result.classes() == []
    logits = collected(row("b", SPOT, probability=12.5, **{"class": "dog", "correct": False}))
    assert logits.worst["wrong"].findings[0].severity == 1
    assert logits.histogram.sum() == 0
    assert "score 12.5" in str(content(logits, {})["sections"])


def test_without_maps_rivals_or_classes_the_page_lists_the_checks_left_out(tmp_path: Path) -> None:
    bare = row("a.jpg", None, zero=True)
    html = page(written(tmp_path, [bare], maps=False, rivals=False)).decode()
    assert "The table has no maps" in html
    assert "No class is given" in html
    assert "second best class were not computed" in html
    assert "Average maps" not in html
    assert 'id="zero"' in html
    assert "on the border" not in re.sub(r"<ul class=\"plain\">.*?</ul>", "", html, flags=re.DOTALL)
    assert 'class="heat"' not in html

    labelled = row("a.jpg", **{"class": "dog", "correct": False})
    assert "Checks left out" in html
    assert "Checks left out" not in page(written(tmp_path, [labelled])).decode()


def test_the_summary_counts() -> None:
    wrong: dict[str, Any] = {"class": "dog", "correct": False}
    good: dict[str, Any] = {"class": "cat", "correct": True}
    result = collected(
        row("1", SPOT, **wrong), row("2", CORNER, **good), row("3", SPOT, **good), row("4", 0 * SPOT), failed()
    )
    shown = content(result, {"model": "net.onnx", "method": "gradcam", "layer": None})
    assert shown["sentences"] == [
        "66.7% of the 3 images with a given class are classified correctly; 1 wrongly.",
        "1 (33.3%) of 3 maps is mostly on the border or in a corner. On average, 25.0% of a map is on the border; "
        "of a uniform map it would be 36.0%.",
        "1 (25.0%) of 4 maps is all zero.",
        "1 image failed.",
    ]
    assert [(kind, n) for kind, n, _ in shown["tally"]] == [("wrong", 1), ("edge", 1), ("same", 0), ("zero", 1)]
    assert [s["kind"] for s in shown["sections"]] == ["wrong", "edge", "zero"]
    assert shown["sections"][0]["cards"][0]["reason"] == "Wrong, and 100% of the map is in a fifth of the image."
    assert (
        shown["sections"][1]["cards"][0]["reason"]
        == "100% of the map is in the top right corner, which is 4.0% of the image."
    )
    assert shown["run"] == ["net.onnx", "gradcam"]
    assert content(collected(failed()), {})["sentences"] == ["None could be explained: 1 image failed."]
    assert content(findings.collect([]), {})["sentences"] == ["The table is empty."]


def test_failed_images_are_listed_up_to_fifty(tmp_path: Path) -> None:
    html = page(written(tmp_path, [failed(f"{k}.jpg", f"{k}.jpg is empty") for k in range(70)])).decode()
    assert html.count("is empty") == 50
    assert "the first 50 of 70" in html


def test_images_in_files_and_shards_are_shown_and_missing_ones_replaced(tmp_path: Path) -> None:
    colours = {"plain.png": (200, 0, 0), "inside.png": (0, 200, 0), "sub/deep.png": (0, 0, 200)}
    drawn = {name: writing.encoded(np.full((40, 60, 3), c, np.uint8), ".png") for name, c in colours.items()}
    (tmp_path / "plain.png").write_bytes(drawn["plain.png"])
    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w") as tar:
        for name in ("inside.png", "sub/deep.png"):
            info = tarfile.TarInfo(name)
            info.size = len(drawn[name])
            tar.addfile(info, io.BytesIO(drawn[name]))
    names = [
        tmp_path / "plain.png",
        shard / "inside.png",
        shard / "sub/deep.png",
        shard / "no.png",
        tmp_path / "gone.png",
    ]
    names.append(tmp_path / "no.tar" / "x.png")
    html = page(written(tmp_path / "out", [row(str(n), 0 * SPOT) for n in names]))
    result = Page(html)
    shown = [t for t in result.tags if t[0] == "image" and (t[1].get("id") or "").startswith("image-")]
    centres = []
    for _, attributes in shown:
        data = base64.b64decode((attributes["href"] or "").partition(",")[2])
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        assert image.shape == (40, 60, 3)
        centres.append(tuple(image[20, 30].tolist()))
    assert centres == list(colours.values())
    assert result.text.count("could not be read again") == 3
    assert [t[1]["id"] for t in result.tags if t[0] == "g"] == ["image-3", "image-4", "image-5"]


HOSTILE = (
    "<script>alert(1)</script>.jpg",
    '"><img src=x onerror=alert(1)>.jpg',
    "</style></script><svg onload=alert(1)>",
    "{{7*7}}{% include 'style.css' %}",
    "javascript:alert(1)//\N{RIGHT-TO-LEFT OVERRIDE}gpj.\a",
)


def test_hostile_names_are_text(tmp_path: Path) -> None:
    def rows(names: tuple[str, ...]) -> list[dict[str, Any]]:
        explained = [
            row(
                n,
                cam,
                target=n + "!",
                rival=n,
                rival_correlation=0.99,
                prediction=n,
                correct=False,
                **{"class": n + "?"},
            )
            for n in names
            for cam in (CORNER, -SPOT)
        ]
        return explained + [failed(n + "f", n) for n in names]

    calm = Page(page(written(tmp_path / "a", rows(("a", "b", "c", "d", "e")))))
    wild = Page(page(written(tmp_path / "b", rows(HOSTILE))))
    assert [tag for tag, _ in wild.tags] == [tag for tag, _ in calm.tags]
    assert {name for _, a in wild.tags for name in a} == {name for _, a in calm.tags for name in a}
    assert "alert(1)" in wild.text
    assert "49{%" not in wild.text
    assert wild.count("script") == wild.count("style") == 1
    policy = next(a["content"] for tag, a in wild.tags if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_the_page_refers_only_to_itself(tmp_path: Path) -> None:
    result = Page(page(written(tmp_path, [row("a.jpg"), row("b.jpg", CORNER), failed()])))
    for tag, attributes in result.tags:
        for name in ("href", "src"):
            if value := attributes.get(name):
                assert value.startswith(("data:", "#")), (tag, value)
    ids = [a["id"] for _, a in result.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    linked = [value[1:] for _, a in result.tags if (value := a.get("href") or "").startswith("#")]
    assert linked
    assert set(linked) <= set(ids)


def test_a_full_page_weighs_less_than_two_megabytes(tmp_path: Path) -> None:
    """48 images of noise, which do not compress, and more classes than are shown."""
    rng = np.random.default_rng(0)
    rows = []
    wrong: dict[str, Any] = {"class": "dog", "correct": False}
    for k in range(48):
        name = str(tmp_path / f"{k}.jpg")
        writing.write(name, rng.integers(0, 255, (256, 256, 3), dtype=np.uint8))
        noise = rng.random((10, 10)).astype(np.float32)
        cam = (np.float32(0.05) * noise + SPOT, noise * CORNER, noise, 0 * SPOT)[k % 4]
        fields = (wrong, {}, {"rival_correlation": 0.99}, {})[k % 4]
        rows.append(row(name, cam, **{"prediction": f"class {k}", "prediction_index": k} | fields))
    html = page(written(tmp_path / "out", rows))
    assert html.count(b'<image id="image-') == 48
    assert 500_000 < len(html) < 2_000_000
    assert f'width="{SIDE}" height="{SIDE}"'.encode() in html
    assert b"The 24 most frequent of 37 classes" in html


def test_the_report_on_a_batch_of_scenes(tmp_path: Path) -> None:
    lines = ["path,class"]
    for k, scene in enumerate(scenes_with_two(6)):
        writing.write(tmp_path / f"{k}.jpg", scene.image)
        lines.append(f"{k}.jpg,nothing")
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    (tmp_path / "set.csv").write_text("\n".join([*lines, "broken.jpg,disc"]))
    run = batch("demo", str(tmp_path / "set.csv"), out=tmp_path / "out", backend="onnx", part=4, rivals=True)
    result = Page(Path(run.report()).read_bytes())
    assert "What looks wrong in 7 images?" in result.text
    assert "0% of the 6 images with a given class are classified correctly; 6 wrongly." in result.text
    assert "1 image failed." in result.text
    assert result.count("figure") >= 6
    assert "could not be read again" not in result.text


def test_a_map_is_drawn_at_its_location_in_the_image() -> None:
    cam, thumb = np.ones((4, 4), np.float32), Thumbnail(Embedded("", 192, 64), size=(100, 300))
    item = findings.Finding("a.jpg", None, None, None, None, 1.0, cam=cam, box=(100.0, 0.0, 200.0, 100.0))
    drawn = _on_image(item, thumb)
    assert drawn.shape == (HEAT, HEAT)
    assert np.isnan(drawn[:, : HEAT // 3 - 1]).all()
    assert drawn[HEAT // 2, HEAT // 2] == 1
    assert np.isnan(drawn[:, 2 * HEAT // 3 + 1 :]).all()
    assert _on_image(replace(item, box=None), thumb).all()
