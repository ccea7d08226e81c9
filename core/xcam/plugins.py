"""Finding backends: pluggy, entry-point group `xcam`. The backends in the box are found exactly as a third party's is.

An entry point names a light module with one hook implementation, `xcam_backend`. Only a spec's `target` imports the
framework, and only when it is used.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pluggy

from xcam.contract import Backend
from xcam.errors import BackendError, nearest

GROUP = "xcam"
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@dataclass(frozen=True)
class BackendSpec:
    """What a plugin says of its backend without importing its framework."""

    name: str
    requires: tuple[str, ...]
    """Modules that must be installed, by import name."""
    target: str
    """`package.module:Class` of the Backend."""
    extra: str | None = None
    """The extra of xcam-explain that installs what is required; None for a third party's."""
    suffixes: tuple[str, ...] = ()
    """Model files that it reads."""
    model_types: tuple[str, ...] = ()
    """Types of live models, each as `module.Class`; subclasses count."""
    schemes: tuple[str, ...] = ()
    """Prefixes of model names that it knows: `hf` for `hf:microsoft/resnet-50`."""
    zoo: bool = False
    """It knows models by bare names, such as `resnet50`."""
    default_model: str | None = None
    """What it explains with when no model is named."""


class Hooks:
    """The hook specification."""

    @hookspec
    def xcam_backend(self) -> BackendSpec:
        """Return what the plugin says of its backend."""
        raise NotImplementedError


State = Literal["available", "missing", "broken"]


@dataclass(frozen=True)
class Plugin:
    """A backend as it was found."""

    name: str
    spec: BackendSpec | None
    distribution: str
    error: BaseException | None = field(default=None, repr=False)

    @property
    def missing(self) -> tuple[str, ...]:
        """The required modules that are not installed."""
        return tuple(name for name in self.spec.requires if not _installed(name)) if self.spec else ()

    @property
    def state(self) -> State:
        """`broken`: installed, and failed to load; `missing`: its framework is not installed; else `available`."""
        return "broken" if self.error else "missing" if self.missing else "available"

    @property
    def remedy(self) -> str:
        """One line: what to do to make it available; empty when it is."""
        if self.error:
            return f"{type(self.error).__name__}: {self.error}"
        if not self.missing:
            return ""
        assert self.spec
        what = f'"xcam-explain[{self.spec.extra}]"' if self.spec.extra else " ".join(self.missing)
        return f"pip install {what}"


def _installed(name: str) -> bool:
    if name in sys.modules:
        return sys.modules[name] is not None
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False


class Registry:
    """The backends of one set of entry points. Tests make their own; `registry()` gives the installed one."""

    def __init__(self, points: Iterable[EntryPoint]) -> None:
        self.manager = pluggy.PluginManager(GROUP)
        self.manager.add_hookspecs(Hooks)
        self.plugins: dict[str, Plugin] = {}
        self._loaded: dict[str, Backend] = {}
        for point in points:
            plugin = self._find(point)
            if plugin.name in self.plugins:
                other = self.plugins[plugin.name].distribution
                clash = BackendError(
                    f"{point.value} names the backend {plugin.name!r}, which {other} has named already; "
                    "uninstall one of them"
                )
                plugin = Plugin(f"{plugin.name} ({point.value})", None, plugin.distribution, clash)
            self.plugins[plugin.name] = plugin

    def _find(self, point: EntryPoint) -> Plugin:
        """Load one light module, guarded: a plugin that fails must not take the others down."""
        distribution = point.dist.name if point.dist else point.value
        try:
            module = point.load()
            self.manager.register(module, name=f"{distribution}:{point.name}")
            callers = self.manager.get_hookcallers(module) or []
            if not callers:
                raise BackendError(
                    f"{point.value} implements no hook: mark a function xcam_backend with xcam.hookimpl"
                )
            spec = self.manager.subset_hook_caller(
                "xcam_backend", [p for p in self.manager.get_plugins() if p is not module]
            )()[0]
            if not isinstance(spec, BackendSpec):
                raise BackendError(f"xcam_backend of {point.value} returned {type(spec).__name__}, not a BackendSpec")
            return Plugin(spec.name, spec, distribution)
        except Exception as error:
            return Plugin(point.name, None, distribution, error)

    def load(self, name: str) -> Backend:
        """The backend called `name`, its framework imported now. Raises BackendError, with the original chained."""
        if name in self._loaded:
            return self._loaded[name]
        if name not in self.plugins:
            raise BackendError(f"no backend {name!r}; {nearest(name, self.plugins)}; `xcam backends` lists them")
        plugin = self.plugins[name]
        if plugin.state == "missing":
            raise BackendError(
                f"backend {name!r} needs {', '.join(plugin.missing)}, not installed here: {plugin.remedy}"
            )
        try:
            if plugin.error or plugin.spec is None:
                raise plugin.error or BackendError("it has no spec")
            module, _, attribute = plugin.spec.target.partition(":")
            backend: Backend = getattr(importlib.import_module(module), attribute)()
        except Exception as error:
            self.plugins[name] = Plugin(name, plugin.spec, plugin.distribution, error)
            raise BackendError(
                f"backend {name!r} is installed but broken: {type(error).__name__}: {error}; "
                f"reinstall {plugin.distribution} and its framework, or pass --debug for the whole story"
            ) from error
        self._loaded[name] = backend
        return backend

    def choose(self, source: Any, name: str | None = None) -> str:
        """Which backend reads `source` (a name, a path, a live model)? Raises BackendError when none or two do."""
        if name is not None:
            if name not in self.plugins:
                raise BackendError(f"no backend {name!r}; {nearest(name, self.plugins)}; `xcam backends` lists them")
            return name
        specs = [plugin.spec for plugin in self.plugins.values() if plugin.spec]
        fit = [spec.name for spec in specs if _reads(spec, source)]
        if len(fit) > 1:  # one that is installed beats those that are not
            fit = [name for name in fit if self.plugins[name].state == "available"] or fit
        if len(fit) == 1:
            return fit[0]
        what = repr(str(source)) if isinstance(source, str | Path) else f"a {type(source).__qualname__}"
        if fit:
            raise BackendError(f"{what} can be read by {' and '.join(fit)}; say which with backend= (-b)")
        known = sorted({suffix for spec in specs for suffix in spec.suffixes})
        raise BackendError(
            f"no backend reads {what}; they read {', '.join(known)}; name one with backend= (-b): {', '.join(self.plugins)}"
        )


def _reads(spec: BackendSpec, source: Any) -> bool:
    if isinstance(source, Path):
        return source.name.lower().endswith(spec.suffixes) if spec.suffixes else False
    if isinstance(source, str):
        return source == "demo" or source.partition(":")[0] in spec.schemes or (spec.zoo and ":" not in source)
    # A live model: its framework is loaded already, so its type is compared by name and nothing is imported.
    return any(f"{cls.__module__}.{cls.__qualname__}" in spec.model_types for cls in type(source).__mro__)


@cache
def registry() -> Registry:
    """The backends that are installed."""
    return Registry(entry_points(group=GROUP))


def backends() -> Mapping[str, Plugin]:
    """Every backend by name, whatever its state. Imports no framework."""
    return registry().plugins
