"""Finding backends: pluggy, entry-point group `xcam`. The backends in the box are found exactly as a third party's is.

An entry point names a light module with one hook implementation, `xcam_backend`. Only a spec's `target` imports the
framework, and only when it is used.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pluggy

from xcam.contract import Backend
from xcam.errors import BackendError, first_line, nearest

GROUP = "xcam"
OWN = "xcam-explain"
"""The distribution whose backends keep their names."""

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
    remedy: str | None = None
    """What to do where a module is missing, when there is more to say than to install the extra."""


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
    version: str = ""
    """The distribution's."""

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
            return first_line(self.error)
        if not self.missing:
            return ""
        assert self.spec
        if self.spec.remedy:
            return self.spec.remedy
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
        found = [(point, self._find(point)) for point in points]
        # The box's own keep their names, wherever they stand on sys.path; and a broken one takes no name away.
        for point, plugin in sorted(found, key=lambda pair: (pair[1].distribution != OWN, pair[1].spec is None)):
            if plugin.name in self.plugins:
                other = self.plugins[plugin.name].distribution
                clash = BackendError(
                    f"{point.value} names the backend {plugin.name!r}, which {other} has named already; "
                    "uninstall one of them"
                )
                name = f"{plugin.name} ({point.value})"
                plugin = replace(plugin, name=name, spec=None, error=plugin.error or clash)
            self.plugins[plugin.name] = plugin

    def _find(self, point: EntryPoint) -> Plugin:
        """Load one light module, guarded: a plugin that fails must not take the others down."""
        distribution, version = (point.dist.name, point.dist.version) if point.dist else (point.value, "")
        try:
            module = point.load()
            self.manager.register(module, name=f"{distribution}:{point.name}")
            hooks = self.manager.hook.xcam_backend.get_hookimpls()
            hook = next((hook for hook in hooks if hook.plugin is module), None)
            if hook is None:
                others = ", ".join(caller.name for caller in self.manager.get_hookcallers(module) or [])
                raise BackendError(
                    f"{point.value} implements no hook{others and f' that xcam knows, only {others}'}: "
                    "mark a function xcam_backend with xcam.hookimpl"
                )
            if hook.hookwrapper or hook.wrapper:
                raise BackendError(
                    f"xcam_backend of {point.value} is a wrapper around other hooks; mark it with xcam.hookimpl alone"
                )
            spec = hook.function()
            if not isinstance(spec, BackendSpec):
                raise BackendError(f"xcam_backend of {point.value} returned {type(spec).__name__}, not a BackendSpec")
            _check(spec, point.value)
            return Plugin(spec.name, spec, distribution, version=version)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic of compiled code is no Exception
            return Plugin(point.name, None, distribution, error, version)

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
            _check_load(backend, plugin.spec.target)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.plugins[name] = Plugin(name, plugin.spec, plugin.distribution, error, plugin.version)
            raise BackendError(
                f"backend {name!r} is installed but broken: {first_line(error)}; "
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
        if len(fit) > 1 and not isinstance(source, str | Path):
            # Where Keras runs on torch, a keras.Model is a torch.nn.Module too: the nearest ancestor decides.
            distance = {spec.name: _distance(spec, source) or 0 for spec in specs if spec.name in fit}
            fit = [name for name in fit if distance[name] == min(distance.values())]
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


def _check(spec: BackendSpec, value: str) -> None:
    """Words where words belong: `requires="jax"` would ask for the modules j, a and x. Raises BackendError."""
    for part in ("requires", "suffixes", "model_types", "schemes"):
        words = getattr(spec, part)
        if not isinstance(words, tuple) or not all(isinstance(word, str) for word in words):
            raise BackendError(f"{part} of {value} is {words!r}; give a tuple of str: ({words!r},)")
    for suffix in spec.suffixes:
        if not suffix.startswith(".") or len(suffix) == 1:
            raise BackendError(f"suffixes of {value} has {suffix!r}; give a dot and what follows it, such as '.onnx'")
    for part in ("extra", "default_model", "remedy"):
        word = getattr(spec, part)
        if not isinstance(word, str | None):
            raise BackendError(f"{part} of {value} is {word!r}; give a str or None")
    if not isinstance(spec.zoo, bool):
        raise BackendError(f"zoo of {value} is {spec.zoo!r}; give True or False")
    if not isinstance(spec.name, str) or not spec.name:
        raise BackendError(f"name of {value} is {spec.name!r}; give a word")
    module, _, attribute = str(spec.target).partition(":")
    if not module or not attribute:
        raise BackendError(f"target of {value} is {spec.target!r}; give package.module:Class")


def _check_load(backend: Any, target: str) -> None:
    """What the core hands to `load`, it must take. Raises BackendError."""
    load = getattr(backend, "load", None)
    if not callable(load):
        raise BackendError(f"{target} has no method load(); see xcam.Backend")
    try:
        inspect.signature(load).bind(None, size=None, device=None, layout=None, weights=None)
    except TypeError as error:
        raise BackendError(
            f"load() of {target} does not take what it is given: {error}; write "
            "load(self, source, *, size=None, device=None, layout=None, weights=None)"
        ) from error


def _reads(spec: BackendSpec, source: Any) -> bool:
    if isinstance(source, Path):
        return source.name.lower().endswith(spec.suffixes) if spec.suffixes else False
    if isinstance(source, str):
        return source == "demo" or source.partition(":")[0] in spec.schemes or (spec.zoo and ":" not in source)
    # A live model: its framework is loaded already, so its type is compared by name and nothing is imported.
    return _distance(spec, source) is not None


def _distance(spec: BackendSpec, source: Any) -> int | None:
    """How many ancestors of the source's type stand before the first that the spec names; None: it names none."""
    names = [f"{cls.__module__}.{cls.__qualname__}" for cls in type(source).__mro__]
    return next((i for i, name in enumerate(names) if name in spec.model_types), None)


@cache
def registry() -> Registry:
    """The backends that are installed."""
    return Registry(entry_points(group=GROUP))


def list_backends() -> Mapping[str, Plugin]:
    """Every backend by name, whatever its state. Imports no framework."""
    return registry().plugins


def described(name: str) -> str:
    """`backend 'jax' (xcam-jax 0.1)`: who is to hear of what is wrong with it."""
    plugin = registry().plugins.get(name)
    return f"backend {name!r}{f' ({plugin.distribution} {plugin.version})' if plugin and plugin.version else ''}"
