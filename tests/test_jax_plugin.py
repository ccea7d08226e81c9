"""The plugin for JAX, a distribution of its own, installed beside xcam in a fresh environment: found, used, tested."""

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
    """An environment with the two wheels; frameworks are seen where the tests have them."""
    folder = tmp_path_factory.mktemp("jax")
    made = Fresh(folder / "venv")
    made.run(f"pip install -q --ignore-installed {ROOT} {PLUGIN}", folder)
    where = made.run("python -c 'import xcam, xcam_jax.plugin as p; print(xcam.__file__, p.__file__)'", folder)
    assert where.count(str(folder / "venv")) == 2, where
    return made


@pytest.mark.slow
def test_it_is_found_as_soon_as_it_is_installed(fresh: Fresh, tmp_path: Path) -> None:
    rows = json.loads(fresh.run("xcam backends --json", tmp_path))
    assert {"name": "jax", "state": "available", "from": "xcam-jax", "remedy": ""} in rows
    code = "import sys, xcam; xcam.list_backends(); print(sorted({'jax', 'flax'} & set(sys.modules)))"
    assert fresh.run(f'python -c "{code}"', tmp_path).strip() == "[]"


@pytest.mark.slow
def test_the_demo_explains_with_it_and_it_agrees_with_the_others(fresh: Fresh, tmp_path: Path) -> None:
    alone = fresh.run("xcam demo -b jax", tmp_path)
    assert "93.51%  disc (0)" in alone
    assert "gradcam of demo (jax) at conv5" in alone
    assert (tmp_path / "xcam-demo.png").stat().st_size > 10_000
    assert "demo (onnx) and demo (jax): identical" in fresh.run("xcam demo", tmp_path)


@pytest.mark.slow
def test_it_passes_its_own_tests(fresh: Fresh, tmp_path: Path) -> None:
    """Of the conformance suite a skip connection in a function, and a module with a softmax: the whole takes minutes."""
    some = "test_plugin or (TestFunctions and residual) or (TestModules and probable)"
    words = f"python -m pytest -q -p no:cacheprovider -k '{some}' {PLUGIN}"
    found = re.search(r"^(\d+) passed, \d+ deselected", fresh.run(words, tmp_path), re.MULTILINE)
    assert found
    assert int(found[1]) > 50


def test_it_stays_small() -> None:
    """It is what authors of plugins read: less than 250 lines besides blank ones and docstrings."""
    count = 0
    for path in (PLUGIN / "xcam_jax").glob("*.py"):
        text = re.sub(r'^\s*""".*?"""$', "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        count += sum(bool(line.strip()) for line in text.splitlines())
    assert 150 < count < 250
