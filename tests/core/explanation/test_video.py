"""The explanations of a clip's frames."""

from __future__ import annotations

import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest

import xcam
from fake import FakeModel
from xcam import InputError, XcamWarning, ZeroHeatmapWarning, progress
from xcam.errors import AbsentError
from xcam.images import montage, video
from xcam.methods import maps

RATE = 10.0


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a clip of 12 frames; a bright spot moves to the right, first in red, then in green."""
    path, rng = tmp_path_factory.mktemp("clips") / "clip.avi", np.random.default_rng(0)
    with video.writing(path, RATE, 12) as add:
        for k in range(12):
            image = rng.integers(0, 80, (40, 60, 3), dtype=np.uint8)
            image[10:20, 4 * k : 4 * k + 10, 0 if k < 8 else 1] = 180 + 5 * k
            add(image, (k + 1) / RATE)
    return path


@pytest.fixture(scope="module")
def images(clip: Path) -> list[np.ndarray]:
    return [image for _, image in video.open_clip(clip).frames()]


def test_each_frame_is_explained_as_an_image_is_on_the_scale_of_the_clip(
    model: FakeModel, clip: Path, images: list[np.ndarray]
) -> None:
    steps: list[tuple[str, int, int]] = []
    with progress.listening(lambda *step: steps.append(step)):
        result = xcam.explain_video(model, clip, target="cat", batch=5)
    expected = xcam.explain(model, images, target="cat")
    largest = max(e.cam.max() for e in expected)
    assert steps[-1] == ("frames", 12, 12)
    np.testing.assert_allclose(result.times, np.arange(12) / RATE, atol=1e-6)
    for e, still, image in zip(result.explanations(), expected, images, strict=True):
        np.testing.assert_array_equal(e.cam, still.cam)
        np.testing.assert_array_equal(e.image, image)
        np.testing.assert_allclose(e.heatmap, maps.resize(np.maximum(still.cam, 0) / largest, (40, 60)), atol=1e-6)
        assert (e.label, e.score, e.path) == (still.label, still.score, clip)
    by_frame = xcam.explain_video(model, clip, target="cat", scale="frame")
    for e, still in zip(by_frame.explanations(), expected, strict=True):
        np.testing.assert_array_equal(e.overlay(), still.overlay())


def test_signed_maps_and_minmax_share_the_scale(model: FakeModel, clip: Path) -> None:
    result = xcam.explain_video(model, clip, target="cat", normalize="minmax")
    cams = np.stack([e.cam for e in result.frames])
    largest, smallest = cams.max(), max(cams.min(), 0)
    for e, cam in zip(result.explanations(), cams, strict=True):
        np.testing.assert_allclose(e.signed, maps.resize(cam / np.abs(cams).max(), (40, 60)), atol=1e-6)
        expected = maps.resize((np.maximum(cam, 0) - smallest) / (largest - smallest), (40, 60))
        np.testing.assert_allclose(e.heatmap, expected, atol=1e-6)


def test_the_class_of_a_clip_is_that_of_the_highest_mean_probability(
    model: FakeModel, clip: Path, images: list[np.ndarray]
) -> None:
    """Two thirds of the frames are of the first class, and the others of the second."""
    scores = np.stack([e.scores for e in xcam.explain(model, images)])
    assert {0, 1} == set(scores.argmax(axis=1))
    result = xcam.explain_video(model, clip)
    assert result.classes == {model.labels[scores.mean(axis=0).argmax()]: 12}
    each = xcam.explain_video(model, clip, target="top1")
    assert [e.index for e in each.frames] == scores.argmax(axis=1).tolist()
    assert sum(each.classes.values()) == 12


def test_raw_maps_are_averaged_over_time(model: FakeModel, clip: Path) -> None:
    plain = [e.cam for e in xcam.explain_video(model, clip, target=0).frames]
    smooth = xcam.explain_video(model, clip, target=0, smooth=0.4)
    for k, cam in enumerate(smooth.cams):
        np.testing.assert_allclose(cam, np.mean(plain[max(0, k - 2) : k + 3], axis=0), rtol=1e-5)
    np.testing.assert_array_equal([e.cam for e in smooth.explanations()], smooth.cams)


def test_a_part_of_the_frames(model: FakeModel, clip: Path, images: list[np.ndarray]) -> None:
    result = xcam.explain_video(model, clip, target=0, every=3, start=0.2, end=1.0)
    np.testing.assert_allclose(result.times, [0, 0.3, 0.6], atol=1e-6)
    for e, k in zip(result.explanations(), (2, 5, 8), strict=True):
        np.testing.assert_array_equal(e.image, images[k])
    with pytest.raises(InputError, match="has no frame from second 5 on"):
        xcam.explain_video(model, clip, target=0, start=5)


def test_the_clip_is_drawn_with_class_and_score(model: FakeModel, clip: Path, tmp_path: Path) -> None:
    result = xcam.explain_video(model, clip, target="dog", every=2)
    result.save(tmp_path / "out.avi", alpha=0.4, colormap="viridis")
    reader = video.open_clip(tmp_path / "out.avi")
    frames = [image for _, image in reader.frames()]
    assert (reader.rate, len(frames)) == (RATE / 2, 6)
    for e, drawn in zip(result.explanations(), frames, strict=True):
        text = f"dog {e.scores[1]:.0%}"
        expected = montage.labelled(e.overlay(0.4, "viridis"), text).astype(int)
        assert np.abs(drawn.astype(int) - expected).mean() < 10
    result.save(tmp_path / "plain.avi", label=False)
    first = next(video.open_clip(tmp_path / "plain.avi").frames())[1].astype(int)
    assert np.abs(first - next(result.explanations()).overlay()).mean() < 10
    result.save(tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as arrays:
        np.testing.assert_array_equal(arrays["cams"], result.cams)
        assert arrays["label"].tolist() == ["dog"] * 6
    rows = result.to_dict()["frames"]
    assert [row["probability"] for row in rows] == [pytest.approx(e.scores[1]) for e in result.frames]
    with pytest.raises(InputError, match="is the clip itself"):
        result.save(clip)


def test_zero_maps_and_unreadable_frames_are_counted(model: FakeModel, clip: Path, tmp_path: Path) -> None:
    model.weights[0, 0] = 0  # red is not evidence for the first class any more
    with pytest.warns(ZeroHeatmapWarning, match="on every frame: the heatmap is zero everywhere at layer 'features'"):
        xcam.explain_video(model, clip, target=0)
    cut = tmp_path / "cut.avi"
    cut.write_bytes(clip.read_bytes()[: clip.stat().st_size * 4 // 5])
    with pytest.warns(XcamWarning) as caught:
        result = xcam.explain_video(model, cut, target=0)
    missing = 12 - len(result.frames)
    assert missing > 0
    note = f"{missing} of 12 frames could not be read (damaged, or cut off)"
    assert str(caught[-1].message) == f"{cut}: {note}"
    assert result.notes == (note,)


def test_a_clip_can_be_grey(model: FakeModel, tmp_path: Path) -> None:
    writer = cv2.VideoWriter(
        str(tmp_path / "grey.avi"), cv2.VideoWriter_fourcc(*"FFV1"), RATE, (32, 24), isColor=False
    )
    for _ in range(3):
        writer.write(np.full((24, 32), 77, np.uint8))
    writer.release()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZeroHeatmapWarning)
        result = xcam.explain_video(model, tmp_path / "grey.avi")
    assert result.size == (24, 32)
    assert {e.image.min() for e in result.explanations()} == {e.image.max() for e in result.explanations()} == {77}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": ["cat", "dog"]}, "several classes for one clip"),
        ({"target": "top2"}, "several classes for one clip"),
        ({"smooth": -1}, "cannot use smooth=-1; give seconds"),
        ({"scale": "clips"}, "unknown scale 'clips'"),
        ({"every": 0}, "cannot use every=0"),
        ({"start": 3, "end": 2}, "would end at second 2 and start at 3"),
    ],
)
def test_options_that_cannot_be_used(model: FakeModel, clip: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        xcam.explain_video(model, clip, **options)  # type: ignore[arg-type]


def test_frames_without_the_target_have_an_empty_map(
    model: FakeModel, clip: Path, images: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A detector has no such box on some frames; the others are explained as they are alone."""
    plain = xcam.explain

    def detecting(model: FakeModel, frames: list[np.ndarray], **options: object) -> list[xcam.Explanation]:
        if any(frame[10:20, :, 1].max() > 200 for frame in frames):
            raise AbsentError("no box has the class 'cat'; give another")
        return plain(model, frames, **options)  # type: ignore[call-overload]

    monkeypatch.setattr("xcam.explanation.video.explain", detecting)
    expected = [bool(image[10:20, :, 1].max() > 200) for image in images]
    assert 0 < sum(expected) < 12
    result = xcam.explain_video(model, clip, target="cat", batch=5)
    assert [not e.label for e in result.frames] == expected
    assert [row["class"] for row in result.to_dict()["frames"]] == [None if absent else "cat" for absent in expected]
    assert (result.empty, result.classes) == (sum(expected), {"cat": 12 - sum(expected)})
    for e, absent, image in zip(result.frames, expected, images, strict=True):
        np.testing.assert_array_equal(e.cam, 0 if absent else plain(model, image, target="cat").cam)
    result.save(tmp_path / "out.avi")
    monkeypatch.setattr("xcam.explanation.video.explain", lambda *_, **__: detecting(model, [images[-1]]))
    with pytest.raises(InputError, match=r"on no frame of .*clip\.avi: no box has the class 'cat'; give another"):
        xcam.explain_video(model, clip, target="cat")
