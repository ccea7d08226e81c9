"""What looks wrong in a set: shares of energy worked out by hand, what is sorted where, and a page that nothing can break."""

from __future__ import annotations

import base64
import io
import re
import tarfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest

from ground_truth import scenes_with_two
from xcam.dataset import energy, findings
from xcam.dataset.batch import batch
from xcam.dataset.output import Output, schema
from xcam.dataset.page import SIDE, content, page
from xcam.images import writing

SPREAD = np.ones((10, 10), np.float32)
SPOT = np.zeros((10, 10), np.float32)
SPOT[4:6, 4:6] = 1
CORNER = np.zeros((10, 10), np.float32)
CORNER[:2, 8:] = 1
FRAME = np.zeros((10, 10), np.float32)
FRAME[0] = FRAME[-1] = 1


def row(path: str = "a.jpg", cam: np.ndarray | None = SPOT, **fields: Any) -> dict[str, Any]:
    known = {"path": path, "class": None, "prediction": "cat", "prediction_index": 3, "probability": 0.75}
    known |= {
        "correct": None,
        "target": "cat",
        "target_index": 3,
        "score": 2.0,
        "rival": "dog",
        "rival_correlation": 0.1,
    }
    if cam is not None:
        known |= {
            "map_height": cam.shape[0],
            "map_width": cam.shape[1],
            "map": cam.ravel(),
            "zero": not (cam > 0).any(),
        }
    return known | {"error": None} | fields


def table(rows: list[dict[str, Any]], maps: bool = True, rivals: bool = True) -> Any:
    return pa.Table.from_pylist(rows, schema([], maps, rivals))


def collected(*rows: dict[str, Any], **columns: bool) -> findings.Findings:
    return findings.collect([table(list(rows), **columns)])


def failed(path: str = "bad.jpg", why: str = "bad.jpg is not a picture") -> dict[str, Any]:
    return {"path": path, "error": why}


def written(folder: Path, rows: list[dict[str, Any]], **columns: bool) -> Output:
    (folder / "table").mkdir(parents=True, exist_ok=True)
    output = Output(str(folder))
    output.write(0, rows, schema([], columns.get("maps", True), columns.get("rivals", True)))
    return output


def paths(found: findings.Findings, kind: findings.Kind) -> list[str]:
    return [f.path for f in found.worst[kind].found]


class Page(HTMLParser):
    """Which elements a page has, with their attributes, and its text."""

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


def test_shares_of_energy_are_those_counted_by_hand() -> None:
    cams = np.stack([SPREAD, SPOT, CORNER, FRAME, np.zeros((10, 10), np.float32)])
    assert energy.share(cams, energy.ring((10, 10))).tolist() == pytest.approx([0.36, 0, 0.75, 1, 0])
    assert energy.ring((10, 10)).sum() == 36
    assert energy.ring((7, 20)).sum() == 140 - 5 * 16  # one cell, and two columns on each side
    assert energy.ring((2, 2)).all()
    assert [energy.share(cams, c).tolist()[2] for c in energy.corners((10, 10))] == [0, 1, 0, 0]
    assert [energy.share(cams, c).tolist()[3] for c in energy.corners((10, 10))] == pytest.approx([0.1] * 4)
    assert energy.corners((16, 16)).sum(axis=(1, 2)).tolist() == [16] * 4
    found, expected = energy.concentration(cams)
    assert (found.tolist(), expected) == (pytest.approx([0.2, 1, 1, 1, 0]), 0.2)
    ramp = np.arange(1, 11, dtype=np.float32).reshape(1, 2, 5)
    assert energy.concentration(ramp)[0].tolist() == pytest.approx([19 / 55])


def test_excess_makes_places_of_any_size_comparable() -> None:
    shares = np.array([0.2, 0.6, 1.0, 0.0], np.float32)
    assert energy.excess(shares, 0.2).tolist() == pytest.approx([0, 0.5, 1, -0.25])
    assert energy.excess(shares, 1.0).tolist() == [0, 0, 0, 0]


