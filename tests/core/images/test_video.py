"""Clips: videos and animations, written and read."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xcam import InputError
from xcam.images import video

RATE = 10.0


def frame(k: int, height: int = 49, width: int = 64) -> np.ndarray:
    """Return an image whose green grows to the right and whose red is the frame's number."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = 20 * (k % 12)
    image[..., 1] = np.linspace(0, 250, width)
    return image


def write(path: Path, count: int = 8, rate: float = RATE) -> Path:
    with video.writing(path, rate, count) as add:
        for k in range(count):
            add(frame(k), (k + 1) / rate)
    return path


def read(path: Path) -> tuple[list[float], list[np.ndarray]]:
    times, images = zip(*video.open_clip(path).frames(), strict=True)
    return list(times), list(images)


@pytest.mark.parametrize("suffix", video.WRITABLE)
def test_frames_times_and_colours_are_read_as_they_were_written(
    suffix: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / f"clip{suffix}")
    assert video.is_clip(path)
    assert video.open_clip(path).rate == RATE
    times, images = read(path)
    np.testing.assert_allclose(times, np.arange(8) / RATE, atol=1e-3)
    for k, image in enumerate(images):
        assert image.shape[1::-1] == (64, 49 if suffix in video.ANIMATED else 50)
        assert np.abs(image[:49].astype(int) - frame(k)).mean() < (14 if suffix == ".gif" else 6)
        assert np.abs(image[-1].astype(int) - frame(k)[-1]).mean() < 20, "the last row is repeated"
    assert sorted(tmp_path.iterdir()) == [path]
    assert capfd.readouterr() == ("", "")
    assert video.QUIET not in os.environ


def test_a_frame_is_repeated_in_a_video_for_as_long_as_it_lasts(tmp_path: Path) -> None:
    ends = [0.1, 0.5, 0.6]
    for suffix, expected in ((".avi", [0, 1, 1, 1, 1, 2]), (".gif", [0, 1, 2])):
        with video.writing(tmp_path / f"clip{suffix}", RATE, 3) as add:
            for k, end in enumerate(ends):
                add(frame(5 * k), end)
        times, images = read(tmp_path / f"clip{suffix}")
        assert [round(float(image[..., 0].mean()) / 100) for image in images] == expected
    np.testing.assert_allclose(times, [0, 0.1, 0.5], atol=1e-3)


def test_frames_that_browsers_would_not_show_are_left_out_of_an_animation(tmp_path: Path) -> None:
    times, images = read(write(tmp_path / "fast.gif", 12, rate=100))
    np.testing.assert_allclose(np.diff(times), 0.02, atol=1e-3)
    assert len(images) == 6


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_clip_is_written_completely_or_not_at_all(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(b"old")

    def failing() -> None:
        with video.writing(path, RATE, 8) as add:
            add(frame(0), 0.1)
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        failing()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match="existing folder"):
        write(tmp_path / "absent" / path.name)


def test_an_animation_that_does_not_fit_in_memory_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"1000000 frames of 64×49 pixels need 9\.4 GB of memory; write an \.mp4"),
        video.writing(tmp_path / "long.gif", RATE, 10**6) as add,
    ):
        add(frame(0), 0.1)


def test_a_turned_video_is_upright(tmp_path: Path) -> None:
    """Phones write the sensor's pixels and a matrix."""
    path = write(tmp_path / "clip.mp4")
    content = path.read_bytes()
    matrix = content.index(b"tkhd") + 44
    assert struct.unpack(">9i", content[matrix : matrix + 36]) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 50 << 16, 0, 1 << 30)
    path.write_bytes(content[:matrix] + turned + content[matrix + 36 :])
    _, images = read(path)
    assert images[0].shape == (64, 50, 3)
    assert images[0][-1, :, 1].mean() > 200 > 50 > images[0][0, :, 1].mean(), "green grows downwards"


def test_missing_frames_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "clip.avi"
    rng = np.random.default_rng(0)
    with video.writing(path, RATE, 30) as add:
        for k in range(30):
            add(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8), (k + 1) / RATE)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    reader = video.open_clip(path)
    count = sum(1 for _ in reader.frames())
    assert 10 < count < 30
    assert reader.missing(count) == 30 - count
    assert not reader.is_cut()
    path = write(tmp_path / "clip.gif", 10)
    assert not video.open_clip(path).is_cut()
    path.write_bytes(path.read_bytes()[:-500])
    assert video.is_clip(path)
    assert video.open_clip(path).is_cut()
    assert 4 < len(read(path)[0]) <= 10


@pytest.mark.parametrize("content", [b"", b"text" * 100, None], ids=["empty", "text", "truncated"])
@pytest.mark.parametrize("suffix", [".mp4", ".webp"])
def test_a_file_that_cannot_be_decoded_is_named(
    content: bytes | None, suffix: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / f"clip{suffix}")
    path.write_bytes(path.read_bytes()[:300] if content is None else content)
    with pytest.raises(InputError, match=f"clip{suffix}: empty, truncated, or not a video"):
        video.open_clip(path)
    assert capfd.readouterr() == ("", "")


def test_a_still_image_is_not_a_clip(tmp_path: Path) -> None:
    for suffix in video.ANIMATED:
        assert not video.is_clip(write(tmp_path / f"still{suffix}", 1))
        assert not video.is_clip(tmp_path / f"absent{suffix}")
    assert not video.is_clip("image.jpg")
    assert video.is_clip("absent.MP4")
    with pytest.raises(InputError, match=r"absent\.mp4: no such file"):
        video.open_clip("absent.mp4")
    with pytest.raises(InputError, match=r"unknown video format '\.jpg'; use \.mp4"):
        video.check_output("clip.jpg")


def test_transparent_pixels_of_a_gif_are_white(tmp_path: Path) -> None:
    clear = np.zeros((16, 16, 4), np.uint8)
    clear[:8] = (200, 0, 0, 255)
    first, second = Image.fromarray(clear), Image.fromarray(np.full_like(clear, 255))
    first.save(tmp_path / "clip.gif", save_all=True, append_images=[second], duration=100, disposal=2)
    _, images = read(tmp_path / "clip.gif")
    assert images[0][12, 8].tolist() == [255, 255, 255]
    assert images[0][2, 8].tolist() == [200, 0, 0]
