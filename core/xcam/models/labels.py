"""Class labels: from a list, from a file, or the 1000 classes of ImageNet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from xcam.contract import files
from xcam.errors import InputError


@cache
def imagenet() -> tuple[str, ...]:
    """Return the 1000 labels of ILSVRC 2012 in the order of the model zoos (0 tench … 999 toilet tissue)."""
    text = resources.files("xcam.models").joinpath("data/imagenet.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def load(value: str | Path | Sequence[str] | np.ndarray[Any, Any] | None) -> Sequence[str] | None:
    """Return class labels, in the order of the model's outputs. One label is that of class 1 of two: see `pair`.

    Args:
        value: A sequence of labels, also a NumPy array; `imagenet`; a text file with one label on each line; a JSON file
            with a list, or with an object {"0": label, …} or {"0": [WordNet id, label], …}. None gives None.

    Returns:
        The labels, or None.

    Raises:
        InputError: The file cannot be read, or contains no labels.
    """
    if value is None:
        return None
    if isinstance(value, str) and value == "imagenet":
        return imagenet()
    labels = _read(Path(value)) if isinstance(value, str | Path) else list(value)
    if not labels or not all(isinstance(label, str) for label in labels):
        where = f" in {value}" if isinstance(value, str | Path) else ""
        raise InputError(
            f"no class labels{where}; give a list of strings, or a text file with one label on each line"
        )
    return pair([str(label) for label in labels])  # NumPy's strings become Python's


def pair(labels: Sequence[str]) -> Sequence[str]:
    """Return the labels of both classes where there is one label, that of class 1: `tumour` → `not tumour`, `tumour`."""
    return [f"not {labels[0]}", labels[0]] if len(labels) == 1 else labels


def _read(path: Path) -> list[str]:
    """Return the labels in a text or JSON file."""
    try:
        files.check_file(path, "a text file")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(
            f"cannot read labels from {path}: {reason}; give a text file with one label on each line"
        ) from error
    if path.suffix.lower() != ".json":
        return [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []
    try:
        labels = json.loads(text)
        if isinstance(labels, dict):
            labels = [labels[str(i)] for i in range(len(labels))]
        if not isinstance(labels, list):
            raise TypeError(f"it contains a {type(labels).__name__}")
        return [str(label[-1] if isinstance(label, list) else label) for label in labels]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise InputError(
            f'cannot read labels from {path}: not a list of labels; give a JSON list, or an object {{"0": label, …}}'
        ) from error
