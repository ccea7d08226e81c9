"""The engine that Keras runs on, or will run on. Importing this module imports neither Keras nor an engine."""

from __future__ import annotations

import importlib
import json
import os
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ENGINES = ("tensorflow", "torch", "jax")
"""Supported engines, by Keras' names, which are also the names of their modules."""


def name() -> str:
    """Return the engine of Keras if it is imported; else the one that it will choose: KERAS_BACKEND, keras.json, TensorFlow."""
    keras: Any = sys.modules.get("keras")
    if hasattr(keras, "backend"):
        return str(keras.backend.backend())
    return os.environ.get("KERAS_BACKEND") or _configured() or "tensorflow"


def _configured() -> str | None:
    """Return the engine that keras.json names."""
    home = os.path.expanduser("~")
    folder = os.environ.get("KERAS_HOME") or os.path.join(home if os.access(home, os.W_OK) else "/tmp", ".keras")
    try:
        backend: str | None = json.loads(Path(folder, "keras.json").expanduser().read_text()).get("backend")
        return backend
    except (OSError, ValueError, AttributeError):
        return None


def requires() -> tuple[str, ...]:
    """Return the modules that must be installed; Keras alone where its engine is not supported."""
    return ("keras", name()) if name() in ENGINES else ("keras",)


def remedy() -> str | None:
    """Return the remedy where a module of `requires` is missing; None: install the extra, which is Keras on TensorFlow."""
    wanted = name()
    missing = [module for module in requires() if not _installed(module)]
    others = [engine for engine in ENGINES if engine != wanted and _installed(engine)]
    if missing == [wanted] and others:
        return f"set KERAS_BACKEND={others[0]}, which is installed, or: pip install {wanted}"
    return f"pip install {' '.join(missing)}" if missing and wanted != "tensorflow" else None


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


@cache
def engine() -> Any:
    """Return the module for the engine that Keras runs on: see xcam_keras.engines. Raises BackendError."""
    from xcam.errors import BackendError

    if name() not in ENGINES:
        raise BackendError(
            f"cannot use Keras on {name()}: the supported engines are {', '.join(ENGINES)}; set KERAS_BACKEND to one of "
            "them before Keras is imported"
        )
    return importlib.import_module(f"xcam_keras.engines.{name()}")
