"""Finding backends: guarded, lazy, and plain about what is wrong."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import fake
import xcam
from xcam import BackendError
from xcam.plugins import Registry, hookimpl


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, "xcam")


def module(monkeypatch: pytest.MonkeyPatch, file: str, **changes: Any) -> EntryPoint:
    """An importable light module whose hook returns a changed spec."""
    made = type(sys)(file)
    made.xcam_backend = hookimpl(lambda: fake.spec(**changes))
    made.xcam_backend.__name__ = "xcam_backend"
    monkeypatch.setitem(sys.modules, file, made)
    return point(file, file)


def test_a_plugin_that_fails_takes_no_other_down() -> None:
    registry = Registry([point("bad", "no_such_module_at_all"), point("fake", "fake")])
    assert registry.plugins["bad"].state == "broken"
    assert "no_such_module_at_all" in registry.plugins["bad"].remedy
    assert registry.plugins["fake"].state == "available"
    assert isinstance(registry.load("fake"), fake.FakeBackend)
    with pytest.raises(BackendError, match="'bad' is installed but broken: ModuleNotFoundError") as caught:
        registry.load("bad")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_missing_is_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry([module(monkeypatch, "fake_missing", requires=("no_such_framework",), extra="torch")])
    plugin = registry.plugins["fake"]
    assert plugin.state == "missing"
    assert plugin.remedy == 'pip install "xcam-explain[torch]"'
    with pytest.raises(BackendError, match=r'needs no_such_framework, not installed here: pip install "xcam-explain'):
        registry.load("fake")


def test_broken_when_the_target_fails_even_with_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry([module(monkeypatch, "fake_broken", target="no_such_target:Backend")])
    assert registry.plugins["fake"].state == "available"
    with pytest.raises(BackendError, match="installed but broken") as caught:
        registry.load("fake")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert registry.plugins["fake"].state == "broken"


def test_a_name_taken_twice_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry([point("fake", "fake"), module(monkeypatch, "fake_twin")])
    assert registry.plugins["fake"].state == "available"
    twin = registry.plugins["fake (fake_twin)"]
    assert twin.state == "broken"
    assert "has named already" in twin.remedy


def test_a_module_without_the_hook_or_with_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = type(sys)("fake_empty")
    monkeypatch.setitem(sys.modules, "fake_empty", empty)
    assert "implements no hook" in Registry([point("e", "fake_empty")]).plugins["e"].remedy
    empty.xcam_backend = hookimpl(lambda: "keras")
    empty.xcam_backend.__name__ = "xcam_backend"
    assert "returned str, not a BackendSpec" in Registry([point("e", "fake_empty")]).plugins["e"].remedy


def test_choosing(monkeypatch: pytest.MonkeyPatch) -> None:
    other = module(monkeypatch, "fake_other", name="other", suffixes=(".fake", ".o"), model_types=("fake.FakeModel",))
    registry = Registry([point("fake", "fake"), other])
    assert registry.choose(Path("a.o")) == "other"
    assert registry.choose(fake.FakeModel()) == "other"
    assert registry.choose(Path("a.o"), "fake") == "fake"
    with pytest.raises(BackendError, match="can be read by fake and other; say which"):
        registry.choose(Path("a.fake"))
    with pytest.raises(BackendError, match=r"no backend reads 'a\.h5'; they read \.fake, \.o"):
        registry.choose(Path("a.h5"))
    with pytest.raises(BackendError, match="no backend reads a int"):
        registry.choose(3)
    with pytest.raises(BackendError, match="no backend 'kears'"):
        registry.choose("x", "kears")


def test_the_backends_in_the_box_are_found() -> None:
    assert xcam.backends()["keras"].state == "available"
    assert xcam.backends()["keras"].distribution == "xcam-explain"


FRAMEWORKS = {"keras", "tensorflow", "torch", "onnx", "onnxruntime", "jax"}


@pytest.mark.parametrize(
    "code",
    [
        "import xcam",
        "import xcam; xcam.backends(); xcam.methods(); [p.state for p in xcam.backends().values()]",
        "import xcam_cli; xcam_cli.main(['--help'])",
        "import xcam_cli; xcam_cli.main(['backends'])",
        "import xcam_cli; xcam_cli.main(['methods'])",
    ],
)
def test_no_framework_is_imported(code: str) -> None:
    script = f"""
import sys
try:
    {code.replace("; ", chr(10) + "    ")}
except SystemExit as stop:
    assert not stop.code, stop.code
assert not {FRAMEWORKS!r} & set(sys.modules), {FRAMEWORKS!r} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)
