"""Images named on the command line: files, folders, patterns, and tables with annotations."""

from __future__ import annotations

import glob
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import click


def expand_images(names: list[str]) -> list[str]:
    """Expand folders and patterns to the image files in them; overlays of earlier runs are left out.

    Raises:
        InputError: no path is given, a folder or pattern has no images, or a path is on another machine.
    """
    from xcam.errors import InputError
    from xcam.images.writing import WRITABLE

    if not names:
        raise InputError("no image is given; name one or more files, a folder, or a pattern")
    paths: list[str] = []
    for name in names:
        _check_local(name)
        if os.path.isdir(name):
            files = sorted(str(p) for p in Path(name).iterdir() if p.suffix.lower() in WRITABLE)
            if not files:
                raise InputError(f"folder {name} has no images; give a folder with files in {', '.join(WRITABLE)}")
            paths += files
        elif not os.path.exists(name) and any(character in name for character in "*?["):
            files = sorted(glob.glob(name, recursive=True))
            if not files:
                raise InputError(f"no file matches {name}; check the pattern")
            paths += files
        else:
            paths.append(name)
    return without_overlays(list(dict.fromkeys(paths)))


def without_overlays(paths: list[str]) -> list[str]:
    """Return the images without the overlays that earlier runs drew of others among them; their number is printed."""
    from xcam.images.writing import left_out, overlays

    drawn = overlays(paths)
    if drawn:
        click.echo(f"xcam: {left_out(drawn)}", err=True)
    others = set(paths).difference(drawn)
    return [path for path in paths if path in others]


def _check_local(path: str) -> None:
    """Raise InputError for a path that only fsspec can read."""
    from xcam.dataset.storage import is_remote
    from xcam.errors import InputError

    if is_remote(path):
        raise InputError(
            f"{path} is not a local file; copy it to this machine (only `xcam batch` reads remote files)"
        )


@dataclass
class Annotation:
    """The object in one image: boxes in pixels [x0, y0, x1, y1], or a mask file, and a class label."""

    boxes: list[list[float]] = field(default_factory=list)
    mask: str | None = None
    label: str | None = None


def read_annotations(table: str) -> dict[str, Annotation]:
    """Read a CSV or Parquet table of annotations, by image path.

    The columns are path and x0, y0, x1, y1 (pixels) or mask (a file), and optionally class. An image with several rows
    has several boxes. Relative paths start at the table's folder.

    Raises:
        InputError: the table cannot be read, or has neither boxes nor masks.
    """
    from xcam.dataset.inputs import listing
    from xcam.errors import InputError, XcamWarning

    with warnings.catch_warnings(record=True) as hints:
        warnings.simplefilter("always", XcamWarning)
        rows = listing([table]).to_pylist()
    if not any(row["boxes"] or row["mask"] for row in rows):
        message = f"{table} has neither boxes nor masks; give it the columns x0, y0, x1, y1, or mask"
        raise InputError("; ".join([message, *(str(hint.message) for hint in hints)]))
    for row in rows:
        _check_local(row["path"])
        _check_local(row["mask"] or "")
    return {row["path"]: Annotation(row["boxes"] or [], row["mask"], row["class"]) for row in rows}
