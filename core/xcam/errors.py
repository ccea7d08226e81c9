"""Errors and warnings. A message is one line: what is wrong, with the value, then the remedy."""

from __future__ import annotations

import difflib
import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Collection, Iterable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class XcamError(Exception):
    """Base class of all errors that xcam raises on purpose."""


class InputError(XcamError, ValueError):
    """An image, layer, class, option or file cannot be used."""


class AbsentError(InputError):
    """A target is not on this image: a detector has no such box, or segmentation no such region. Others may have it."""


class OptionError(InputError, TypeError):
    """A call has an argument that the function does not take."""


class ModelError(XcamError, RuntimeError):
    """A model cannot be opened, run or explained."""


class BackendError(XcamError, RuntimeError):
    """A backend is missing or broken, or lacks a capability."""


class ContractError(BackendError):
    """A backend violates the contract; the message names the backend."""


class XcamWarning(UserWarning):
    """A result is returned, with a limitation that the user should know."""


class ZeroHeatmapWarning(XcamWarning):
    """A heatmap is zero everywhere."""


def first_line(error: BaseException) -> str:
    """Return the error's class and the first line of its text, at most 300 characters, for a message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def warn(message: str, category: type[Warning] = XcamWarning) -> None:
    """Warn at the line of the user's code that called xcam, however deep inside xcam the reason is."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "xcam":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def nearest(name: object, known: Iterable[str], n: int = 3) -> str:
    """Return a clause for a message about an unknown name.

    Args:
        name: The unknown name.
        known: The names that exist.
        n: How many names to list; where there are at most twice as many, all are listed.

    Returns:
        `nearest: …` with the most similar names, `known: …`, `for example: …`, or `there are none`.
    """
    text, names = str(name), list(dict.fromkeys(known))
    if len(names) <= 2 * n:
        return f"known: {', '.join(names)}" if names else "there are none"
    matches = difflib.get_close_matches(text, names, n=n, cutoff=0.5)
    matches = matches or difflib.get_close_matches(text.rpartition("/")[2], names, n=n, cutoff=0.3)
    return f"nearest: {', '.join(matches)}" if matches else f"for example: {', '.join(names[-n:])}"


def keywords_checked(
    method_options: Callable[[], Collection[str]] = tuple,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a public function, so that an argument it does not take raises OptionError with the nearest name.

    Only the arguments of the call itself are checked: a TypeError from inside the function passes unchanged.

    Args:
        method_options: Returns the names that are options of a method, for a function with a parameter
            `method_options`: the message for one of these names shows how to give it.

    Returns:
        The decorator. The decorated function keeps its signature, name and docstring.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        parameters = inspect.signature(function).parameters.values()
        names = [p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY]
        positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
        call = f"{function.__name__}()"

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            if len(args) > len(positional):
                raise OptionError(
                    f"{call} takes {len(positional)} positional arguments, not {len(args)}; "
                    f"give all after {positional[-1]!r} by name"
                )
            for name in kwargs:
                if name not in names:
                    close = difflib.get_close_matches(name, names, n=1)
                    remedy = f"nearest: {close[0]}" if close else f"known: {', '.join(names)}"
                    if name in method_options():
                        remedy = f"options of a method are given as method_options={{{name!r}: ...}}"
                    raise OptionError(f"{call} has no option {name!r}; {remedy}")
            return function(*args, **kwargs)

        return checked

    return decorate