def test_a_coarser_grid_keeps_means_and_a_finer_one_is_bilinear() -> None:
    cams = np.random.default_rng(0).random((3, 28, 20)).astype(np.float32)
    small = energy.grid(cams, (14, 10))
    assert np.allclose(small, cams.reshape(3, 14, 2, 10, 2).mean(axis=(2, 4)), atol=1e-6)
    assert np.allclose(
        energy.grid(cams, (28, 50))[1], cv2.resize(cams[1], (50, 28), interpolation=cv2.INTER_LINEAR), atol=1e-6
    )
    assert energy.grid(cams, (28, 20)) is cams


def test_rows_are_sorted_into_kinds() -> None:
    wrong: dict[str, Any] = {"class": "dog", "correct": False}
    right: dict[str, Any] = {"class": "cat", "correct": True}
    found = collected(
        failed("first.jpg", "empty"),
        row("confident.jpg", SPOT, **wrong),
        row("surer.jpg", SPOT, **wrong | {"probability": 0.9}),
        row("vague.jpg", SPREAD, **wrong),
        row("right.jpg", SPOT, **right),
        row("untold.jpg", SPOT),
        row("corner.jpg", CORNER, **right),
        row("frame.jpg", FRAME, **right),
        row("zero.jpg", -SPOT, **wrong),
        row("same.jpg", SPREAD, rival_correlation=0.97),
        row("almost.jpg", SPREAD, rival_correlation=0.95),
        row("zero same.jpg", 0 * SPOT, rival_correlation=1.0),
        failed(),
    )
    assert paths(found, "wrong") == ["surer.jpg", "confident.jpg"]
    assert paths(found, "edge") == ["corner.jpg", "frame.jpg"]
    assert paths(found, "same") == ["same.jpg"]
    assert paths(found, "zero") == ["zero.jpg", "zero same.jpg"]
    corner, frame = found.worst["edge"].found
    assert (corner.where, corner.share, corner.expected) == ("top right", 1, pytest.approx(0.04))
    assert (frame.where, frame.share, frame.expected) == ("border", 1, pytest.approx(0.36))
    assert found.worst["wrong"].found[0].badness == pytest.approx(0.9)
    assert (found.pictures, found.failed, found.explained, found.drawn) == (13, 2, 11, 9)
    assert (found.told, found.right) == (7, 3)
    assert found.border == pytest.approx(0.75 + 1 + 3 * 0.36)
    assert found.border_expected == pytest.approx(9 * 0.36)
    assert found.histogram[:, 0].tolist() == [0, 0, 0, 0, 0, 0, 0, 10, 0, 1]
    assert found.histogram[:, 1].tolist() == [0, 0, 0, 0, 0, 0, 0, 3, 0, 1]
    assert found.failures == [("first.jpg", "empty"), ("bad.jpg", "bad.jpg is not a picture")]


def test_the_worst_are_kept_whatever_part_they_come_in() -> None:
    likeness = np.random.default_rng(1).permutation(np.linspace(0.951, 0.999, 60))
    rows = [row(f"{k}.jpg", rival_correlation=float(v)) for k, v in enumerate(likeness)]
    order = [f"{k}.jpg" for k in np.argsort(-likeness)[: findings.WORST]]
    for size in (1, 7, 60):
        found = findings.collect(table(rows[k : k + size]) for k in range(0, 60, size))
        assert found.worst["same"].count == 60
        assert paths(found, "same") == order
    equal = collected(*[row(f"{k}.jpg", 0 * SPOT) for k in range(30)])
    assert paths(equal, "zero") == [f"{k}.jpg" for k in range(findings.WORST)]


def test_the_average_map_of_a_class_is_the_mean_of_its_normalised_maps() -> None:
    found = collected(
        row("a", 7 * SPOT - 3, **{"class": "cat", "correct": True}),
        row("b", 5 * CORNER, **{"class": "cat", "correct": False}),
        row("c", -SPOT, **{"class": "3", "correct": True}),  # the index of cat
        row("d", SPREAD, prediction="dog", prediction_index=1),
        row("e", np.ones((20, 20), np.float32), prediction="dog", prediction_index=1),
        failed(),
    )
    cat, dog = found.classes()
    assert [(a.name, a.count, a.told, a.right) for a in (cat, dog)] == [("cat", 3, 3, 2), ("dog", 2, 0, 0)]
    assert np.allclose(cat.cam, (SPOT + CORNER) / 3)
    assert np.allclose(dog.cam, 1)
    assert np.allclose(found.everything.cam, (SPOT + CORNER + 2) / 5)
    assert found.named("3") == "cat"
    assert found.named("lynx") == "lynx"


