"""Modules: no import circles, and every dotted path of a module gives that module."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "xcam": ROOT / "core",
    "xcam_cli": ROOT / "cli",
    "xcam_keras": ROOT / "backends",
    "xcam_onnx": ROOT / "backends",
    "xcam_openvino": ROOT / "backends",
    "xcam_torch": ROOT / "backends",
}


@cache
def imports(package: str) -> dict[str, set[str]]:
    """Return each module of a package with the modules of the same package that it imports, inside functions too."""
    graph: Any = grimp.build_graph(package, cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return one import circle as module names, or an empty list."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def modules(package: str) -> list[str]:
    """Return the names of all modules of a package, derived from their files."""
    folder = PACKAGES[package] / package
    return [
        ".".join(path.relative_to(PACKAGES[package]).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(folder.rglob("*.py"))
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_two_modules_import_each_other(package: str) -> None:
    assert set(imports(package)) == set(modules(package))
    assert cycle(imports(package)) == []


def test_a_circle_is_reported_also_through_a_third_module() -> None:
    assert set(cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}
    assert cycle({"a": {"b"}, "b": {"c"}, "c": set(), "d": {"a"}}) == []


def test_the_core_has_at_most_fourteen_entries() -> None:
    """Among them `callbacks`, whose path users write: from xcam.callbacks import Heatmaps."""
    entries = {path.stem for path in (ROOT / "core" / "xcam").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert len(entries - {"__init__", "__pycache__"}) <= 14


@pytest.mark.parametrize("name", [name for package in ("xcam", "xcam_cli") for name in modules(package)])
def test_no_function_hides_a_module(name: str) -> None:
    """After `import a.b.c`, the expression `a.b.c` is the module."""
    module = importlib.import_module(name)
    first, *others = name.split(".")
    value: Any = importlib.import_module(first)
    for attribute in others:
        value = getattr(value, attribute)
    assert value is module
    assert value.__name__ == name


@pytest.mark.parametrize("package", ["xcam_keras", "xcam_onnx", "xcam_openvino", "xcam_torch"])
def test_no_package_of_a_backend_binds_the_name_of_its_module(package: str) -> None:
    """No `__init__` imports an object with the name of one of its modules; read from the source, without the framework."""
    import ast

    for path in (PACKAGES[package] / package).rglob("__init__.py"):
        siblings = {info.name for info in pkgutil.iter_modules([str(path.parent)])}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                dotted = ".".join(path.parent.relative_to(PACKAGES[package]).parts)
                bound = {alias.asname or alias.name for alias in node.names if node.module != dotted}
                assert bound & siblings == set(), path
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert node.name not in siblings, path
