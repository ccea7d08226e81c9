"""`pytest --without-frameworks`: skip tests that need a framework, where ONNX Runtime is the only one installed.

A test is skipped where it, one of its helpers or a backend imports a framework, and where it opens a backend whose
framework is missing. A module of the core that imports a framework fails as usual.
"""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from xcam import Backend
from xcam.contract import plugins

ROOT = Path(__file__).parents[2]
FRAMEWORKS = {"torch", "torchvision", "tensorflow", "keras", "jax", "flax", "transformers", "ray"}
MAY_IMPORT = ("tests", "backends/xcam_torch", "backends/xcam_keras")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--without-frameworks", action="store_true", help="skip tests that need a framework")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--without-frameworks"):
        sys.meta_path.insert(0, Finder())
        plugins.Registry.load = _load  # type: ignore[method-assign]


class Finder(importlib.abc.MetaPathFinder):
    """An import finder that skips the test which imports a framework, and returns no module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        name = fullname.partition(".")[0]
        if name in FRAMEWORKS:
            frame = sys._getframe(1)
            while frame.f_back and "importlib" in frame.f_code.co_filename:
                if frame.f_code.co_name == "find_spec" and "util" in frame.f_code.co_filename:
                    return None  # a question, not an import
                frame = frame.f_back
            importer = Path(frame.f_code.co_filename)
            if any(importer.is_relative_to(ROOT / folder) for folder in MAY_IMPORT):
                pytest.skip(f"needs {name}", allow_module_level=True)
        return None


def _load(self: plugins.Registry, name: str, original=plugins.Registry.load) -> Backend:  # type: ignore[no-untyped-def]
    plugin = self.plugins.get(name)
    if plugin and plugin.distribution == plugins.OWN and plugin.missing:
        pytest.skip(f"needs {', '.join(plugin.missing)}", allow_module_level=True)
    return original(self, name)