def test_a_large_map_is_averaged_on_a_small_grid() -> None:
    found = collected(row("a", np.kron(SPOT, np.ones((3, 3), np.float32))))
    assert found.classes()[0].cam.shape == (14, 14)


def test_classes_without_end_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "CLASSES", 2)
    found = collected(*[row(f"{k}.jpg", prediction=f"c{k % 4}", prediction_index=k % 4) for k in range(20)])
    assert [(a.name, a.count) for a in found.classes()] == [("c0", 5), ("c1", 5)]
    assert found.others == 10


def test_a_picture_with_several_targets_counts_once() -> None:
    told: dict[str, Any] = {"class": "dog", "correct": False}
    found = collected(*[row(p, target=t, **told) for p in ("a.jpg", "b.jpg") for t in ("cat", "dog", "owl")])
    assert (found.pictures, found.told, found.right, found.explained) == (2, 2, 0, 6)
    assert paths(found, "wrong") == ["a.jpg", "b.jpg"]
    assert found.histogram.sum(axis=0).tolist() == [2, 2]


def test_maps_of_several_targets_belong_to_the_targets(tmp_path: Path) -> None:
    """Told dog, predicted cat: the map for cat made it wrong, and the one for owl is in the mean of owl."""
    told = {"class": "dog", "correct": False}
    rows = [row("a.jpg", target="owl", cam=SPOT[::-1].copy(), **told), row("a.jpg", target="cat", cam=CORNER, **told)]
    found = findings.collect([table(rows)], by_target=True)
    assert [(a.name, a.count) for a in found.classes()] == [("cat", 1), ("owl", 1)]
    np.testing.assert_allclose(found.averages["owl"].cam, SPOT[::-1], atol=1e-6)
    assert [f.target for f in found.worst["wrong"].found] == ["cat"]
    assert [a.name for a in findings.collect([table(rows)]).classes()] == ["dog"]
    output = written(tmp_path, rows)
    (tmp_path / "run.json").write_text('{"targets": ["owl", "cat"]}')
    assert "of all maps of a class (the one that was explained)" in page(output).decode()


def test_maps_with_what_is_no_number_and_tables_without_scores() -> None:
    cam = SPOT.copy()
    cam[0, :3] = np.nan, np.inf, -np.inf
    found = collected(row("a", cam, probability=None, prediction=None, prediction_index=None, score=None))
    assert np.allclose(found.everything.cam, SPOT)
    assert found.histogram.sum() == 0
    assert found.classes() == []
    logits = collected(row("b", SPOT, probability=12.5, **{"class": "dog", "correct": False}))
    assert logits.worst["wrong"].found[0].badness == 1
    assert logits.histogram.sum() == 0
    assert "score 12.5" in str(content(logits, {})["sections"])


def test_without_maps_rivals_or_classes_the_page_says_what_is_left_out(tmp_path: Path) -> None:
    bare = row("a.jpg", None, zero=True)
    html = page(written(tmp_path, [bare], maps=False, rivals=False)).decode()
    assert "The table has no maps" in html
    assert "No class is told" in html
    assert "second best class were not computed" in html
    assert "Average maps" not in html
    assert 'id="zero"' in html
    assert "on the border" not in re.sub(r"<ul class=\"plain\">.*?</ul>", "", html, flags=re.DOTALL)
    assert 'class="heat"' not in html

    told = row("a.jpg", **{"class": "dog", "correct": False})
    assert "What was not looked for" not in page(written(tmp_path, [told])).decode()


