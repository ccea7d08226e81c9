"""What can go wrong, in words a user can act on. Every message says what was wrong, with the value, and the remedy."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Iterable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class XcamError(Exception):
    """Base of every error that xcam raises on purpose. Its text is one line: cause, then remedy."""


class InputError(XcamError, ValueError):
    """The picture, layer, class, option or file that was given cannot be used."""


class OptionError(InputError, TypeError):
    """The call has an argument that the function does not take."""


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
