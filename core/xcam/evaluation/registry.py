"""Measures of trust: how well a map stands up to the model and the picture that it is said to explain.

Each is a small pure function with its formula and its paper, found by name in one registry. As with methods, the
positional parameters say by name what a measure needs (see `xcam.evaluation.inputs`), the keyword-only ones are its
options. Nothing here loads a model or reads a picture: `xcam.evaluation.evaluate` supplies what is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from xcam.errors import BackendError, InputError, nearest
from xcam.methods.registry import Registered

F = TypeVar("F", bound=Callable[..., Any])
Better = Literal["higher", "lower"]
_registry: dict[str, Measure] = {}


@dataclass(frozen=True)
class Measure(Registered):
    """A number for each picture that says how far its map can be trusted."""

    better: Better
    source: str
    """The paper, with the equation."""
    bounds: tuple[float, float]
    """Lowest and highest value."""
    passes: str
    """What it costs for one picture, besides its explanation."""
    default: bool = True
    """It is taken where none is named (and where what it needs is given)."""
    ranks: bool = True
    """It counts when methods are ranked. What a useless map can be best at does not (an empty map is the simplest), nor
    what `random` is no floor for."""

    requires: str = ""
    """A module that it imports, of the extra `batch`."""

    def require(self) -> Any:
        """The module that it imports, if any. Raises BackendError where that is not installed: call it before the work."""
        if not self.requires:
            return None
        try:
            return importlib.import_module(self.requires)
        except ImportError as error:
            raise BackendError(
                f"measure {self.name!r} needs {self.requires.partition('.')[0]}, which is not installed here: "
                'pip install "xcam-explain[batch]"; or name other measures'
            ) from error


def measure(
    name: str,
    *,
    better: Better,
    source: str,
    passes: str = "none",
    bounds: tuple[float, float] = (0.0, 1.0),
    default: bool = True,
    ranks: bool = True,
    requires: str = "",
) -> Callable[[F], F]:
    """Register a function as the measure `name`."""

    def register(function: F) -> F:
        if name in _registry:
            raise ValueError(f"measure {name!r} is registered twice")
        _registry[name] = Measure(name, function, better, source, bounds, passes, default, ranks, requires)
        return function

    return register


def get(name: str) -> Measure:
    """The measure called `name`. Raises InputError, which offers the nearest names."""
    if name not in _registry:
        raise InputError(f"no measure {name!r}; {nearest(name, _registry)}; `xcam evaluate --list` lists them")
    return _registry[name]


def list_measures() -> Mapping[str, Measure]:
    """All measures by name, in the order of the documentation."""
    return MappingProxyType(_registry)
