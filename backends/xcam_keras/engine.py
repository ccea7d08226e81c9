"""Which engine Keras runs on, or would run on. Imports neither Keras nor an engine before it is asked to."""

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
"""What this backend runs on, in Keras' own words; each is the name of the module that must be installed, too."""


def name() -> str:
    """The engine of Keras, if it is imported; else the one that it will choose: KERAS_BACKEND, keras.json, TensorFlow."""
    keras = sys.modules.get("keras")
    if hasattr(keras, "backend"):
        return keras.backend.backend()
    return os.environ.get("KERAS_BACKEND") or _configured() or "tensorflow"


def _configured() -> str | None:
    """What keras.json says, which Keras reads before the environment."""
    home = os.path.expanduser("~")
    folder = os.environ.get("KERAS_HOME") or os.path.join(home if os.access(home, os.W_OK) else "/tmp", ".keras")
    try:
        return json.loads(Path(folder, "keras.json").expanduser().read_text()).get("backend")
    except (OSError, ValueError, AttributeError):
        return None


def requires() -> tuple[str, ...]:
    """The modules that must be installed. An engine that Keras may have and this backend has not asks for none here."""
    return ("keras", name()) if name() in ENGINES else ("keras",)


def remedy() -> str | None:
    """What to do where a module of `requires` is missing; None: install the extra, which is Keras on TensorFlow."""
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
    """The module for the engine that Keras runs on: see xcam_keras.engines. Raises BackendError."""
    from xcam.errors import BackendError

    if name() not in ENGINES:
        raise BackendError(
            f"Keras runs on {name()} here, and this backend on {', '.join(ENGINES)}; set KERAS_BACKEND to one of them "
            "before Keras is imported"
        )
    return importlib.import_module(f"xcam_keras.engines.{name()}")
