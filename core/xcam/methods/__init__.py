"""The methods: each a small pure function with its formula and its paper, found by name in one registry.

A method's positional parameters say what it needs (`activations`, `gradients`, …: see `xcam.methods.needs`), by name,
as pytest's fixtures do: what the registry tells of a method's needs cannot differ from what its code takes. Its
keyword-only parameters are its options.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from xcam.errors import InputError, nearest

F = TypeVar("F", bound=Callable[..., Any])
_registry: dict[str, Method] = {}


@dataclass(frozen=True)
class Method:
    """A way to turn what a backend supplies into a map [N, *spatial], before ReLU."""

    name: str
    function: Callable[..., Any]
    source: str
    """The paper, with the equation."""
    passes: str = "1 forward, 1 backward"
    """What one explanation costs."""

    @property
    def summary(self) -> str:
        """The first line of the method's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def needs(self) -> tuple[str, ...]:
        """What the core has to supply, in order: names of positional parameters."""
        return tuple(p.name for p in self._parameters if p.kind is not p.KEYWORD_ONLY)

    @property
    def options(self) -> Mapping[str, Any]:
        """Option names and their defaults."""
        return {p.name: p.default for p in self._parameters if p.kind is p.KEYWORD_ONLY}

    @property
    def _parameters(self) -> tuple[inspect.Parameter, ...]:
        return tuple(inspect.signature(self.function).parameters.values())

    def checked(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """`options`, if the method has them all, each of the kind that its default is of. Raises InputError."""
        for option, value in options.items():
            if option not in self.options:
                has = f"its options: {', '.join(self.options)}" if self.options else "it has no options"
                raise InputError(f"method {self.name!r} has no option {option!r}; {has}")
            default = self.options[option]
            if value is not default and not _like(default, value):
                raise InputError(f"{option} of {self.name} takes {KINDS[type(default)]}, not {value!r}")
        return options


KINDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a word"}


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


def method(name: str, *, source: str, passes: str = Method.passes) -> Callable[[F], F]:
    """Register a function as the method `name`."""

    def register(function: F) -> F:
        if name in _registry:
            raise ValueError(f"method {name!r} is registered twice")
        _registry[name] = Method(name, function, source, passes)
        return function

    return register


def get(name: str) -> Method:
    """The method called `name`. Raises InputError, which offers the nearest names."""
    if name not in _registry:
        raise InputError(f"no method {name!r}; {nearest(name, _registry)}; `xcam methods` lists them")
    return _registry[name]


def methods() -> Mapping[str, Method]:
    """All methods by name, in the order of the documentation."""
    return MappingProxyType(_registry)


# They register themselves; what is imported first is listed first.
from xcam.methods import gradient  # noqa: E402, F401, I001
from xcam.methods import principal  # noqa: E402, F401
from xcam.methods import feature  # noqa: E402, F401
from xcam.methods import masking  # noqa: E402, F401
from xcam.methods import ablation  # noqa: E402, F401
from xcam.methods import baseline  # noqa: E402, F401
