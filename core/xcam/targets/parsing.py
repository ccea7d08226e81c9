"""Targets from text: an index, a label or a unique prefix of one, `top3`, `first-second`, `finer:label`, `label@region`."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np

from xcam.contract import Activation
from xcam.errors import InputError, nearest
from xcam.targets.classes import ClassScore, Finer, Score, difference
from xcam.targets.protocol import Target
from xcam.targets.regions import BoxScore, Located

TOP = re.compile(r"top-?(\d+)", re.IGNORECASE)
FINER = "finer"
BOX = re.compile(r"box:(\d+)", re.IGNORECASE)
MOST = 1000
"""The largest number of classes in `topN`, so that a mistyped number does not fill the memory."""


def several(value: object, labels: Sequence[str] | None = None) -> list[ClassScore] | None:
    """Return the targets that `topN` means, best class first.

    Args:
        value: A target as text, or any other value.
        labels: The model's class labels; a label such as `top3` is not several targets.

    Returns:
        N targets; None where the value is not `topN`.

    Raises:
        InputError: N is not in 1…1000.
    """
    match = TOP.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or _is_label(match[0], labels):
        return None
    if len(match[1]) > 9 or not 1 <= int(match[1]) <= MOST:
        raise InputError(f"cannot use {value!r} as a target; give top1 to top{MOST}")
    return [ClassScore(rank=rank) for rank in range(int(match[1]))]


def target(
    value: int | str | Target | None,
    score: Score = "logit",
    activation: Activation = None,
    labels: Sequence[str] | None = None,
) -> Target:
    """Return the target that a value means.

    Args:
        value: None for the top class; an index; a text; or a target.
        score: The number that is explained for a class.
        activation: The activation that was cut off the outputs, `Model.output_activation`.
        labels: The model's class labels.

    Raises:
        InputError: The value is not a target, or the class or score is unknown.
    """
    if score not in get_args(Score):
        raise InputError(f"unknown score {score!r}; {nearest(str(score), get_args(Score))}")
    if isinstance(value, str):
        value = _parsed(value, labels)
    if value is None or isinstance(value, int | np.integer):
        return ClassScore(None if value is None else int(value), score, activation)
    if isinstance(value, Located | BoxScore):
        return replace(value, score=score) if value.score == "logit" else value
    if isinstance(value, ClassScore):
        value = replace(value, activation=activation) if value.activation is None else value
        return replace(value, score=score) if value.score == "logit" else value
    if isinstance(value, Target) and not isinstance(value, type):
        if score != "logit" and not isinstance(value, ClassScore):
            name = getattr(value, "name", "") or type(value).__name__
            raise InputError(
                f"cannot use score={score!r} for {name}: it is not the target of one class; leave the score out"
            )
        return value
    raise InputError(
        f"cannot use {value!r} as a target; give a class index, a label, or an object with value() and cotangent()"
    )


def _parsed(text: str, labels: Sequence[str] | None) -> int | Target:
    """Return the class index or the target that a text means. Raises InputError."""
    head, colon, rest = text.partition(":")
    if head.strip().casefold() == FINER and not _is_label(text, labels):
        return Finer(class_index(rest, labels) if colon else None)
    if not _is_label(text, labels):
        if (match := BOX.fullmatch(text.strip())) is not None:
            return Located(box=int(match[1][:9]), name=text)
        if "@" in text:
            return _located(text, labels)
    try:
        return class_index(text, labels)
    except InputError as error:
        pairs: dict[tuple[int, int], tuple[str, str]] = {}
        for minus in re.finditer("-", text):  # labels may contain a minus
            first, second = text[: minus.start()].strip(), text[minus.end() :].strip()
            if first and second:
                with contextlib.suppress(InputError):
                    pairs.setdefault((class_index(first, labels), class_index(second, labels)), (first, second))
        if len(pairs) > 1:
            meanings = " or ".join(f"{first!r} less {second!r}" for first, second in pairs.values())
            raise InputError(f"{text!r} is ambiguous: {meanings}; give indices, as in 3-5") from error
        for pair in pairs:
            return difference(*pair, name=text)
        raise


def _located(text: str, labels: Sequence[str] | None) -> Located:
    """Return the class and the region of `person@120,40,300,500`, `dog@80,60` or `dog@mask.png`. Raises InputError."""
    label, _, location = text.partition("@")
    if labels and any("@" in known for known in labels):
        label, _, location = text.rpartition("@")
    index = class_index(label, labels) if label.strip() else None
    numbers: tuple[float, ...] = ()
    with contextlib.suppress(ValueError):
        numbers = tuple(float(number) for number in location.split(","))
    if len(numbers) in (2, 4):
        return Located(index, numbers, name=text)
    if numbers or not os.path.exists(location.strip()):
        raise InputError(
            f"cannot read {location!r} as a region; give x0,y0,x1,y1 or x,y in pixels of the image, or the file of a mask "
            "that exists"
        )
    return Located(index, mask=Path(location.strip()), name=text)


def _is_label(text: str, labels: Sequence[str] | None) -> bool:
    """Return whether a text is one of the labels, as `class_index` compares them."""
    return any(_plain(label) == _plain(text) for label in labels or ())


def class_index(label: str, labels: Sequence[str] | None) -> int:
    """Return the index of a class. Labels are compared without regard to case, with `_` as a space.

    Args:
        label: A label, an index in digits, or a unique prefix of a label. Digits that are a label mean that label.
        labels: The model's class labels, or None where it has none.

    Raises:
        InputError: The label is unknown or ambiguous, or the model has no labels.
    """
    if not _is_label(label, labels):
        with contextlib.suppress(ValueError):
            return int(label)
    if not labels:
        raise InputError(
            f"unknown class {label!r}: the model has no class labels; give an index, or the labels with labels= (--labels FILE)"
        )
    plain, names = _plain(label), [_plain(name) for name in labels]
    equal = [i for i, name in enumerate(names) if name == plain]
    if len(equal) > 1:
        raise InputError(f"{len(equal)} classes are called {label!r}; give the index: {', '.join(map(str, equal))}")
    matches = equal or [i for i, name in enumerate(names) if plain and name.startswith(plain)]
    if len(matches) > 1:
        some = ", ".join(f"{labels[i]} ({i})" for i in matches[:4])
        more = ", …" if len(matches) > 4 else ""
        raise InputError(f"{len(matches)} classes begin with {label!r}: {some}{more}; give the whole label")
    if not matches:
        raise InputError(f"unknown class {label!r}; {nearest(plain, names)}")
    return matches[0]


def _plain(label: str) -> str:
    """Return a label in the form in which labels are compared."""
    return label.replace("_", " ").casefold().strip()
