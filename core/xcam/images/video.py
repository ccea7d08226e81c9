"""Reading and writing of clips: videos, and animated GIF and WebP files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xcam.contract.files import check_file, whole_or_not
from xcam.errors import InputError
from xcam.images import opencv
from xcam.images.opencv import silenced
from xcam.images.reading import VIDEOS, Image

CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "XVID", ".webm": "VP80"}
"""The codec of each video format that is written. Every build of OpenCV has them; browsers play only WebM."""
ANIMATED = (".gif", ".webp")
"""Suffixes of files that may contain several frames."""
WRITABLE = (*CODECS, *ANIMATED)

QUIET = "OPENCV_FFMPEG_LOGLEVEL"
"""The environment variable with FFmpeg's level of messages; OpenCV reads it when it first opens a video."""
RATES = (0.1, 240.0)
"""Frames per second that are believed."""
DEFAULT_RATE = 25.0
FAILURES = 8
"""Frames in succession that cannot be decoded, after which the clip is at its end."""
LONGEST_GAP = 10.0
"""Seconds for which one frame is repeated at most."""
LARGEST_ANIMATION = 1 << 32
"""Bytes of all frames of an animation, which are in memory when it is written."""
GIF_DITHER = 3
"""OpenCV's option of a colour table for each frame."""


def is_clip(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a video, by its suffix, or an animation, a GIF or WebP file of several images."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in ANIMATED or not path.is_file():
        return suffix in VIDEOS
    cv2 = opencv.load()
    with silenced(cv2):
        count = cv2.imcount(str(path))
    return bool(count > 1 or (count == 0 and suffix == ".gif"))  # 0: damaged; FFmpeg may read the first frames


@dataclass(frozen=True)
class Reader:
    """A clip that can be read; `frames` decodes it, once for each call."""

    path: Path
    rate: float
    """Frames per second."""
    count: int
    """The number of frames that the file states; 0 where it states none."""
    is_exact: bool
    """Whether `count` is exact, and not derived from the duration."""

    def frames(self) -> Iterator[tuple[float, Image]]:
        """Yield the time in seconds and the image, RGB uint8 [H, W, 3], upright, of each frame that can be decoded."""
        return self._animation() if self.path.suffix.lower() == ".webp" else self._video()

    def missing(self, count: int) -> int:
        """Return how many frames could not be read, when `count` could be."""
        tolerance = 0 if self.is_exact else 1 + self.count // 100
        return self.count - count if self.count - count > tolerance else 0

    def is_cut(self) -> bool:
        """Return whether the file lacks its end, where the format shows it."""
        if self.path.suffix.lower() != ".gif":
            return False
        with open(self.path, "rb") as file:
            file.seek(-min(16, self.path.stat().st_size), os.SEEK_END)
            return b";" not in file.read()

    def _video(self) -> Iterator[tuple[float, Image]]:
        cv2 = opencv.load()
        capture = _capture(cv2, self.path)
        time, failures = -1 / self.rate, 0
        try:
            while failures < FAILURES:
                with silenced(cv2):
                    success, frame = capture.read()
                    stated = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                failures = 0 if success else failures + 1
                if success:
                    # Some files have no times, or not for every frame.
                    time = stated if stated > time and np.isfinite(stated) else time + 1 / self.rate
                    yield time, np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
        finally:
            capture.release()

    def _animation(self) -> Iterator[tuple[float, Image]]:
        cv2 = opencv.load()
        time = 0.0
        for frame, duration in zip(*_animation(cv2, self.path), strict=True):
            yield time, np.ascontiguousarray(frame[..., 2::-1])  # OpenCV has blended transparent pixels
            time += duration / 1000


def open_clip(path: str | os.PathLike[str]) -> Reader:
    """Return a reader for a clip.

    Raises:
        InputError: The file does not exist, or cannot be decoded.
    """
    cv2 = opencv.load()
    path = Path(path)
    check_file(path, "a video")
    if path.suffix.lower() == ".webp":
        frames, durations = _animation(cv2, path)
        return Reader(path, _rate(1000 * len(frames) / max(float(np.sum(durations)), 1.0)), len(frames), True)
    capture = _capture(cv2, path)
    rate, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    capture.release()
    # WebM and Matroska state a duration only.
    is_exact = path.suffix.lower() in (".mp4", ".m4v", ".mov", ".avi", ".gif")
    return Reader(path, _rate(rate), int(count) if 0 < count < 1e9 else 0, is_exact)


def _rate(value: float) -> float:
    """Return frames per second as OpenCV can write them, the default where a file states nonsense."""
    return round(value, 2) if RATES[0] <= value <= RATES[1] else DEFAULT_RATE


def _unreadable(path: Path) -> InputError:
    return InputError(
        f"cannot read {path}: empty, truncated, or not a video; give an MP4, MOV, AVI, MKV or WebM file, or an animated "
        "GIF or WebP"
    )


@contextlib.contextmanager
def _quiet(cv2: Any) -> Iterator[None]:
    """Silence OpenCV and FFmpeg, unless the user has set FFmpeg's level."""
    is_set = QUIET in os.environ
    os.environ.setdefault(QUIET, "-8")
    try:
        with silenced(cv2):
            yield
    finally:
        if not is_set:
            os.environ.pop(QUIET, None)


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Discard the process's standard error: OpenCV prints a remark on WebM's codec directly to it."""
    try:
        original = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    try:
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), 2)
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)


def _capture(cv2: Any, path: Path) -> Any:
    with _quiet(cv2):
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise _unreadable(path)
    return capture


def _animation(cv2: Any, path: Path) -> tuple[list[Any], Any]:
    """Return the frames of an animation, and their durations in milliseconds. Raises InputError."""
    with silenced(cv2):
        success, animation = cv2.imreadanimation(str(path))
    if not success:
        raise _unreadable(path)
    return list(animation.frames), animation.durations


Write = Callable[[Image, float], None]
"""Adds one frame to a clip: its image, and the time in seconds from the clip's start at which it ends."""


def check_output(path: str | os.PathLike[str]) -> Path:
    """Return the path of a clip that can be written. Raises InputError."""
    path = Path(path)
    if path.suffix.lower() not in WRITABLE:
        raise InputError(f"cannot write {path}: unknown video format {path.suffix!r}; use .mp4, .webm, .avi or .gif")
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a directory; give a file name in it")
    return path


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], rate: float, count: int) -> Iterator[Write]:
    """Write a clip, completely or not at all.

    A video has a constant rate: a frame is repeated for as long as it lasts. The frames of an animation have their own
    durations, rounded to 10 ms; those that would last less than 20 ms, which browsers do not show, are left out.
    Videos need even sides: where a side is odd, its last row or column is repeated.

    Args:
        path: The file; its suffix, one of WRITABLE, determines the format.
        rate: Frames per second.
        count: The number of frames that will be written, to check the memory that an animation needs.

    Yields:
        The function that adds a frame. All frames have the size of the first.

    Raises:
        InputError: The format is unknown, an animation is too large, or the file cannot be written.
    """
    path = check_output(path)
    with whole_or_not(Path(os.path.realpath(path))) as temporary:
        if path.suffix.lower() in ANIMATED:
            animation = _Animation(path, count)
            yield animation.add
            animation.save(temporary)
        else:
            video = _Video(path, temporary, rate)
            try:
                yield video.add
            finally:
                video.close()
            video.check()


