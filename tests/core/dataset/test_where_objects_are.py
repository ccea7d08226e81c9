"""Boxes and masks of a set: read as they are meant, and measured as `evaluate` measures them."""

from __future__ import annotations

import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import xcam
from fake import FakeModel
from xcam.dataset.inputs import listing

PLACES = ["pointing", "energy", "relevance-rank"]


class Small(FakeModel):
    """4×6 pixels as they are: red speaks for `cat`."""

    def __init__(self) -> None:
        super().__init__(weights=[[0.05, 0], [0, 0.05], [0, 0]])
        self.input = xcam.InputSpec((4, 6), preprocessing=xcam.Preprocessing("raw"))


def rows(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "table").to_pylist()


def csv(place: Path, *lines: str) -> str:
    place.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(place)


def test_batch_and_evaluate_give_the_same_numbers(tmp_path: Path) -> None:
    """Wide pictures with objects of a few pixels, which would be lost at the size that the model takes."""
    rng = np.random.default_rng(0)
    lines, boxes, masks = ["path,x0,y0,x1,y1,mask"], list[Any](), list[Any]()
    mask = np.zeros((128, 1024), np.uint8)
    mask[40:43, 600:607] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    for k in range(5):
        red = cv2.resize(rng.integers(0, 256, (4, 6), np.uint8), (1024, 128))
        cv2.imwrite(str(tmp_path / f"{k}.png"), red[..., None] * np.uint8([0, 0, 1]))
        x, y = 150 + 171 * k, 20 + 19 * k
        boxes.append((x, y, x + 5, y + 3))
        masks.append(tmp_path / "mask.png" if k == 4 else None)
        lines.append(f"{k}.png,{x},{y},{x + 5},{y + 3},{'mask.png' if k == 4 else ''}")
    told = xcam.evaluate(
        Small(),
        [tmp_path / f"{k}.png" for k in range(5)],
        measures=PLACES,
        layer="features",
        target="cat",
        boxes=boxes,
        masks=masks,
        floor=False,
    ).values["gradcam"]
    table = csv(tmp_path / "t.csv", *lines)
    xcam.batch(Small(), table, tmp_path / "out", measures=PLACES, layer="features", target="cat", batch=2)
    found = rows(tmp_path / "out")
    for name in PLACES:
        np.testing.assert_allclose([row[name] for row in found], told[name], atol=1e-6)
    by_hand = xcam.explain(Small(), tmp_path / "0.png", layer="features", target="cat").heatmap
    assert found[0]["energy"] == pytest.approx(by_hand[20:23, 150:155].sum() / by_hand.sum(), abs=1e-7)
    assert 0 < found[0]["energy"] < 0.001


def test_objects_of_a_picture_that_is_read_at_a_fraction_of_its_size(tmp_path: Path) -> None:
    """4×6 cells of 96 pixels, one of them red; a JPEG that is decoded at an eighth."""
    image = np.zeros((384, 576, 3), np.uint8)
    image[96:192, 192:288, 2] = 240
    cv2.imwrite(str(tmp_path / "a.jpg"), image)
    boxes = {"in": (200, 100, 280, 180), "out": (400, 100, 480, 180), "edge": (575, 0, 576, 384)}
    for name, box in boxes.items():
        table = csv(tmp_path / "t.csv", "path,x0,y0,x1,y1", f"a.jpg,{','.join(map(str, box))}")
        xcam.batch(Small(), table, tmp_path / name, measures=PLACES, layer="features", target="cat")
        (found,) = rows(tmp_path / name)
        told = xcam.evaluate(
            Small(), [tmp_path / "a.jpg"], measures=PLACES, layer="features", target="cat", boxes=[box], floor=False
        ).values["gradcam"]
        assert [found[m] for m in PLACES] == pytest.approx([told[m][0] for m in PLACES], abs=0.01)
        assert found["pointing"] == (name == "in")


