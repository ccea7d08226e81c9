"""Targets in words: an index, a label or the beginning of one, `top3`, two classes with a minus, `finer:label`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np

from xcam.contract import Activation
from xcam.errors import InputError, nearest
from xcam.targets.classes import ClassScore, Finer, Score, difference
from xcam.targets.protocol import Target

TOP = re.compile(r"top-?(\d+)", re.IGNORECASE)
FINER = "finer"
MOST = 1000
"""Nobody looks at more maps than this; and a slip of the finger must not fill the memory."""


def several(value: object, labels: Sequence[str] | None = None) -> list[ClassScore] | None:
    """`top3` → the three best classes, best first; None for anything else, a label too. Raises InputError for `top0`."""
    found = TOP.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None or _exact(found[0], labels):
        return None
    if len(found[1]) > 9 or not 1 <= int(found[1]) <= MOST:
        raise InputError(f"{value!r} names no classes that can be drawn; give top1 to top{MOST}")
    return [ClassScore(rank=rank) for rank in range(int(found[1]))]


def target(
    value: int | str | Target | None,
    score: Score = "logit",
    activation: Activation = None,
    labels: Sequence[str] | None = None,
) -> Target:
    """None (the top class), an index, words or a Target → a Target. Raises InputError."""
    if score not in get_args(Score):
        raise InputError(f"no score {score!r}; {nearest(str(score), get_args(Score))}")
    if isinstance(value, str):
        value = _worded(value, labels)
    if value is None or isinstance(value, int | np.integer):
        return ClassScore(None if value is None else int(value), score, activation)
    if isinstance(value, ClassScore):
        value = replace(value, activation=activation) if value.activation is None else value
        return replace(value, score=score) if value.score == "logit" else value
    if isinstance(value, Target) and not isinstance(value, type):
        if score != "logit" and not isinstance(value, ClassScore):
            name = getattr(value, "name", "") or type(value).__name__
            raise InputError(
                f"score {score!r} is that of one class, and {name} is another target; leave the score out"
            )
        return value
    raise InputError(
        f"{value!r} is no target; give a class index, a label, or an object with value() and cotangent()"
    )


def _worded(word: str, labels: Sequence[str] | None) -> int | Target:
    head, colon, rest = word.partition(":")
    if head.strip().casefold() == FINER and not _exact(word, labels):
        return Finer(class_index(rest, labels) if colon else None)
    try:
        return class_index(word, labels)
    except InputError as error:
        found: dict[tuple[int, int], tuple[str, str]] = {}
        for m in re.finditer("-", word):
            first, second = word[: m.start()].strip(), word[m.end() :].strip()
            if first and second:
                with contextlib.suppress(InputError):
                    found.setdefault((class_index(first, labels), class_index(second, labels)), (first, second))
        if len(found) > 1:
            said = " or ".join(f"{first!r} less {second!r}" for first, second in found.values())
            raise InputError(f"{word!r} can mean {said}; give indices, as in 3-5") from error
        for pair in found:
            return difference(*pair, name=word)
        raise


def _exact(label: str, labels: Sequence[str] | None) -> bool:
    return any(_plain(name) == _plain(label) for name in labels or ())


def class_index(label: str, labels: Sequence[str] | None) -> int:
    """The index of a label, or of the only one that begins so; or of an index in digits. Raises InputError.

    Labels are compared without case, `_` as a space.
    """
    try:
        return int(label)
    except ValueError:
        pass
    if not labels:
        raise InputError(
            f"no class {label!r}: this model has no class names; give an index, or the names with labels= (--labels FILE)"
        )
    wanted, names = _plain(label), [_plain(name) for name in labels]
    found = [i for i, name in enumerate(names) if name == wanted]
    if len(found) > 1:
        raise InputError(f"{len(found)} classes are called {label!r}; give the index: {', '.join(map(str, found))}")
    begun = found or [i for i, name in enumerate(names) if wanted and name.startswith(wanted)]
    if len(begun) > 1:
        some = ", ".join(f"{labels[i]} ({i})" for i in begun[:4])
        raise InputError(
            f"{len(begun)} classes begin with {label!r}: {some}{', …' if len(begun) > 4 else ''}; say which"
        )
    if not begun:
        raise InputError(f"no class {label!r}; {nearest(wanted, names)}")
    return begun[0]


def _plain(label: str) -> str:
    return label.replace("_", " ").casefold().strip()