def test_the_lead_counts() -> None:
    told: dict[str, Any] = {"class": "dog", "correct": False}
    good: dict[str, Any] = {"class": "cat", "correct": True}
    found = collected(
        row("1", SPOT, **told), row("2", CORNER, **good), row("3", SPOT, **good), row("4", 0 * SPOT), failed()
    )
    shown = content(found, {"model": "net.onnx", "method": "gradcam", "layer": None})
    assert shown["sentences"] == [
        "66.7% of the 3 pictures whose class is told are named right; 1 wrong.",
        "1 (33.3%) of 3 maps lies mostly on the border or in a corner. On average 25.0% of a map is on the border; "
        "of a map that is the same everywhere it would be 36.0%.",
        "1 (25.0%) of 4 maps is all zero.",
        "1 picture failed.",
    ]
    assert [(kind, n) for kind, n, _ in shown["tally"]] == [("wrong", 1), ("edge", 1), ("same", 0), ("zero", 1)]
    assert [s["kind"] for s in shown["sections"]] == ["wrong", "edge", "zero"]
    assert shown["sections"][0]["cards"][0]["why"] == "Wrong, and 100% of the map is in a fifth of the picture."
    assert (
        shown["sections"][1]["cards"][0]["why"]
        == "100% of the map is in the top right corner, which is 4.0% of the picture."
    )
    assert shown["run"] == ["net.onnx", "gradcam"]
    assert content(collected(failed()), {})["sentences"] == ["Not one could be explained: 1 picture failed."]
    assert content(findings.collect([]), {})["sentences"] == ["The table is empty."]


def test_failed_pictures_are_listed_up_to_fifty(tmp_path: Path) -> None:
    html = page(written(tmp_path, [failed(f"{k}.jpg", f"{k}.jpg is empty") for k in range(70)])).decode()
    assert html.count("is empty") == 50
    assert "the first 50 of 70" in html


def test_pictures_in_files_and_shards_are_shown_and_missing_ones_replaced(tmp_path: Path) -> None:
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
    found = Page(html)
    shown = [t for t in found.tags if t[0] == "image" and (t[1].get("id") or "").startswith("photo-")]
    seen = []
    for _, attributes in shown:
        data = base64.b64decode((attributes["href"] or "").partition(",")[2])
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        assert image.shape == (40, 60, 3)
        seen.append(tuple(image[20, 30].tolist()))
    assert seen == list(colours.values())
    assert found.text.count("could not be read again") == 3
    assert [t[1]["id"] for t in found.tags if t[0] == "g"] == ["photo-3", "photo-4", "photo-5"]


HOSTILE = (
    "<script>alert(1)</script>.jpg",
    '"><img src=x onerror=alert(1)>.jpg',
    "</style></script><svg onload=alert(1)>",
    "{{7*7}}{% include 'style.css' %}",
    "javascript:alert(1)//\N{RIGHT-TO-LEFT OVERRIDE}gpj.\a",
)


def test_hostile_names_are_text(tmp_path: Path) -> None:
    def rows(names: tuple[str, ...]) -> list[dict[str, Any]]:
        said = [
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
        return said + [failed(n + "f", n) for n in names]

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


def test_everything_on_the_page_is_inside_it(tmp_path: Path) -> None:
    found = Page(page(written(tmp_path, [row("a.jpg"), row("b.jpg", CORNER), failed()])))
    for tag, attributes in found.tags:
        for name in ("href", "src"):
            if value := attributes.get(name):
                assert value.startswith(("data:", "#")), (tag, value)
    ids = [a["id"] for _, a in found.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    linked = [value[1:] for _, a in found.tags if (value := a.get("href") or "").startswith("#")]
    assert linked
    assert set(linked) <= set(ids)


def test_a_full_page_weighs_less_than_two_megabytes(tmp_path: Path) -> None:
    """48 pictures of pure noise, which no codec makes small, and more classes than are shown."""
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
    made = page(written(tmp_path / "out", rows))
    assert made.count(b'<image id="photo-') == 48
    assert 500_000 < len(made) < 2_000_000
    assert f'width="{SIDE}" height="{SIDE}"'.encode() in made
    assert b"The 24 most frequent of 37 classes" in made


def test_a_batch_of_scenes_gets_its_report(tmp_path: Path) -> None:
    lines = ["path,class"]
    for k, scene in enumerate(scenes_with_two(6)):
        writing.write(tmp_path / f"{k}.jpg", scene.image)
        lines.append(f"{k}.jpg,nothing")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "set.csv").write_text("\n".join([*lines, "broken.jpg,disc"]))
    run = batch("demo", str(tmp_path / "set.csv"), tmp_path / "out", "onnx", part=4, rivals=True)
    found = Page(Path(run.report()).read_bytes())
    assert "What looks wrong in 7 pictures" in found.text
    assert "0% of the 6 pictures whose class is told are named right; 6 wrong." in found.text
    assert "1 picture failed." in found.text
    assert found.count("figure") >= 6
    assert "could not be read again" not in found.text
