"""`explain_video`: the explanations of a clip's frames, on one colour scale."""

from __future__ import annotations

import io
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from xcam import progress
from xcam.contract import Model, files, validation
from xcam.errors import AbsentError, InputError, ZeroHeatmapWarning, keywords_checked, nearest, warn
from xcam.explanation.explain import LayerChoice, explain
from xcam.explanation.fusion import Fusion
from xcam.explanation.requests import Aim
from xcam.explanation.result import Explanation
from xcam.explanation.settings import BATCH
from xcam.images import video
from xcam.images.montage import labelled
from xcam.images.overlay import Blend, Style, check_drawing
from xcam.images.reading import Image
from xcam.methods.maps import Normalize
from xcam.methods.registry import option_names
from xcam.models.load import load, with_output
from xcam.report import formatting
from xcam.targets import Score, several

Scale = Literal["clip", "frame"]
SAMPLES = 16
"""Frames on which the class of a clip is chosen."""
KEPT = 4096
"""Outputs of a frame are kept up to this number of values."""
BLANK = np.zeros((2, 2, 3), np.uint8)


@dataclass(frozen=True, eq=False)
class VideoExplanation:
    """The explanations of a clip's frames. The frames themselves are read again where they are needed."""

    path: Path
    """The clip."""
    frames: Sequence[Explanation] = field(repr=False)
    """The explanation of each frame, in order, without its image; `cam` is as computed, before smoothing."""
    times: npt.NDArray[np.float64] = field(repr=False)
    """[F]: the time of each frame in seconds from the first."""
    rate: float
    """Frames per second."""
    size: tuple[int, int]
    """Height and width of the clip in pixels."""
    every: int
    start: float
    smooth: float
    """Seconds over which the maps are averaged."""
    scale: Scale
    """Whether the frames share one colour scale (`clip`)."""
    notes: tuple[str, ...] = ()
    """Facts that a viewer must know: frames that could not be read."""

    @property
    def cams(self) -> list[npt.NDArray[np.float32]]:
        """The raw map of each frame, averaged over `smooth` seconds."""
        cams = [frame.cam for frame in self.frames]
        if not self.smooth > 0 or len({cam.shape for cam in cams}) > 1:
            return cams
        half = self.smooth / 2 + 1e-6
        first = np.searchsorted(self.times, self.times - half)
        last = np.searchsorted(self.times, self.times + half, side="right")
        return [np.mean(cams[i:j], axis=0, dtype=np.float32) for i, j in zip(first, last, strict=True)]

    def explanations(self) -> Iterator[Explanation]:
        """Read the clip again, and yield the explanation of each frame with its image, its smoothed map and the scale.

        Raises:
            InputError: The file does not exist any more.
        """
        cams = self.cams
        extent = None
        if self.scale == "clip":
            extent = min(float(cam.min()) for cam in cams), max(float(cam.max()) for cam in cams)
        images = _selected(video.open_clip(self.path), self.every, self.start, None)
        for frame, cam, (_, image) in zip(self.frames, cams, images, strict=False):
            yield replace(frame, image=image, cam=cam, extent=extent)

    @property
    def empty(self) -> int:
        """The number of frames whose map is zero everywhere: nothing in them is evidence for the class."""
        return sum(not frame.cam.max() > 0 for frame in self.frames)

    @property
    def classes(self) -> dict[str, int]:
        """The number of frames on which each class was explained, the most frequent first."""
        return dict(Counter(frame.label for frame in self.frames if frame.label).most_common())

    def to_dict(self) -> dict[str, Any]:
        """Return the facts of the clip and of each frame, for JSON."""
        first = self.frames[0]
        return {
            "video": str(self.path),
            "frames_per_second": self.rate,
            "size": list(self.size),
            "classes": self.classes,
            "layer": first.layer,
            "method": first.method,
            "model": first.model,
            "backend": first.backend,
            "smooth": self.smooth,
            "scale": self.scale,
            "notes": [*self.notes, *first.notes],
            "frames": [
                {
                    "time": float(time),
                    "class": frame.label or None,
                    "index": frame.index,
                    "score": frame.score,
                    "probability": _probability(frame),
                    "cam_max": float(frame.cam.max()),
                    "boxes": [
                        {"class": box.label, "index": box.index, "score": box.score, "box": list(box.box)}
                        | {"explained": box.explained}
                        for box in frame.boxes
                    ],
                }
                for time, frame in zip(self.times, self.frames, strict=True)
            ],
        }

    @keywords_checked()
    def save(
        self,
        path: str | os.PathLike[str],
        alpha: float = 0.5,
        colormap: str = "jet",
        blend: Blend = "mix",
        style: Style = "heat",
        label: bool = True,
    ) -> None:
        """Write the clip with the heatmaps over its frames, or its maps as arrays (.npz). Sound is not copied.

        The file is written completely or not at all.

        Args:
            path: .mp4, .m4v, .mov, .mkv, .avi, .webm, .gif, .webp or .npz.
            alpha: The opacity of the heatmap, 0…1.
            colormap: An OpenCV colormap.
            blend: `mix` or `add`.
            style: `heat`, `contour` or `signed`.
            label: Whether class and score are written on each frame.

        Raises:
            InputError: The file cannot be written, or an argument cannot be used.
        """
        check_drawing(style, alpha, colormap, blend)
        if Path(path).suffix.lower() == ".npz":
            files.write_whole(path, self._npz())
            return
        if os.path.realpath(path) == os.path.realpath(self.path):
            raise InputError(f"{path} is the clip itself and would be overwritten; choose another path")
        last = self.times[-1] + self.every / self.rate
        ends = [*self.times[1:], last]
        with video.writing(path, self.rate / self.every, len(self.frames)) as write:
            explanations = zip(self.explanations(), ends, strict=False)
            for e, end in progress.counted(explanations, "frames written", len(self.frames)):
                drawn = e.overlay(alpha, colormap, blend, style)
                is_labelled = label and e.label and not e.boxes  # a box has a label of its own
                write(labelled(drawn, e.caption) if is_labelled else drawn, float(end))

    def _npz(self) -> bytes:
        first, buffer = self.frames[0], io.BytesIO()
        np.savez_compressed(
            buffer,
            cams=np.stack(self.cams),
            times=self.times,
            index=[-1 if frame.index is None else frame.index for frame in self.frames],
            label=[frame.label for frame in self.frames],
            score=[frame.score for frame in self.frames],
            layer=first.layer,
            method=first.method,
            backend=first.backend,
            model=first.model,
        )
        return buffer.getvalue()


