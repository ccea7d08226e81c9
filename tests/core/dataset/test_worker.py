"""Decoding, classes, boxes and masks, and failures of single images."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import xcam
from sets import DEMO, SmallModel, read_rows, write_csv
from systems import names_of_any_bytes
from xcam.dataset import storage
from xcam.dataset.output import Output
from xcam.dataset.worker import decoded

LOCALIZATION = ["pointing", "energy", "relevance-rank"]


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    image = cv2.resize(noise, (2400, 1600), interpolation=cv2.INTER_CUBIC)
    data = cv2.imencode(".jpg", image)[1].tobytes()
    for least, shape in (
        (128, (200, 300)),
        (224, (400, 600)),
        (500, (800, 1200)),
        (900, (1600, 2400)),
        (1, (1600, 2400)),
    ):
        small, size = decoded(data, "p", least)
        assert (small.shape[:2], size) == (shape, (1600, 2400))
        whole = cv2.resize(image[..., ::-1], shape[::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(small.astype(int) - whole).mean() < 2
    rotated = data[:2] + exif(6) + data[2:]
    assert (decoded(rotated, "p", 224)[0].shape, decoded(rotated, "p", 224)[1]) == ((600, 400, 3), (2400, 1600))


def exif(orientation: int) -> bytes:
    """An APP1 segment with only the orientation."""
    tiff = (
        b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01" + bytes([0, orientation, 0, 0]) + bytes(4)
    )
    body = b"Exif\x00\x00" + tiff
    return b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body


@pytest.mark.parametrize("size", [(1600, 1597), (1597, 1600)])
def test_the_size_of_a_nearly_square_image(size: tuple[int, int]) -> None:
    data = cv2.imencode(".jpg", np.zeros((*size, 3), np.uint8))[1].tobytes()
    assert decoded(data, "p", 224)[1] == size


@names_of_any_bytes
def test_a_name_that_is_not_utf8(folder: Path, tmp_path: Path) -> None:
    image = (folder / "00000.jpg").read_bytes()
    (tmp_path / "in").mkdir()
    with open(os.path.join(os.fsencode(tmp_path), b"in", b"bad\xff.jpg"), "wb") as file:
        file.write(image)
    (tmp_path / "in" / ("日" * 80 + ".jpg")).write_bytes(image)
    xcam.batch(**DEMO, inputs=str(tmp_path / "in"), out=tmp_path / "out", overlays=True)
    bad, long = read_rows(tmp_path / "out")
    assert bad["path"].endswith("bad\\udcff.jpg")
    assert "is not UTF-8; rename the file" in bad["error"]
    assert long["error"] is None
    assert [path.name for path in (tmp_path / "out/overlays").iterdir()] == [f"00000001-{'日' * 26}.cam.jpg"]


def test_parts_with_only_errors_do_not_prove_the_model(
    mixed_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve images fail in two runs, and the second ends like the first: the model is the cause."""
    from xcam.dataset import worker

    def fail(*_: object, **__: object) -> None:
        raise xcam.ModelError("the model is worn out; repair it")

    monkeypatch.setattr(worker, "explain_at", fail)
    for _ in range(2):
        with pytest.raises(xcam.ModelError, match="worn out"):
            xcam.batch(**DEMO, inputs=str(mixed_folder), out=tmp_path / "out", part=4, batch=4)
    assert len(list((tmp_path / "out/table").glob("*.parquet"))) < 5


def test_a_package_that_fsspec_needs_is_missing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    def missing(url: str) -> Any:
        raise ImportError("HTTPFileSystem requires aiohttp")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    table = write_csv(tmp_path / "t.csv", f"path\n{folder}/00000.jpg\nhttp://host/a.jpg\n")
    with pytest.raises(
        xcam.BackendError, match=r"cannot open http://host/a.jpg: .*requires aiohttp; install the package it"
    ):
        xcam.batch(**DEMO, inputs=table, out=tmp_path / "out")
    assert not Output(str(tmp_path / "out")).done()