def test_maps_of_large_pictures_are_made_one_at_a_time(tmp_path: Path) -> None:
    lines = ["path,x0,y0,x1,y1"]
    for k in range(12):
        image = np.zeros((1000, 1500, 3), np.uint8)
        image[:, : 100 * k + 90, 2] = 240
        cv2.imwrite(str(tmp_path / f"{k}.png"), image)
        lines.append(f"{k}.png,0,0,{100 * k + 90},1000")
    table = csv(tmp_path / "t.csv", *lines)

    def peak(name: str, count: int, measures: list[str]) -> int:
        csv(tmp_path / "t.csv", *lines[: count + 1])
        tracemalloc.start()
        xcam.batch(
            Small(), table, tmp_path / name, measures=measures, layer="features", target="cat", batch=12, threads=1
        )
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak("first", 1, ["energy"])  # what is loaded once
    one, twelve = peak("one", 1, ["energy"]), peak("twelve", 12, ["energy"])
    picture = 1000 * 1500
    assert twelve - one < 4 * 4 * picture  # twelve maps would take eleven times 4 bytes a pixel more
    assert min(row["energy"] for row in rows(tmp_path / "twelve")) > 0.3


def test_masks_are_read_where_they_are_measured_and_boxes_are_always_checked(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((8, 9, 3), 99, np.uint8))
    table = csv(tmp_path / "t.csv", "path,mask", "a.png,none.png")
    (asked,) = _batch(table, tmp_path / "asked", ["energy"])
    assert "none.png: no such file" in asked["error"]
    (unasked,) = _batch(table, tmp_path / "unasked", ["complexity"])
    assert unasked["error"] is None
    csv(tmp_path / "t.csv", "path,x0,y0,x1,y1", "a.png,0,0,10,8")
    (outside,) = _batch(table, tmp_path / "outside", ["complexity"])
    assert "not within the image's 9×8 pixels" in outside["error"]
    csv(tmp_path / "t.csv", "path,x0,y0,x1,y1", "a.png,0.1,0.1,0.9,0.9")
    (shares,) = _batch(table, tmp_path / "shares", ["energy"])
    assert "looks like shares of the image; give pixels" in shares["error"]


def test_a_folder_is_no_mask(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "a.png"), np.full((8, 9, 3), 99, np.uint8))
    (row,) = _batch(csv(tmp_path / "t.csv", "path,mask", "a.png,masks"), tmp_path / "out", ["energy"])
    assert row["error"].endswith("masks: it is a directory; give a file in it")


@pytest.mark.parametrize("told", ["boxes", "mask", "nothing"])
def test_where_nothing_says_where_objects_are_a_warning_does(told: str, tmp_path: Path) -> None:
    image = np.full((8, 9, 3), 99, np.uint8)
    for name in "ab":
        cv2.imwrite(str(tmp_path / f"{name}.png"), image)
    cv2.imwrite(str(tmp_path / "m.png"), image)
    lines = {"boxes": ",1,1,3,3,", "mask": ",,,,,m.png", "nothing": ",,,,,"}
    table = csv(tmp_path / "t.csv", "path,x0,y0,x1,y1,mask", f"a.png{lines['nothing']}", f"b.png{lines[told]}")

    def batch(*measures: str) -> list[str]:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", xcam.XcamWarning)
            xcam.batch(
                Small(), table, tmp_path / "-".join(measures), measures=measures, layer="features", target="cat"
            )
        return [str(warning.message) for warning in said]

    empty = "no picture has a box or a mask, so pointing and energy will be empty; give a table with the columns x0, "
    assert [text.startswith(empty) for text in batch("pointing", "complexity", "energy")] == [True] * (
        told == "nothing"
    )
    assert not batch("complexity")


def _batch(table: str, out: Path, measures: list[str]) -> list[dict[str, Any]]:
    """The rows of a table, beside a picture that does not fail: where all fail, the run does."""
    place = Path(table).parent
    cv2.imwrite(str(place / "good.png"), np.full((8, 9, 3), 99, np.uint8))
    xcam.batch(Small(), [table, str(place / "good.png")], out, measures=measures, layer="features", target="cat")
    *found, good = rows(out)
    assert good["error"] is None
    return found