def _probability(e: Explanation) -> float | None:
    if e.index is None or e.scores.ndim != 1 or e.index >= len(e.scores):
        return None
    return float(e.scores[e.index])


@keywords_checked(option_names)
def explain_video(
    model: Any,
    path: str | os.PathLike[str],
    *,
    layer: LayerChoice = None,
    target: Aim = None,
    method: str = "gradcam",
    method_options: Mapping[str, Any] | None = None,
    score: Score = "logit",
    normalize: Normalize = "max",
    augment: bool = False,
    fuse: Fusion | None = None,
    batch: int = BATCH,
    output: str | None = None,
    smooth: float = 0,
    scale: Scale = "clip",
    every: int = 1,
    start: float = 0,
    end: float | None = None,
) -> VideoExplanation:
    """Explain where the model looked on each frame of a clip.

    The frames are read and explained in batches; only their raw maps and scores stay in memory.

    Args:
        model: The result of `load`, or anything that `load` takes.
        path: A video (MP4, MOV, AVI, MKV, WebM, …), or an animated GIF or WebP.
        layer: As for `explain`.
        target: One target, as for `explain`. None: the class with the highest mean probability over 16 frames of the
            clip (for a detector, that of the class's best box), for all frames alike. `top1`: the top class of each
            frame, or its best box. Boxes and regions are those of each frame; frames without one have an empty map.
        method: A name from `xcam.list_methods()`.
        method_options: The method's own options, by name.
        score: As for `explain`.
        normalize: `max`, `minmax` or `none`.
        augment: As for `explain`.
        fuse: As for `explain`.
        batch: The number of frames in one forward pass, at least 1.
        output: As for `explain`.
        smooth: Seconds over which the raw maps are averaged, half of them before each frame and half behind it.
        scale: `clip`: the strongest value of the whole clip is 1; `frame`: the strongest of each frame is.
        every: Explain every n-th frame only; the others are left out, and the speed stays.
        start: Seconds of the clip that are left out at its beginning.
        end: The second of the clip at which it ends; None: its own end.

    Returns:
        A VideoExplanation; `save` writes it.

    Raises:
        InputError: The clip, the layer, the target or an option cannot be used; no frame has the target.
        ModelError: The model cannot be read, fails, or gives NaN or infinity.
        BackendError: The backend is missing or lacks a capability that the method needs.

    Warns:
        ZeroHeatmapWarning: The heatmaps of all frames are zero everywhere.
        XcamWarning: Some frames could not be read.
    """
    check_options(smooth, scale, every, start, end)
    clip = video.open_clip(path)
    if not validation.is_model(model):
        model = load(model)
    if output is not None:
        model = with_output(model, output)
    if isinstance(target, list | tuple) or len(several(target, model.labels) or [0]) > 1:
        raise InputError("several classes for one clip; give one, and explain the clip again for the others")
    options: dict[str, Any] = {
        "layer": layer,
        "method": method,
        "method_options": method_options,
        "score": score,
        "normalize": normalize,
        "augment": augment,
        "fuse": fuse,
        "batch": batch,
    }
    run = _Run(model, options)
    count = _expected(clip, every, start, end)
    if target is None:
        target = run.top_class(_selected(clip, every * max(1, -(-count // SAMPLES)), start, end))
    times: list[float] = []
    frames: list[Explanation | None] = []
    size = (0, 0)
    selected = progress.counted(_selected(clip, every, start, end), "frames", count)
    while part := list(islice(selected, batch)):
        size = (part[0][1].shape[0], part[0][1].shape[1])
        times += [time for time, _ in part]
        frames += [e and _light(e, clip.path) for e in run([image for _, image in part], target)]
    if not frames:
        raise InputError(f"{clip.path} has no frame from second {start:g} on; give an earlier start, or a later end")
    known = next((frame for frame in frames if frame is not None), None)
    if known is None:
        assert run.absent is not None
        raise InputError(f"on no frame of {clip.path}: {run.absent}") from run.absent
    nothing = _nothing(known)
    run.warn_of_zeros(len(frames))
    notes = _notes(clip, len(frames), every, start, end)
    for note in notes:
        warn(f"{clip.path}: {note}")
    return VideoExplanation(
        clip.path,
        [frame or nothing for frame in frames],
        np.array(times) - times[0],
        clip.rate,
        size,
        every,
        start,
        smooth,
        scale,
        notes,
    )


def check_options(smooth: float, scale: str, every: int, start: float, end: float | None) -> None:
    """Raise InputError for an option of `explain_video` that cannot be used."""
    if scale not in get_args(Scale):
        raise InputError(f"unknown scale {scale!r}; {nearest(str(scale), get_args(Scale))}")
    for name, value in (("smooth", smooth), ("start", start)):
        if not 0 <= value < float("inf"):
            raise InputError(f"cannot use {name}={value}; give seconds, at least 0")
    if every != int(every) or every < 1:
        raise InputError(f"cannot use every={every}; give a positive integer")
    if end is not None and not end > start:
        raise InputError(f"the clip would end at second {end:g} and start at {start:g}; give an end after the start")


class _Run:
    """The explanations of one clip's frames; warnings of zero maps are counted, others are issued once."""

    def __init__(self, model: Model, options: Mapping[str, Any]) -> None:
        self.model, self.options = model, options
        self.zeros: list[str] = []
        self.issued: set[str] = set()
        self.absent: AbsentError | None = None
        """The error of a frame without the target."""

    def __call__(self, images: list[Image], target: Aim) -> list[Explanation | None]:
        """Return the explanation of each frame; None where a detector or segmentation has no such box or region."""
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                rows = explain(self.model, images, target=target, **self.options)
        except AbsentError as error:
            self.absent = error
            return [None] if len(images) == 1 else [e for image in images for e in self([image], target)]
        for warning in caught:
            text = str(warning.message)
            if issubclass(warning.category, ZeroHeatmapWarning):
                self.zeros.append(text)
            elif text not in self.issued:
                self.issued.add(text)
                warn(text, warning.category)
        return [row[0] if isinstance(row, list) else row for row in rows]

    def top_class(self, images: Iterator[tuple[float, Image]]) -> int | None:
        """Return the class with the highest mean probability; None where the model has no class scores."""
        total: Any = 0
        while part := [image for _, image in islice(images, self.options["batch"])]:
            for e in self(part, None):
                if e is not None and _probability(e) is None:
                    return None
                total = total + (0 if e is None else e.scores)
        self.zeros.clear()
        return int(np.argmax(total)) if np.ndim(total) else None

    def warn_of_zeros(self, count: int) -> None:
        """Warn where all maps are zero; on some frames of a clip, the class may be out of sight."""
        if len(self.zeros) == count:
            warn(f"on every frame: {self.zeros[0]}", ZeroHeatmapWarning)


def _selected(clip: video.Reader, every: int, start: float, end: float | None) -> Iterator[tuple[float, Image]]:
    """Yield every n-th frame of a part of the clip, with its time."""
    origin, k = None, 0
    for time, image in clip.frames():
        origin = time if origin is None else origin
        if end is not None and time - origin >= end:
            return
        if time - origin >= start:
            if k % every == 0:
                yield time, image
            k += 1


def _expected(clip: video.Reader, every: int, start: float, end: float | None) -> int:
    """Return how many frames will probably be explained; 0 where it is not known."""
    last = clip.count if end is None else min(end * clip.rate, clip.count or end * clip.rate)
    return max(0, -(-int(last - start * clip.rate) // every))


def _notes(clip: video.Reader, count: int, every: int, start: float, end: float | None) -> tuple[str, ...]:
    """Return the notes on frames that could not be read; only a clip that was read completely is checked."""
    if start or end is not None:
        return ()
    if clip.is_cut():
        return ("the file is cut off; its last frames are missing",)
    missing = clip.missing(count) if every == 1 else 0
    if not missing:
        return ()
    return (f"{missing} of {formatting.count(clip.count, 'frame')} could not be read (damaged, or cut off)",)


def _nothing(e: Explanation) -> Explanation:
    """Return the explanation of a frame without the target: its map is zero, and its label is empty."""
    empty = np.zeros(0, np.float32)
    return replace(
        e,
        cam=np.zeros_like(e.cam),
        outputs=empty,
        scores=empty,
        index=None,
        label="",
        score=0.0,
        boxes=(),
        region=None,
    )


def _light(e: Explanation, path: Path) -> Explanation:
    """Return an explanation without its image, and without outputs that are large."""
    empty = np.zeros(0, np.float32)
    return replace(
        e,
        image=BLANK,
        path=path,
        cam=np.array(e.cam, np.float32),
        outputs=empty if e.outputs.size > KEPT else e.outputs,
        scores=empty if e.scores.size > KEPT else e.scores,
    )
