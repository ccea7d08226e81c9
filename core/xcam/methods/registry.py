"""The registry of methods, and the parts of it that the measures of trust share.

The signature of a registered function is its declaration. Positional parameters are its inputs, requested by name as
pytest's fixtures are (`activations`, `gradients`, …: see `xcam.methods.inputs`). Keyword-only parameters are its
options, with their defaults. The registry therefore cannot disagree with the code.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import numpy as np

from xcam.errors import InputError, nearest

F = TypeVar("F", bound=Callable[..., Any])

KINDS = {bool: "true or false", int: "an integer", float: "a finite number", str: "a string"}
"""Types of options whose values are checked, with their names in messages."""


@dataclass(frozen=True)
class Registered:
    """A named function with inputs and options: the base of methods and measures."""

    name: str
    """The name in the registry, unique and in lower case."""
    function: Callable[..., Any]
    """The function itself."""

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs: the positional parameters, in order."""
        return tuple(p.name for p in self._parameters if p.kind is not p.KEYWORD_ONLY)

    @property
    def options(self) -> Mapping[str, Any]:
        """Names and defaults of the options: the keyword-only parameters."""
        return {p.name: p.default for p in self._parameters if p.kind is p.KEYWORD_ONLY}

    @property
    def _parameters(self) -> tuple[inspect.Parameter, ...]:
        return tuple(inspect.signature(self.function).parameters.values())

    def checked(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return `options` if the function has each of them, and each value has the type of its default.

        Raises:
            InputError: For an unknown option or a value of another type.
        """
        kind = type(self).__name__.lower()
        for option, value in options.items():
            if option not in self.options:
                remedy = f"its options: {', '.join(self.options)}" if self.options else "it has no options"
                raise InputError(f"{kind} {self.name!r} has no option {option!r}; {remedy}")
            default = self.options[option]
            if value is not default and not _has_type_of(default, value):
                raise InputError(
                    f"{option}={value!r} of {kind} {self.name!r} is invalid; give {KINDS[type(default)]}"
                )
        return options


Reads = Literal["means", "products", "positions"]
"""The sums over the positions of a channel that a method reads of the gradients G: S(G), S(G·A), or none."""


@dataclass(frozen=True)
class Method(Registered):
    """A class activation map: a function from its inputs to a raw map [N, *space], before ReLU."""

    source: str
    """The paper, with the equation."""
    passes: str = "1 forward, 1 backward"
    """The cost of one explanation, in passes through the model."""
    reads: Reads = "positions"
    """The sums of the gradients on which its map depends; with `means` and `products` it works by differences at every layer."""


_methods: dict[str, Method] = {}


def method(name: str, *, source: str, passes: str = Method.passes, reads: Reads = Method.reads) -> Callable[[F], F]:
    """Return a decorator that registers a function as a method.

    Args:
        name: The method's name, as `explain(…, method=name)` takes it.
        source: The paper, with the equation.
        passes: The cost of one explanation, in passes through the model.
        reads: `means` or `products` where the map depends on these sums of the gradients only: see `Method.reads`.

    Raises:
        ValueError: The decorator, where the name is registered already.
    """

    def register(function: F) -> F:
        if name in _methods:
            raise ValueError(f"method {name!r} is registered already; choose another name")
        _methods[name] = Method(name, function, source, passes, reads)
        return function

    return register


def get(name: str) -> Method:
    """Return the method called `name`.

    Raises:
        InputError: There is none; the message lists the nearest names.
    """
    if name not in _methods:
        raise InputError(f"unknown method {name!r}; {nearest(name, _methods)}; `xcam methods` lists them")
    return _methods[name]


def option_names() -> set[str]:
    """Return the names of all options of all methods."""
    return {option for method in _methods.values() for option in method.options}


def list_methods() -> Mapping[str, Method]:
    """Return all methods by name, in the order of the documentation."""
    return MappingProxyType(_methods)


def _has_type_of(default: object, value: Any) -> bool:
    """Return whether `value` has the default's type; types outside `KINDS` are not checked."""
    if isinstance(default, bool):
        return isinstance(value, bool | np.bool_)
    if isinstance(value, bool | np.bool_) and type(default) in (int, float):
        return False
    if isinstance(default, int):
        return isinstance(value, int | np.integer)
    if isinstance(default, float):
        return isinstance(value, int | float | np.integer | np.floating) and math.isfinite(value)
    return not isinstance(default, str) or isinstance(value, str)
