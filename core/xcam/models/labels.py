"""Class names: from a list, from a file, or the thousand of ImageNet that every pretrained zoo shares."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

from xcam.contract import files
from xcam.errors import InputError


@cache
def imagenet() -> tuple[str, ...]:
    """The 1000 classes of ILSVRC 2012, in the order of every zoo (0 tench … 292 tiger … 999 toilet tissue)."""
    text = resources.files("xcam.models").joinpath("data/imagenet.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def load(value: str | Path | Sequence[str] | None) -> Sequence[str] | None:
    """A list as it is, or a file: one name on each line; or JSON, a list or {"0": name} or {"0": [wnid, name]}.

    Raises InputError.
    """
    if value is None:
        return None
    if value == "imagenet":
        return imagenet()
    names = _read(Path(value)) if isinstance(value, str | Path) else list(value)
    if not names or not all(isinstance(name, str) for name in names):
        where = f" in {value}" if isinstance(value, str | Path) else ""
        raise InputError(f"no class names{where}; give a list of words, or a text file with one on each line")
    return names


def _read(path: Path) -> list[str]:
    try:
        files.check_file(path, "a text file")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(
            f"cannot read labels from {path}: {reason}; give a text file, a name on each line"
        ) from error
    if path.suffix.lower() != ".json":
        return [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []
    try:
        names = json.loads(text)
        if isinstance(names, dict):
            names = [names[str(i)] for i in range(len(names))]
        if not isinstance(names, list):
            raise TypeError(f"it holds a {type(names).__name__}")
        return [str(name[-1] if isinstance(name, list) else name) for name in names]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise InputError(
            f'{path} holds no labels: expected a JSON list of names, or an object {{"0": name, …}}'
        ) from error
