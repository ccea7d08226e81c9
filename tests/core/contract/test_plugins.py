"""Discovery of backends: failures are isolated, imports lazy, errors clear."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import fake
import xcam
from xcam import BackendError
from xcam.contract.plugins import Registry, hookimpl


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, "xcam")


def module(monkeypatch: pytest.MonkeyPatch, file: str, **changes: Any) -> EntryPoint:
    """An importable light module whose hook returns a changed spec."""
    light = type(sys)(file)
    light.xcam_backend = hookimpl(lambda: fake.spec(**changes))
    light.xcam_backend.__name__ = "xcam_backend"
    monkeypatch.setitem(sys.modules, file, light)
    return point(file, file)


def test_a_plugin_that_fails_does_not_affect_the_others() -> None:
    registry = Registry([point("bad", "no_such_module_at_all"), point("fake", "fake")])
    assert registry.plugins["bad"].state == "broken"
    assert "no_such_module_at_all" in registry.plugins["bad"].remedy
    assert registry.plugins["fake"].state == "available"
    assert isinstance(registry.load("fake"), fake.FakeBackend)
    with pytest.raises(BackendError, match="'bad': it is installed but broken: ModuleNotFoundError") as caught:
        registry.load("bad")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_missing_is_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry([module(monkeypatch, "fake_missing", requires=("no_such_framework",), extra="torch")])
    plugin = registry.plugins["fake"]
    assert plugin.state == "missing"
    assert plugin.remedy == 'pip install "xcam-explain[torch]"'
    with pytest.raises(BackendError, match=r'no_such_framework is not installed; pip install "xcam-explain'):
        registry.load("fake")


def test_broken_when_the_target_fails_even_with_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry([module(monkeypatch, "fake_broken", target="no_such_target:Backend")])
    assert registry.plugins["fake"].state == "available"
    with pytest.raises(BackendError, match="installed but broken") as caught:
        registry.load("fake")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert registry.plugins["fake"].state == "broken"


def test_a_name_that_is_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry([point("fake", "fake"), module(monkeypatch, "fake_twin")])
    assert registry.plugins["fake"].state == "available"
    twin = registry.plugins["fake (fake_twin)"]
    assert twin.state == "broken"
    assert "is already used by" in twin.remedy


def test_a_module_without_the_hook_or_with_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = type(sys)("fake_empty")
    monkeypatch.setitem(sys.modules, "fake_empty", empty)
    assert "it has no hook xcam_backend" in Registry([point("e", "fake_empty")]).plugins["e"].remedy
    empty.xcam_backend = hookimpl(lambda: "keras")
    empty.xcam_backend.__name__ = "xcam_backend"
    assert (
        "xcam_backend returned str; return a BackendSpec" in Registry([point("e", "fake_empty")]).plugins["e"].remedy
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("xcam_backend", {}, "cannot use fake_hook: xcam_backend returned NoneType; return a BackendSpec"),
        (
            "xcam_backends",
            {},
            "cannot use fake_hook: it has no hook xcam_backend, only xcam_backends; mark a function",
        ),
        (
            "xcam_backend",
            {"hookwrapper": True},
            "cannot use fake_hook: its xcam_backend is a wrapper around other hooks; mark",
        ),
        (
            "xcam_backend",
            {"wrapper": True},
            "cannot use fake_hook: its xcam_backend is a wrapper around other hooks; mark",
        ),
    ],
)
def test_a_hook_that_returns_no_spec(monkeypatch: pytest.MonkeyPatch, name: str, options: Any, message: str) -> None:
    def wrapper() -> Any:
        yield

    def none() -> None:
        pass

    function: Any = wrapper if options else none
    function.__name__ = name
    odd = type(sys)("fake_hook")
    setattr(odd, name, hookimpl(function, **options))
    monkeypatch.setitem(sys.modules, "fake_hook", odd)
    registry = Registry([point("odd", "fake_hook"), point("fake", "fake")])
    assert f"BackendError: {message}" in registry.plugins["odd"].remedy
    assert registry.plugins["fake"].state == "available"


PRINTING = """
import sys
from importlib import metadata

sys.path.insert(0, sys.argv[1])
points = metadata.entry_points(group="xcam")
metadata.entry_points = lambda **_: [*points, metadata.EntryPoint("printing", "printing", "xcam")]
import xcam_cli

xcam_cli.main(["backends", *sys.argv[2:]])
"""


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_prints_of_a_light_module_are_not_part_of_the_output(tmp_path: Path, options: list[str]) -> None:
    light = "print('hello')\nimport xcam\n@xcam.hookimpl\ndef xcam_backend():\n    print('ho')\n"
    (tmp_path / "printing.py").write_text(f"{light}    raise RuntimeError('one\\ntwo')\n")
    command = [sys.executable, "-c", PRINTING, str(tmp_path), *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stderr.split() == ["hello", "ho"]
    assert "hello" not in done.stdout
    if options:
        row = next(row for row in json.loads(done.stdout) if row["name"] == "printing")
        assert (row["state"], row["remedy"]) == ("broken", "RuntimeError: one")
    else:
        rows = done.stdout.rstrip().splitlines()
        assert rows[-1].split() == ["printing", "broken", "printing", "RuntimeError:", "one"]


def test_the_choice_of_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    other = module(monkeypatch, "fake_other", name="other", suffixes=(".fake", ".o"), model_types=("fake.FakeModel",))
    registry = Registry([point("fake", "fake"), other])
    assert registry.choose(Path("a.o")) == "other"
    assert registry.choose(fake.FakeModel()) == "other"
    assert registry.choose(Path("a.o"), "fake") == "fake"
    with pytest.raises(BackendError, match=r"for .*a\.fake.: fake and other load it; name one"):
        registry.choose(Path("a.fake"))
    with pytest.raises(
        BackendError, match=r"cannot choose a backend for 'a\.h5': the suffixes of model files are \.fake, \.o"
    ):
        registry.choose(Path("a.h5"))
    with pytest.raises(BackendError, match="cannot choose a backend for a int"):
        registry.choose(3)
    with pytest.raises(BackendError, match="unknown backend 'kears'"):
        registry.choose("x", "kears")


def test_a_folder_is_a_model_by_a_file_in_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    registry = Registry([point("fake", "fake"), module(monkeypatch, "other", name="other", folders=("model.mark",))])
    with pytest.raises(BackendError, match="cannot choose a backend"):
        registry.choose(tmp_path)
    (tmp_path / "model.mark").touch()
    assert registry.choose(tmp_path) == "other"


@pytest.mark.frameworks
def test_xcams_own_backends_are_found() -> None:
    assert xcam.list_backends()["keras"].state == "available"
    assert xcam.list_backends()["keras"].distribution == "xcam-explain"


FRAMEWORKS = {"keras", "tensorflow", "torch", "onnx", "onnxruntime", "jax"}


@pytest.mark.parametrize(
    "code",
    [
        "import xcam",
        "import xcam; xcam.list_backends(); xcam.list_methods(); [p.state for p in xcam.list_backends().values()]",
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
