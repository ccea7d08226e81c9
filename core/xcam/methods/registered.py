"""What methods and measures share: a function that says by its parameters what it needs, and which options it has.

Positional parameters are needs, by name, as pytest's fixtures are; keyword-only ones are options. So what a registry
tells of a function cannot differ from what its code takes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from xcam.errors import InputError

KINDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a word"}


@dataclass(frozen=True)
class Registered:
    """A function with a name, in a registry."""

    name: str
    function: Callable[..., Any]

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def inputs(self) -> tuple[str, ...]:
        """What has to be supplied, in order: names of positional parameters."""
        return tuple(p.name for p in self._parameters if p.kind is not p.KEYWORD_ONLY)

    @property
    def options(self) -> Mapping[str, Any]:
        """Option names and their defaults."""
        return {p.name: p.default for p in self._parameters if p.kind is p.KEYWORD_ONLY}

    @property
    def _parameters(self) -> tuple[inspect.Parameter, ...]:
        return tuple(inspect.signature(self.function).parameters.values())

    def checked(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """`options`, if the function has them all, each of the kind that its default is of. Raises InputError."""
        for option, value in options.items():
            if option not in self.options:
                has = f"its options: {', '.join(self.options)}" if self.options else "it has no options"
                raise InputError(f"{type(self).__name__.lower()} {self.name!r} has no option {option!r}; {has}")
            default = self.options[option]
            if value is not default and not _like(default, value):
                raise InputError(f"{option} of {self.name} takes {KINDS[type(default)]}, not {value!r}")
        return options


def _like(default: object, value: Any) -> bool:
    """Whether `value` is of the default's kind; of other kinds than KINDS anything is taken."""
    if isinstance(default, bool):
        return isinstance(value, bool | np.bool_)
    if isinstance(value, bool | np.bool_) and type(default) in (int, float):
        return False
    if isinstance(default, int):
        return isinstance(value, int | np.integer)
    if isinstance(default, float):
        return isinstance(value, int | float | np.integer | np.floating) and math.isfinite(value)
    return not isinstance(default, str) or isinstance(value, str)
