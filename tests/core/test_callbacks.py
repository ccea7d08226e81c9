"""Heatmaps of the same images after every epoch: files, TensorBoard, errors. Frameworks are in tests/backends/."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

import xcam
from fake import IMAGES, FakeModel
from xcam import BackendError, InputError, ModelError, OptionError, XcamWarning, callbacks
from xcam.callbacks import Heatmaps
from xcam.contract.plugins import BackendSpec, Plugin
from xcam.images import reading
from xcam.images.montage import labelled


@pytest.fixture
def model() -> FakeModel:
    model = FakeModel()
    model.input = xcam.InputSpec((4, 6), preprocessing=xcam.Preprocessing("raw"))
    return model


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Return two image files of one name in different folders, and one more."""
    result = []
    for name, seed in (("a/x.png", 0), ("b/x.png", 1), ("y.png", 2)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pixels = np.full((40, 60, 3), 60 * (seed + 1), np.uint8)
        pixels[10:30, 20:50, seed] = 250
        assert cv2.imwrite(str(tmp_path / name), pixels)
        result.append(tmp_path / name)
    return result


def text(e: xcam.Explanation) -> str:
    return f"{e.label} {e.scores[e.index]:.0%}{'' if e.cam.max() > 0 else ', empty map'}"


@pytest.mark.filterwarnings("ignore::xcam.ZeroHeatmapWarning")
def test_each_epoch_has_a_folder_with_the_heatmap_of_each_image(
    model: FakeModel, paths: list[Path], tmp_path: Path
) -> None:
    written: list[tuple[str, Any, int]] = []
    heatmaps = Heatmaps(
        paths, tmp_path / "out", writer=lambda *call: written.append(call), target=["cat", "dog", 1], alpha=0.3
    )
    result = heatmaps.on_epoch_end(model, 1)
    expected = xcam.explain(model, paths, target=["cat", "dog", 1])
    model.weights[:] = model.weights[::-1].copy()
    heatmaps.on_epoch_end(model, 2)
    names = ["x_0", "x_1", "y"]
    assert sorted((tmp_path / "out").rglob("*.jpg")) == [
        tmp_path / f"out/epoch_00{epoch}/{name}.jpg" for epoch in (1, 2) for name in names
    ]
    assert [(tag, epoch) for tag, _, epoch in written] == [
        (f"heatmaps/{name}", epoch) for epoch in (1, 2) for name in names
    ]
    for e, still, (_, image, _) in zip(result, expected, written, strict=False):
        np.testing.assert_array_equal(e.cam, still.cam)
        np.testing.assert_array_equal(image, labelled(still.overlay(0.3), text(still)))
    assert np.abs(reading.read(tmp_path / "out/epoch_001/y.jpg") - written[2][1].astype(float)).mean() < 12
    assert (written[3][1] != written[0][1]).any(), "the second epoch has other weights"


def test_several_targets_and_the_epochs_that_are_left_out(model: FakeModel, tmp_path: Path) -> None:
    heatmaps = Heatmaps(IMAGES[:2], tmp_path, every=2, target="top2", method="layercam")
    assert [len(heatmaps.on_epoch_end(model, epoch)) for epoch in (1, 2, 3, 4)] == [0, 2, 0, 2]
    files = {path.name for path in (tmp_path / "epoch_004").iterdir()}
    assert len(files) == 4
    assert all(name.startswith(("image_0.0.", "image_0.1.", "image_1.0.", "image_1.1.")) for name in files)
    assert not (tmp_path / "epoch_001").exists()


def test_tensorboard_has_images_with_channels_last(model: FakeModel) -> None:
    class Writer:
        def __init__(self) -> None:
            self.calls: list[tuple[str, tuple[int, ...], int, str]] = []

        def add_image(self, tag: str, image: Any, step: int, dataformats: str = "CHW") -> None:
            self.calls.append((tag, image.shape, step, dataformats))

    writer = Writer()
    Heatmaps(IMAGES[:1], writer=writer).on_epoch_end(model, 7)
    assert writer.calls == [("heatmaps/image_0", (4, 6, 3), 7, "HWC")]


def test_the_first_call_raises_and_later_ones_warn(model: FakeModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown layer 'absent'"):
        Heatmaps(IMAGES[:1], tmp_path, layer="absent").on_epoch_end(model, 1)
    heatmaps = Heatmaps(IMAGES[:1], tmp_path)
    heatmaps.on_epoch_end(model, 1)
    model.weights[:] = np.nan
    with pytest.warns(XcamWarning, match="heatmaps of epoch 2 are missing: ModelError: fake gives NaN"):
        assert heatmaps.on_epoch_end(model, 2) == []
    model.weights[:] = np.nan
    with pytest.raises(ModelError, match="NaN"):
        Heatmaps(IMAGES[:1], tmp_path).on_epoch_end(model, 1)


def test_a_model_that_may_have_been_copied_is_opened_again(
    model: FakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(callbacks, "load", lambda source, **options: opened.append(source) or model)
    heatmaps, source = Heatmaps(IMAGES[:1], tmp_path), object()
    for epoch in (1, 2):
        heatmaps.on_epoch_end(source, epoch)
    assert opened == [source, source]


def test_global_random_states_are_restored(model: FakeModel, tmp_path: Path) -> None:
    def drawing(trace: Any) -> Any:
        random.random()
        np.random.random()
        return trace

    model.spoil = drawing
    states = random.getstate(), np.random.get_state()[2]
    Heatmaps(IMAGES[:1], tmp_path).on_epoch_end(model, 1)
    assert (random.getstate(), np.random.get_state()[2]) == states
    assert model.calls


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((IMAGES,), {}, InputError, "written nowhere; give a folder"),
        (("image.jpg", "out"), {}, InputError, "give a list of at least one"),
        (([], "out"), {}, InputError, "give a list of at least one"),
        ((["absent.jpg"], "out"), {}, InputError, "absent.jpg: no such file"),
        ((IMAGES, "out"), {"every": 0}, InputError, "cannot use every=0"),
        ((IMAGES, "out"), {"targets": 1}, OptionError, "no option 'targets'; nearest: target"),
        ((IMAGES, "out"), {"colormap": "jets"}, InputError, "unknown colormap 'jets'"),
        ((IMAGES,), {"writer": 3}, InputError, "cannot write to int; give a SummaryWriter"),
    ],
)
def test_arguments_that_cannot_be_used(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Heatmaps(*arguments, **options)


def test_a_callback_of_a_framework_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = BackendSpec("other", ("no_such_framework",), "other:Other", "other", callbacks=("other.cb:OtherHeatmaps",))

    plugins = SimpleNamespace(plugins={"other": Plugin("other", spec, "xcam-other")})
    monkeypatch.setattr(callbacks, "registry", lambda: plugins)
    with pytest.raises(
        BackendError, match=r'OtherHeatmaps: backend \'other\' is missing; pip install "xcam-explain\[other\]"'
    ):
        _ = callbacks.OtherHeatmaps
    monkeypatch.setitem(sys.modules, "no_such_framework", sys)
    monkeypatch.setitem(sys.modules, "other.cb", SimpleNamespace(OtherHeatmaps=3))  # type: ignore[arg-type]
    assert callbacks.OtherHeatmaps == 3
    with pytest.raises(AttributeError, match="has no attribute 'Absent'"):
        _ = callbacks.Absent
