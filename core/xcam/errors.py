"""What can go wrong, in words a user can act on. Every message says what was wrong, with the value, and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class XcamError(Exception):
    """Base of every error that xcam raises on purpose. Its text is one line: cause, then remedy."""


class InputError(XcamError, ValueError):
    """The picture, layer, class, option or file that was given cannot be used."""


class ModelError(XcamError, RuntimeError):
    """The model itself cannot be read or explained."""


class BackendError(XcamError, RuntimeError):
    """No backend, or not this one, can do the work: it is missing, broken, or lacks a capability."""


class ContractError(BackendError):
    """A backend broke a promise of the contract; the message names the backend."""


class XcamWarning(UserWarning):
    """Something the user should know about a result that is nevertheless returned."""


class ZeroHeatmapWarning(XcamWarning):
    """The heatmap is zero everywhere."""


def first_line(error: BaseException) -> str:
    """An error's kind and the first line of its text, short enough for a message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def nearest(word: object, known: Iterable[str], n: int = 3) -> str:
    """A clause for an error message: the names in `known` that come closest to `word`."""
    word, names = str(word), list(dict.fromkeys(known))
    if len(names) <= 2 * n:
        return f"known: {', '.join(names)}" if names else "there are none"
    found = difflib.get_close_matches(word, names, n=n, cutoff=0.5)
    found = found or difflib.get_close_matches(word.rpartition("/")[2], names, n=n, cutoff=0.3)
    return f"nearest: {', '.join(found)}" if found else f"for example: {', '.join(names[-n:])}"