def test_a_missing_package_ends_the_run(mixed_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows with errors would count as done after it is installed."""

    def read(*_: object) -> bytes:
        raise xcam.BackendError("cannot open http://x/a.jpg: ImportError: aiohttp; install the package it names")

    monkeypatch.setattr(storage, "read", read)
    with pytest.raises(xcam.BackendError, match="install the package it names"):
        xcam.batch(**DEMO, inputs=str(mixed_folder), out=tmp_path / "out")
    assert not list((tmp_path / "out/table").glob("*.parquet"))


@pytest.mark.filterwarnings("ignore::xcam.ZeroHeatmapWarning")
def test_images_without_a_class_keep_their_position(folder: Path, tmp_path: Path) -> None:
    labels = ["", "zebra", "-1", "", "", "", "", "", "", "STAR", "3", "3"]
    lines = [f"{path},{label}" for path, label in zip(sorted(folder.iterdir()), labels, strict=True)]
    table = write_csv(tmp_path / "t.csv", "\n".join(["path,class", *lines]))
    xcam.batch(**DEMO, inputs=table, out=tmp_path / "out", target="@class", batch=2, part=3)
    result = read_rows(tmp_path / "out")
    assert [row["target_index"] for row in result] == [None] * 9 + [3, 3, 3]
    assert "unknown class 'zebra'" in result[1]["error"]
    assert "unknown class -1; give an index, 0 or more" in result[2]["error"]
    assert [row["correct"] for row in result[9:]] == [row["prediction_index"] == 3 for row in result[9:]]
    os.unlink(tmp_path / "out/table/part-00000.parquet")  # a run that continues there
    xcam.batch(**DEMO, inputs=table, out=tmp_path / "out", target="@class", batch=2, part=3)
    assert read_rows(tmp_path / "out") == result


def test_a_class_is_correct_in_any_spelling(folder: Path, tmp_path: Path) -> None:
    path = folder / "00000.jpg"
    e = xcam.explain(xcam.load("demo", "onnx"), path)
    for k, label in enumerate([e.label, e.label.upper(), str(e.index), f" {e.label} "]):
        xcam.batch(
            **DEMO, inputs=write_csv(tmp_path / "t.csv", f"path, class\n{path},{label}\n"), out=tmp_path / f"{k}"
        )
        assert read_rows(tmp_path / f"{k}")[0]["correct"] is True


def test_the_best_classes_as_targets(folder: Path, tmp_path: Path) -> None:
    xcam.batch(**DEMO, inputs=str(folder / "00000.jpg"), out=tmp_path / "out", target=["top2", 1])
    expected = [e.index for e in xcam.explain(xcam.load("demo", "onnx"), folder / "00000.jpg", target="top2")]
    assert [row["target_index"] for row in read_rows(tmp_path / "out")] == [*expected, 1]


def test_batch_and_evaluate_give_the_same_values(tmp_path: Path) -> None:
    """Wide images with objects of a few pixels, which would disappear at the size of the model's input."""
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
    expected = xcam.evaluate(
        SmallModel(),
        [tmp_path / f"{k}.png" for k in range(5)],
        measures=LOCALIZATION,
        layer="features",
        target="cat",
        boxes=boxes,
        masks=masks,
        floor=False,
    ).values["gradcam"]
    table = write_csv(tmp_path / "t.csv", *lines)
    xcam.batch(
        SmallModel(), table, out=tmp_path / "out", measures=LOCALIZATION, layer="features", target="cat", batch=2
    )
    result = read_rows(tmp_path / "out")
    for name in LOCALIZATION:
        np.testing.assert_allclose([row[name] for row in result], expected[name], atol=1e-6)
    by_hand = xcam.explain(SmallModel(), tmp_path / "0.png", layer="features", target="cat").heatmap
    assert result[0]["energy"] == pytest.approx(by_hand[20:23, 150:155].sum() / by_hand.sum(), abs=1e-7)
    assert 0 < result[0]["energy"] < 0.001


def test_objects_of_an_image_that_is_decoded_at_a_fraction_of_its_size(tmp_path: Path) -> None:
    """4×6 cells of 96 pixels, one of them red, in a JPEG that is decoded at an eighth."""
    image = np.zeros((384, 576, 3), np.uint8)
    image[96:192, 192:288, 2] = 240
    cv2.imwrite(str(tmp_path / "a.jpg"), image)
    boxes = {"in": (200, 100, 280, 180), "out": (400, 100, 480, 180), "edge": (575, 0, 576, 384)}
    for name, box in boxes.items():
        table = write_csv(tmp_path / "t.csv", "path,x0,y0,x1,y1", f"a.jpg,{','.join(map(str, box))}")
        xcam.batch(SmallModel(), table, out=tmp_path / name, measures=LOCALIZATION, layer="features", target="cat")
        (result,) = read_rows(tmp_path / name)
        expected = xcam.evaluate(
            SmallModel(),
            [tmp_path / "a.jpg"],
            measures=LOCALIZATION,
            layer="features",
            target="cat",
            boxes=[box],
            floor=False,
        ).values["gradcam"]
        assert [result[m] for m in LOCALIZATION] == pytest.approx([expected[m][0] for m in LOCALIZATION], abs=0.01)
        assert result["pointing"] == (name == "in")


def test_maps_of_large_images_are_computed_one_at_a_time(tmp_path: Path) -> None:
    lines = ["path,x0,y0,x1,y1"]
    for k in range(12):
        image = np.zeros((1000, 1500, 3), np.uint8)
        image[:, : 100 * k + 90, 2] = 240
        cv2.imwrite(str(tmp_path / f"{k}.png"), image)
        lines.append(f"{k}.png,0,0,{100 * k + 90},1000")
    table = write_csv(tmp_path / "t.csv", *lines)

    def peak(name: str, count: int, measures: list[str]) -> int:
        write_csv(tmp_path / "t.csv", *lines[: count + 1])
        tracemalloc.start()
        xcam.batch(
            SmallModel(),
            table,
            out=tmp_path / name,
            measures=measures,
            layer="features",
            target="cat",
            batch=12,
            threads=1,
        )
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    peak("first", 1, ["energy"])  # modules are imported once
    one, twelve = peak("one", 1, ["energy"]), peak("twelve", 12, ["energy"])
    pixels = 1000 * 1500
    assert twelve - one < 4 * 4 * pixels  # twelve maps would take eleven times 4 bytes a pixel more
    assert min(row["energy"] for row in read_rows(tmp_path / "twelve")) > 0.3


def test_masks_are_read_only_if_needed_and_boxes_always_checked(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((8, 9, 3), 99, np.uint8))
    table = write_csv(tmp_path / "t.csv", "path,mask", "a.png,none.png")
    (measured,) = _batch(table, tmp_path / "measured", ["energy"])
    assert "none.png: no such file" in measured["error"]
    (ignored,) = _batch(table, tmp_path / "ignored", ["complexity"])
    assert ignored["error"] is None
    write_csv(tmp_path / "t.csv", "path,x0,y0,x1,y1", "a.png,0,0,10,8")
    (outside,) = _batch(table, tmp_path / "outside", ["complexity"])
    assert "not within the image's 9×8 pixels" in outside["error"]
    write_csv(tmp_path / "t.csv", "path,x0,y0,x1,y1", "a.png,0.1,0.1,0.9,0.9")
    (shares,) = _batch(table, tmp_path / "shares", ["energy"])
    assert "looks like shares of the image; give pixels" in shares["error"]


def test_a_folder_instead_of_a_mask(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "a.png"), np.full((8, 9, 3), 99, np.uint8))
    (row,) = _batch(write_csv(tmp_path / "t.csv", "path,mask", "a.png,masks"), tmp_path / "out", ["energy"])
    assert row["error"].endswith("masks: it is a directory; give a file in it")


