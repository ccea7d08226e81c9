"""An explanation: its files, overlays and values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import xcam
from explanations import explanation
from fake import IMAGES, FakeModel
from xcam import OptionError
from xcam.images.framing import frame


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".npz"])
def test_save(model: FakeModel, tmp_path: Path, suffix: str) -> None:
    ramp = np.linspace(0, 255, 120)[:, None, None].repeat(80, 1) * [1, 0.5, 0]
    ramp = ramp.astype(np.uint8)
    e = xcam.explain(model, ramp)
    path = tmp_path / f"cam{suffix}"
    e.save(path)
    if suffix == ".npz":
        with np.load(path) as arrays:
            np.testing.assert_array_equal(arrays["heatmap"], e.heatmap)
            np.testing.assert_array_equal(arrays["cam"], e.cam)
            assert (str(arrays["label"]), str(arrays["layer"])) == (e.label, "features")
    else:
        atol = 0 if suffix == ".png" else 12
        np.testing.assert_allclose(xcam.images.reading.read(path).astype(int), e.overlay(), atol=atol)
    assert list(tmp_path.iterdir()) == [path]
    assert e._repr_png_().startswith(b"\x89PNG")


def test_notes_are_below_the_image_and_leave_its_pixels_unchanged(model: FakeModel, tmp_path: Path) -> None:
    model.notes = ("random weights",)
    image = np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8)
    e = xcam.explain(model, image)
    e.save(tmp_path / "cam.png")
    saved = xcam.images.reading.read(tmp_path / "cam.png")
    assert saved.shape[0] > 105
    np.testing.assert_array_equal(saved[:100], e.overlay())
    assert len(np.unique(saved[100:])) > 10  # letters


def test_normalize_none_keeps_the_scale_and_still_draws(model: FakeModel) -> None:
    e = xcam.explain(model, IMAGES[0], target=0, normalize="none")
    np.testing.assert_allclose(e.heatmap, e.positive, rtol=1e-6)
    np.testing.assert_array_equal(e.overlay(), xcam.explain(model, IMAGES[0], target=0).overlay())


def test_explanations_can_be_compared_and_kept_in_sets(model: FakeModel) -> None:
    e, f = xcam.explain(model, IMAGES[:2])
    assert e == e
    assert e != f
    assert len({e, f}) == 2


def test_a_misspelt_drawing_option_is_an_error(model: FakeModel, tmp_path: Path) -> None:
    e = xcam.explain(model, IMAGES[0], target=0)
    with pytest.raises(OptionError, match=r"overlay\(\) has no option 'alhpa'; nearest: alpha"):
        e.overlay(alhpa=1)  # type: ignore[call-arg]
    with pytest.raises(OptionError, match=r"save\(\) has no option 'colourmap'; nearest: colormap"):
        e.save(tmp_path / "a.png", colourmap="hot")  # type: ignore[call-arg]
    assert not list(tmp_path.iterdir())


def test_the_unit_heatmap_is_in_0_to_1_for_every_normalisation(model: FakeModel) -> None:
    plain, raw = (xcam.explain(model, IMAGES[0], target=0, normalize=n) for n in ("max", "none"))  # type: ignore[arg-type]
    assert raw.heatmap.max() > 1
    np.testing.assert_array_equal(raw.unit_heatmap, plain.heatmap)


def test_the_rectangle_that_a_map_covers(tmp_path: Path) -> None:
    assert explanation().map_box == (0, 0, 300, 200)
    cropped = explanation(frame=frame((200, 300), (50, 50), xcam.Fit("crop")))
    assert cropped.map_box == pytest.approx((50, 0, 250, 200), abs=2)
    bordered = explanation(frame=frame((200, 300), (60, 60), xcam.Fit("letterbox")))
    assert bordered.map_box == (0, -50, 300, 250)
    bordered.save(tmp_path / "map.npz")
    with np.load(tmp_path / "map.npz") as arrays:
        np.testing.assert_array_equal(arrays["map_box"], bordered.map_box)
    assert bordered.with_image(np.zeros((100, 150, 3), np.uint8)).map_box == (0, -25, 150, 125)
