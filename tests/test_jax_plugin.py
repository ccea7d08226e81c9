"""The plugin for JAX, a separate distribution, installed with xcam in a fresh environment."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fresh import Fresh

ROOT = Path(__file__).parents[1]
PLUGIN = ROOT / "examples" / "xcam-jax"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    """Return an environment with both wheels installed; it shares the frameworks of the tests' environment."""
    folder = tmp_path_factory.mktemp("jax")
    environment = Fresh(folder / "venv")
    environment.run(f"pip install -q --ignore-installed {ROOT} {PLUGIN}", folder)
    paths = environment.run("python -c 'import xcam, xcam_jax.plugin as p; print(xcam.__file__, p.__file__)'", folder)
    assert paths.count(str(folder / "venv")) == 2, paths
    return environment


@pytest.mark.slow
def test_the_installed_plugin_is_listed(fresh: Fresh, tmp_path: Path) -> None:
    rows = json.loads(fresh.run("xcam backends --json", tmp_path))
    assert {"name": "jax", "state": "available", "from": "xcam-jax", "remedy": ""} in rows
    code = "import sys, xcam; xcam.list_backends(); print(sorted({'jax', 'flax'} & set(sys.modules)))"
    assert fresh.run(f'python -c "{code}"', tmp_path).strip() == "[]"


@pytest.mark.slow
def test_the_demo_agrees_with_other_backends(fresh: Fresh, tmp_path: Path) -> None:
    alone = fresh.run("xcam demo -b jax", tmp_path)
    assert "93.51%  disc (0)" in alone
    assert "gradcam of demo (jax) at conv5" in alone
    assert (tmp_path / "xcam-demo.png").stat().st_size > 10_000
    assert "demo (onnx) and demo (jax): identical" in fresh.run("xcam demo", tmp_path)


@pytest.mark.slow
def test_the_plugin_passes_its_tests(fresh: Fresh, tmp_path: Path) -> None:
    """Two networks of the conformance suite are enough here; the whole suite takes minutes."""
    selection = "test_plugin or (TestFunctions and residual) or (TestModules and probable)"
    command = f"python -m pytest -q -p no:cacheprovider -k '{selection}' {PLUGIN}"
    match = re.search(r"^(\d+) passed, \d+ deselected", fresh.run(command, tmp_path), re.MULTILINE)
    assert match
    assert int(match[1]) > 50


def test_the_plugin_has_less_than_300_lines() -> None:
    """Authors of plugins read it as an example. Blank lines and docstrings are not counted."""
    count = 0
    for path in (PLUGIN / "xcam_jax").glob("*.py"):
        text = re.sub(r'^\s*""".*?"""$', "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        count += sum(bool(line.strip()) for line in text.splitlines())
    assert 150 < count < 300
