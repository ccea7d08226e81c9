"""Discovery of backends: pluggy, entry-point group `xcam`. xcam's own backends are found as those of third parties.

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


DEMOS = ("demo", "demo-detector")
"""Names of the networks in the package, which every backend may build: see xcam.models.demo."""


@dataclass(frozen=True)
class BackendSpec:
    """Description of a backend, available without importing its framework."""

    name: str
    requires: tuple[str, ...]
    """Modules that must be installed, by import name."""
    target: str
    """`package.module:Class` of the Backend."""
    extra: str | None = None
    """The extra of xcam-explain that installs `requires`; None for a third party's backend."""
    suffixes: tuple[str, ...] = ()
    """Suffixes of the model files that it reads, such as `.onnx`."""
    folders: tuple[str, ...] = ()
    """Names of files by which a folder is a model that it reads, such as `saved_model.pb`."""
    model_types: tuple[str, ...] = ()
    """Types of live models, each as `module.Class`; subclasses count."""
    schemes: tuple[str, ...] = ()
    """Prefixes of the model names that it loads: `hf` for `hf:microsoft/resnet-50`."""
    zoo: bool = False
    """Whether it loads models by bare names, such as `resnet50`."""
    default_model: str | None = None
    """The model to use when the caller names none."""
    remedy: str | None = None
    """The remedy for a missing module, if it is not to install the extra."""
    callbacks: tuple[str, ...] = ()
    """`package.module:Class` of the callbacks that `xcam.callbacks` offers under the name of their class."""


class Hooks:
    """The hook specification."""

    @hookspec
    def xcam_backend(self) -> BackendSpec:
        """Return the description of the plugin's backend."""
        raise NotImplementedError


State = Literal["available", "missing", "broken"]


@dataclass(frozen=True)
class Plugin:
    """An installed plugin and its state."""

    name: str
    spec: BackendSpec | None
    distribution: str
    error: BaseException | None = field(default=None, repr=False)
    version: str = ""
    """Version of the distribution."""

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
        """The remedy in one line, or the error of a broken plugin; empty when it is available."""
        if self.error:
            return first_line(self.error)
        if not self.missing:
            return ""
        assert self.spec
        if self.spec.remedy:
            return self.spec.remedy
        packages = f'"xcam-explain[{self.spec.extra}]"' if self.spec.extra else " ".join(self.missing)
        return f"pip install {packages}"


def _installed(name: str) -> bool:
    if name in sys.modules:
        return sys.modules[name] is not None
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False


class Registry:
    """The backends of a set of entry points. `registry()` returns that of the installed ones."""

    def __init__(self, points: Iterable[EntryPoint]) -> None:
        """Import the light module of each entry point."""
        self.manager = pluggy.PluginManager(GROUP)
        self.manager.add_hookspecs(Hooks)
        self.plugins: dict[str, Plugin] = {}
        self._loaded: dict[str, Backend] = {}
        plugins = [(point, self._find(point)) for point in points]
        # xcam's own backends keep their names in any order of sys.path. A broken plugin must not take the name of another.
        for point, plugin in sorted(plugins, key=lambda pair: (pair[1].distribution != OWN, pair[1].spec is None)):
            if plugin.name in self.plugins:
                other = self.plugins[plugin.name].distribution
                clash = BackendError(
                    f"cannot register {point.value}: the name {plugin.name!r} is already used by {other}; uninstall one "
                    "of them"
                )
                name = f"{plugin.name} ({point.value})"
                plugin = replace(plugin, name=name, spec=None, error=plugin.error or clash)
            self.plugins[plugin.name] = plugin

    def _find(self, point: EntryPoint) -> Plugin:
        """Import a light module; a failure is kept in the Plugin, so that it does not affect the others."""
        distribution, version = (point.dist.name, point.dist.version) if point.dist else (point.value, "")
        try:
            module = point.load()
            self.manager.register(module, name=f"{distribution}:{point.name}")
            hooks = self.manager.hook.xcam_backend.get_hookimpls()
            hook = next((hook for hook in hooks if hook.plugin is module), None)
            if hook is None:
                others = ", ".join(caller.name for caller in self.manager.get_hookcallers(module) or [])
                raise BackendError(
                    f"cannot use {point.value}: it has no hook xcam_backend{others and f', only {others}'}; mark a "
                    "function xcam_backend with xcam.hookimpl"
                )
            if hook.hookwrapper or hook.wrapper:
                raise BackendError(
                    f"cannot use {point.value}: its xcam_backend is a wrapper around other hooks; mark it with "
                    "xcam.hookimpl, without options"
                )
            spec = hook.function()
            if not isinstance(spec, BackendSpec):
                raise BackendError(
                    f"cannot use {point.value}: xcam_backend returned {type(spec).__name__}; return a BackendSpec"
                )
            _check(spec, point.value)
            return Plugin(spec.name, spec, distribution, version=version)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic of compiled code is not an Exception
            return Plugin(point.name, None, distribution, error, version)

    def load(self, name: str) -> Backend:
        """Return the backend `name`, and import its framework. Raises BackendError, with the original error chained."""
        if name in self._loaded:
            return self._loaded[name]
        if name not in self.plugins:
            raise self._unknown(name)
        plugin = self.plugins[name]
        if plugin.state == "missing":
            raise BackendError(
                f"cannot load backend {name!r}: {', '.join(plugin.missing)} is not installed; {plugin.remedy}"
            )
        try:
            if plugin.error or plugin.spec is None:
                raise plugin.error or BackendError("it lacks a spec")
            module, _, attribute = plugin.spec.target.partition(":")
            backend: Backend = getattr(importlib.import_module(module), attribute)()
            _check_load(backend, plugin.spec.target)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.plugins[name] = Plugin(name, plugin.spec, plugin.distribution, error, plugin.version)
            raise BackendError(
                f"cannot load backend {name!r}: it is installed but broken: {first_line(error)}; "
                f"reinstall {plugin.distribution} and its framework, or pass --debug for the traceback"
            ) from error
        self._loaded[name] = backend
        return backend

    def choose(self, source: Any, name: str | None = None) -> str:
        """Return the name of the backend that loads a source.

        Args:
            source: a model's name, a path or a live model.
            name: a backend that the caller names.

        Raises:
            BackendError: no backend loads it, or several do, or `name` is unknown.
        """
        if name is not None:
            if name not in self.plugins:
                raise self._unknown(name)
            return name
        specs = [plugin.spec for plugin in self.plugins.values() if plugin.spec]
        fit = [spec.name for spec in specs if _loads(spec, source)]
        if len(fit) > 1 and not isinstance(source, str | Path):
            # Where Keras runs on torch, a keras.Model is a torch.nn.Module too: the nearest ancestor decides.
            distance = {spec.name: _distance(spec, source) or 0 for spec in specs if spec.name in fit}
            fit = [name for name in fit if distance[name] == min(distance.values())]
        if len(fit) > 1:  # an available one is preferred
            fit = [name for name in fit if self.plugins[name].state == "available"] or fit
        if len(fit) == 1:
            return fit[0]
        model = repr(str(source)) if isinstance(source, str | Path) else f"a {type(source).__qualname__}"
        if fit:
            raise BackendError(
                f"cannot choose a backend for {model}: {' and '.join(fit)} load it; name one with backend= (-b)"
            )
        known = sorted({suffix for spec in specs for suffix in spec.suffixes})
        raise BackendError(
            f"cannot choose a backend for {model}: the suffixes of model files are {', '.join(known)}; name a backend "
            f"with backend= (-b): {', '.join(self.plugins)}"
        )

    def _unknown(self, name: str) -> BackendError:
        return BackendError(f"unknown backend {name!r}; {nearest(name, self.plugins)}; `xcam backends` lists them")