class _Video:
    """A video of constant rate, which is written frame by frame."""

    def __init__(self, path: Path, temporary: Path, rate: float) -> None:
        self.cv2 = opencv.load()
        self.path, self.temporary, self.rate = path, temporary, rate
        self.writer: Any = None
        self.count = 0

    def add(self, image: Image, end: float) -> None:
        if self.writer is None:
            self.writer = self._writer(image)
        odd = image.shape[0] % 2, image.shape[1] % 2
        if any(odd):
            image = np.pad(image, ((0, odd[0]), (0, odd[1]), (0, 0)), mode="edge")
        frame = self.cv2.cvtColor(image, self.cv2.COLOR_RGB2BGR)
        repeats = min(max(round(end * self.rate) - self.count, 1), round(LONGEST_GAP * self.rate) or 1)
        for _ in range(repeats):
            self.writer.write(frame)
        self.count += repeats

    def _writer(self, image: Image) -> Any:
        codec = self.cv2.VideoWriter_fourcc(*CODECS[self.path.suffix.lower()])
        size = tuple(side + side % 2 for side in image.shape[1::-1])
        with _quiet(self.cv2), _muted():
            writer = self.cv2.VideoWriter(str(self.temporary), self.cv2.CAP_FFMPEG, codec, self.rate, size)
        if not writer.isOpened():
            raise self._unwritable(
                f"OpenCV cannot encode {size[0]}×{size[1]} pixels at {self.rate:g} frames per second"
            )
        return writer

    def _unwritable(self, reason: str) -> InputError:
        return InputError(f"cannot write {self.path}: {reason}; choose another format: .webm, .avi or .gif")

    def close(self) -> None:
        if self.writer is not None:
            self.writer.release()

    def check(self) -> None:
        """Raise InputError where the file has fewer frames than were added: OpenCV reports no failed write."""
        if self.writer is None:
            return
        try:
            reader = open_clip(self.temporary)
        except InputError as error:
            raise self._unwritable("the encoder failed, or the disk is full") from error
        if self.count - reader.count > (0 if reader.is_exact else 1 + self.count // 100):
            raise self._unwritable(f"only {reader.count} of {self.count} frames could be written (is the disk full?)")


class _Animation:
    """An animation, whose frames are in memory until all are known."""

    def __init__(self, path: Path, count: int) -> None:
        self.cv2 = opencv.load()
        self.path, self.count = path, count
        self.frames: list[Any] = []
        self.ends: list[int] = []
        """The end of each frame in hundredths of a second."""

    def add(self, image: Image, end: float) -> None:
        needed = image.nbytes * self.count
        if needed > LARGEST_ANIMATION:
            raise InputError(
                f"cannot write {self.path}: {self.count} frames of {image.shape[1]}×{image.shape[0]} pixels need "
                f"{needed / 1e9:.1f} GB of memory; write an .mp4, or a part of the clip"
            )
        last = self.ends[-1] if self.ends else 0
        if self.frames and round(100 * end) - last < 2:
            return
        self.frames.append(self.cv2.cvtColor(image, self.cv2.COLOR_RGB2BGR))
        self.ends.append(max(round(100 * end), last + 2))

    def save(self, temporary: Path) -> None:
        if not self.frames:
            return
        animation = self.cv2.Animation()
        animation.frames = self.frames
        animation.durations = (10 * np.diff([0, *self.ends])).astype(np.int32)
        animation.loop_count = 0
        options = [self.cv2.IMWRITE_GIF_DITHER, GIF_DITHER] if self.path.suffix.lower() == ".gif" else []
        with silenced(self.cv2):
            success = self.cv2.imwriteanimation(str(temporary), animation, options)
        if not success:
            raise InputError(f"cannot write {self.path}: the encoder failed, or the disk is full; write an .mp4")
