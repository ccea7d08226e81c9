"""Clips among the images of `xcam explain`: videos, and animated GIF and WebP files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from xcam_cli.options import collected_warnings, print_warnings, stdout_to_stderr
from xcam_cli.plan import Plan
from xcam_cli.progress_bar import ProgressBar

if TYPE_CHECKING:
    from xcam.explanation.video import VideoExplanation

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = {
    "smooth": click.option(
        "--smooth", type=click.FloatRange(0), metavar="SECONDS", help="Video: average the maps over this time."
    ),
    "scale": click.option(
        "--scale",
        type=click.Choice(["clip", "frame"]),
        help="Video: one colour scale for the clip, or for each frame.  [default: clip]",
    ),
    "every": click.option(
        "--every",
        type=click.IntRange(1),
        metavar="N",
        help="Video: explain every N-th frame, and leave out the others.",
    ),
    "start": click.option("--start", type=click.FloatRange(0), metavar="SECOND", help="Video: start here."),
    "end": click.option("--end", type=click.FloatRange(0), metavar="SECOND", help="Video: end here."),
}


def video_options(command: F) -> F:
    """Add the options that apply to clips only."""
    for option in reversed(_OPTIONS.values()):
        command = option(command)
    return command


def split_options(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the options of clips from `options`, and return those that are given."""
    values = {name: options.pop(name) for name in _OPTIONS}
    return {name: value for name, value in values.items() if value is not None}


def split_clips(
    images: tuple[str, ...], video_settings: dict[str, Any], report: str | None
) -> tuple[list[str], list[str]]:
    """Return the still images, and the clips.

    Raises:
        InputError: an option of clips is values without one, or a page is requested for one.
    """
    from xcam.errors import InputError
    from xcam.images.video import is_clip

    clips = [image for image in images if is_clip(image)]
    if video_settings and not clips:
        raise InputError(f"--{next(iter(video_settings))} applies to videos, and none is given; leave it out")
    if report and clips:
        raise InputError(f"--report is a page of images, and {clips[0]} is a video; leave --report out")
    return [image for image in images if image not in clips], clips


def clip_paths(clips: list[str], images: list[str], plan: Plan, output: str | None) -> list[Path]:
    """Return the output path of each clip, after checking it.

    Raises:
        InputError: a clip is missing, a path cannot be written, or several maps of each frame are requested.
    """
    from xcam.contract.files import check_file
    from xcam.errors import InputError
    from xcam.images import video

    for clip in clips:
        check_file(Path(clip), "a video")
    if clips and (len(plan.methods) > 1 or "all" in plan.methods or len(plan.layer_groups) > 1):
        raise InputError(
            "a video has one map on each frame; give one method and one layer, or fuse the layers: --fuse"
        )
    if clips and len(plan.targets) > 1:
        raise InputError(
            "a video has one map on each frame; give one class, and run the command again for the others"
        )
    folder = Path(output) if output and (os.path.isdir(output) or output.endswith("/")) else None
    if clips and output and folder is None:
        if len(clips) + len(images) > 1:
            raise InputError(
                f"{len(clips) + len(images)} files cannot all be written to {output}; give -o a folder that exists"
            )
        return [_checked(Path(output), clips[0])]
    paths = []
    for source in map(Path, clips):
        suffix = source.suffix.lower() if source.suffix.lower() in video.WRITABLE else ".mp4"
        paths.append(_checked((folder or source.parent) / f"{source.stem}.cam{suffix}", str(source)))
    if len(set(paths)) < len(paths):
        raise InputError(
            "two videos would be written to the same file; explain them separately, each with its own -o"
        )
    return paths


def _checked(path: Path, clip: str) -> Path:
    from xcam.errors import InputError
    from xcam.images import video

    if path.suffix.lower() != ".npz":
        video.check_output(path)
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: folder {path.parent} does not exist; create it, or choose another -o")
    if os.path.realpath(path) == os.path.realpath(clip):
        raise InputError(f"{path} is the video to explain and would be overwritten; choose another -o")
    return path


def run(
    model: Any,
    clips: list[str],
    plan: Plan,
    paths: list[Path],
    video_settings: dict[str, Any],
    documents: list[dict[str, Any]],
) -> None:
    """Explain the clips, save and print; the summary of each is added to `documents`."""
    import xcam
    from xcam import progress

    options: dict[str, Any] = {**plan.options, "fuse": plan.fuse, **video_settings}
    for clip, path in zip(clips, paths, strict=True):
        with ProgressBar() as bar, progress.listening(bar.update):
            with collected_warnings() as texts, stdout_to_stderr():
                result = xcam.explain_video(
                    model,
                    clip,
                    layer=plan.layer_groups[0],
                    target=plan.targets[0] if plan.targets else None,
                    method=plan.methods[0],
                    **options,
                )
                result.save(path, **plan.drawing)
            bar.hide()
            print_warnings(texts)
        documents.append(result.to_dict() | {"output": str(path)})
        if not plan.as_json:
            _print(result, path)


def _print(result: VideoExplanation, path: Path) -> None:
    """Print the summary of one clip."""
    from xcam.report import formatting

    first = result.frames[0]
    height, width = result.size
    click.echo(
        f"{result.path}: {formatting.count(len(result.frames), 'frame')} of {width}×{height}, "
        f"{result.rate / result.every:g} per second"
    )
    for name, count in list(result.classes.items())[:3]:
        frames = [k for k, frame in enumerate(result.frames) if frame.label == name]
        best = max(frames, key=lambda k: result.frames[k].score)
        click.echo(
            f"  → {name} on {formatting.count(count, 'frame')}; most at {result.times[best]:.2f} s: "
            f"{result.frames[best].caption}"
        )
    if result.empty:
        click.echo(f"  no evidence for the class on {formatting.count(result.empty, 'frame')}")
    for note in (*result.notes, *first.notes):
        click.echo(f"  note: {note}")
    click.echo(f"  {first.method} of {first.model} ({first.backend}) at {first.layer}")
    click.echo(f"  wrote {path} (without sound)")