def _batch(table: str, out: Path, measures: list[str]) -> list[dict[str, Any]]:
    """The rows of a table, and an image that does not fail: if all fail, the run fails."""
    folder = Path(table).parent
    cv2.imwrite(str(folder / "good.png"), np.full((8, 9, 3), 99, np.uint8))
    xcam.batch(
        SmallModel(), [table, str(folder / "good.png")], out=out, measures=measures, layer="features", target="cat"
    )
    *result, good = read_rows(out)
    assert good["error"] is None
    return result


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
    table = write_csv(tmp_path / "t.csv", "path,mask", *(f"of-{name}.png,{name}" for name in kinds))
    xcam.batch(SmallModel(), table, out=tmp_path / "out", measures=["energy"], layer="features", target="cat")
    by_hand = xcam.explain(SmallModel(), image[..., ::-1].copy(), layer="features", target="cat").heatmap
    expected = by_hand[half].sum() / by_hand.sum()
    assert 0.9 < expected < 1
    assert [row["energy"] for row in read_rows(tmp_path / "out")] == pytest.approx([expected] * 3, abs=1e-6)


def test_images_of_several_ratios_for_an_open_width(tmp_path: Path) -> None:
    """Each image is resized to its own ratio; the results are those of the image alone."""
    shapes = [(8, 24), (4, 6), (400, 1200), (30, 45)]
    for k, shape in enumerate(shapes):
        image = np.random.default_rng(k).integers(0, 256, (*shape, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"{k}.png"), image)
    model = SmallModel()
    model.input = xcam.InputSpec((4, None), preprocessing=xcam.Preprocessing("raw"), fixed=True)
    xcam.batch(model, str(tmp_path / "*.png"), out=tmp_path / "out", measures=["complexity"])
    rows = read_rows(tmp_path / "out")
    assert [(row["map_height"], row["map_width"]) for row in rows] == [(4, 12), (4, 6), (4, 12), (4, 6)]
    for k, row in enumerate(rows):
        alone = xcam.explain(model, tmp_path / f"{k}.png")
        np.testing.assert_allclose(np.reshape(row["map"], alone.cam.shape), alone.cam, rtol=1e-5)
        measured = xcam.evaluate(model, tmp_path / f"{k}.png", measures="complexity", floor=False)
        np.testing.assert_allclose(row["complexity"], measured.row("gradcam", "complexity").mean, rtol=1e-5)
