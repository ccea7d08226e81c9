"""The methods: each a small pure function with its formula and its paper, found by name in one registry.

A method's positional parameters say what it needs (`activations`, `gradients`, …: see `xcam.methods.inputs`), by name,
as pytest's fixtures do: what the registry tells of a method's needs cannot differ from what its code takes. Its
keyword-only parameters are its options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from xcam.errors import InputError, nearest
from xcam.methods.registered import Registered

F = TypeVar("F", bound=Callable[..., Any])
_registry: dict[str, Method] = {}


@dataclass(frozen=True)
class Method(Registered):
    """A way to turn what a backend supplies into a map [N, *spatial], before ReLU."""

    source: str
    """The paper, with the equation."""
    passes: str = "1 forward, 1 backward"
    """What one explanation costs."""


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


def option_names() -> set[str]:
    """Return the names of all options of all methods."""
    return {option for method in _registry.values() for option in method.options}


def list_methods() -> Mapping[str, Method]:
    """All methods by name, in the order of the documentation."""
    return MappingProxyType(_registry)
