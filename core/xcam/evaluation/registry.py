"""Measures of trust: how well a heatmap agrees with the model and the image that it explains.

Each measure is a small pure function with its formula and its paper, registered under a name. As with methods, the
positional parameters name the inputs of the measure (see `xcam.evaluation.inputs`), and the keyword-only parameters are
its options. Nothing here loads a model or reads an image: `xcam.evaluation.evaluate` supplies the inputs.
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
    """A measure of trust: one number per image."""

    better: Better
    """Whether higher or lower values are better."""
    source: str
    """The paper, with the equation."""
    bounds: tuple[float, float]
    """The lowest and the highest possible value."""
    passes: str
    """The cost per image, in addition to the explanation itself."""
    default: bool = True
    """Whether it is used when no measures are named and its inputs are available."""
    ranks: bool = True
    """Whether it counts in the ranking of methods. False for measures that a useless map can win (an empty map is the
    simplest), and for those to which `random` is not a lower bound."""
    requires: str = ""
    """A module of the extra `batch` that the measure imports."""

    def require(self) -> Any:
        """Import the module that the measure requires, before any work is done.

        Returns:
            The module, or None where the measure requires none.

        Raises:
            BackendError: The module is not installed.
        """
        if not self.requires:
            return None
        try:
            return importlib.import_module(self.requires)
        except ImportError as error:
            raise BackendError(
                f"measure {self.name!r} needs {self.requires.partition('.')[0]}, which is not installed; "
                'run pip install "xcam-explain[batch]", or choose other measures'
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
    """Register a function as a measure of trust. The arguments are the fields of `Measure`."""

    def register(function: F) -> F:
        if name in _registry:
            raise ValueError(f"measure {name!r} is registered twice")
        _registry[name] = Measure(name, function, better, source, bounds, passes, default, ranks, requires)
        return function

    return register


def get(name: str) -> Measure:
    """Return a measure by name.

    Raises:
        InputError: The name is unknown; the message offers the nearest names.
    """
    if name not in _registry:
        raise InputError(f"unknown measure {name!r}; {nearest(name, _registry)}; `xcam evaluate --list` lists all")
    return _registry[name]


def list_measures() -> Mapping[str, Measure]:
    """Return all measures by name, in the order of the documentation."""
    return MappingProxyType(_registry)