def _check(spec: BackendSpec, value: str) -> None:
    """Check types: `requires="jax"` would mean the modules j, a and x. Raises BackendError."""
    for field_name in ("requires", "suffixes", "folders", "model_types", "schemes", "callbacks"):
        strings = getattr(spec, field_name)
        if not isinstance(strings, tuple) or not all(isinstance(string, str) for string in strings):
            raise _wrong(field_name, value, strings, f"a tuple of str: ({strings!r},)")
    for suffix in spec.suffixes:
        if not suffix.startswith(".") or len(suffix) == 1:
            raise _wrong("suffixes", value, suffix, "suffixes that begin with a dot, such as '.onnx'")
    for field_name in ("extra", "default_model", "remedy"):
        string = getattr(spec, field_name)
        if not isinstance(string, str | None):
            raise _wrong(field_name, value, string, "a str or None")
    if not isinstance(spec.zoo, bool):
        raise _wrong("zoo", value, spec.zoo, "True or False")
    if not isinstance(spec.name, str) or not spec.name:
        raise _wrong("name", value, spec.name, "a str that is not empty")
    module, _, attribute = str(spec.target).partition(":")
    if not module or not attribute:
        raise _wrong("target", value, spec.target, "package.module:Class")


def _wrong(field_name: str, plugin: str, value: object, required: str) -> BackendError:
    return BackendError(f"cannot use {plugin}: {field_name} of its BackendSpec is {value!r}; give {required}")


def _check_load(backend: Any, target: str) -> None:
    """Check that `load` takes the arguments that the core gives. Raises BackendError."""
    load = getattr(backend, "load", None)
    if not callable(load):
        raise BackendError(f"cannot use {target}: it lacks the method load(); see xcam.Backend")
    try:
        inspect.signature(load).bind(None, size=None, device=None, layout=None, weights=None)
    except TypeError as error:
        raise BackendError(
            f"cannot use {target}: load() does not take the arguments that it is given: {error}; write "
            "load(self, source, *, size=None, device=None, layout=None, weights=None)"
        ) from error


def _loads(spec: BackendSpec, source: Any) -> bool:
    if isinstance(source, Path):
        is_folder = any((source / name).is_file() for name in spec.folders)
        return is_folder or (source.name.lower().endswith(spec.suffixes) if spec.suffixes else False)
    if isinstance(source, str):
        return source in DEMOS or source.partition(":")[0] in spec.schemes or (spec.zoo and ":" not in source)
    # A live model: its framework is loaded already, so its type is compared by name and nothing is imported.
    return _distance(spec, source) is not None


def _distance(spec: BackendSpec, source: Any) -> int | None:
    """Return the position of the first type that the spec names among the source's type and ancestors, or None."""
    names = [f"{cls.__module__}.{cls.__qualname__}" for cls in type(source).__mro__]
    return next((i for i, name in enumerate(names) if name in spec.model_types), None)


@cache
def registry() -> Registry:
    """Return the installed backends."""
    return Registry(entry_points(group=GROUP))


def list_backends() -> Mapping[str, Plugin]:
    """Return every backend by name, also missing and broken ones. Imports no framework."""
    return registry().plugins


def described(name: str) -> str:
    """Return `backend 'jax' (xcam-jax 0.1)`: a backend with the distribution that an error is to be reported to."""
    plugin = registry().plugins.get(name)
    return f"backend {name!r}{f' ({plugin.distribution} {plugin.version})' if plugin and plugin.version else ''}"