def test_masks_of_every_kind(tmp_path: Path) -> None:
    """The left half is red: the object of each mask, as alpha, as a label in 16 bits, in a JPEG."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, :30, 2] = 240
    half = image.any(axis=2)
    alpha = np.dstack([np.full((40, 60, 3), 255), half * 255]).astype(np.uint8)
    kinds = {"alpha.png": alpha, "deep.png": half * np.uint16(7), "lossy.jpg": half * np.uint8(255)}
    for name, mask in kinds.items():
        cv2.imwrite(str(tmp_path / f"of-{name}.png"), image)
        cv2.imwrite(str(tmp_path / name), mask)
    table = csv(tmp_path / "t.csv", "path,mask", *(f"of-{name}.png,{name}" for name in kinds))
    xcam.batch(Small(), table, tmp_path / "out", measures=["energy"], layer="features", target="cat")
    by_hand = xcam.explain(Small(), image[..., ::-1].copy(), layer="features", target="cat").heatmap
    expected = by_hand[half].sum() / by_hand.sum()
    assert 0.9 < expected < 1
    assert [row["energy"] for row in rows(tmp_path / "out")] == pytest.approx([expected] * 3, abs=1e-6)


def test_a_picture_that_is_spelled_in_two_ways_is_one(tmp_path: Path) -> None:
    lines = ["./p/a.png,1,1,2,2", "p/a.png,3,3,4,4", "p//../p/a.png,5,5,6,6", f"{tmp_path}/p/a.png,7,7,8,8"]
    found = listing([csv(tmp_path / "t.csv", "path,x0,y0,x1,y1", *lines)]).to_pylist()
    assert [row["boxes"] for row in found] == [[[k, k, k + 1, k + 1] for k in (1, 3, 5, 7)]]
    same = csv(tmp_path / "m.csv", "path,mask", "./a.png,./m.png", "a.png,m.png")
    assert len(listing([same])) == 1
    two = csv(tmp_path / "m.csv", "path,mask", "./a.png,m.png", "a.png,n.png")
    with pytest.raises(xcam.InputError, match=r"gives a.png two masks, .*m.png and .*n.png; give one"):
        listing([two])


def test_urls_are_left_as_they_are(tmp_path: Path) -> None:
    lines = ["s3://b//a.png,1,1,2,2", "s3://b/a.png,3,3,4,4"]
    found = listing([csv(tmp_path / "t.csv", "path,x0,y0,x1,y1", *lines)]).to_pylist()
    assert [row["path"] for row in found] == ["s3://b//a.png", "s3://b/a.png"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_blanks_around_paths_and_headers_in_capitals(kind: str, tmp_path: Path) -> None:
    columns = {
        "Path": [" a.png", "b.png "],
        "X0": [1, 2],
        "Y0": [1, 2],
        "X1": [3, 4],
        "Y1": [3, 4],
        " MASK" if kind == "csv" else "MASK": [" m.png ", "  "],
        "Other": ["x", "y"],
    }
    place = tmp_path / f"t.{kind}"
    if kind == "csv":
        csv(place, ",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True)))
    else:
        pq.write_table(pa.table(dict(reversed(columns.items()))), place)
    found = listing([str(place)]).to_pylist()
    assert [row["path"] for row in found] == [f"{tmp_path}/a.png", f"{tmp_path}/b.png"]
    assert [row["boxes"] for row in found] == [[[1, 1, 3, 3]], [[2, 2, 4, 4]]]
    assert [row["mask"] for row in found] == [f"{tmp_path}/m.png", None]


def test_a_path_of_blanks_is_none(tmp_path: Path) -> None:
    with pytest.raises(xcam.InputError, match=r"row 2 of .* names no picture"):
        listing([csv(tmp_path / "t.csv", "path,class", "a.png,1", "  ,1")])


@pytest.mark.parametrize("names", ["xmin,ymin,xmax,ymax", "x,y,w,h", "X,Y,Width,Height", "left,top,right,bottom"])
def test_boxes_under_other_names_are_told(names: str, tmp_path: Path) -> None:
    table = csv(tmp_path / "t.csv", f"path,{names}", "a.png,1,1,2,2")
    said = rf"t.csv has the columns {names.lower().replace(',', ', ')}, which are not read; a box is read from x0, y0, x1"
    with pytest.warns(xcam.XcamWarning, match=said):
        listing([table])
    csv(tmp_path / "t.csv", f"path,{names},mask", "a.png,1,1,2,2,m.png")
    listing([table])  # who gives masks has chosen
