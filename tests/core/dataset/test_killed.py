"""Runs that are killed, on one machine and on Ray: a later run completes them, and the result is that of an undisturbed run.

No clock decides when a process dies: it kills itself at a given call, in the middle of its work.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import xcam
from sets import write_set
from systems import sigkill
from xcam.dataset import cluster

pytestmark = [pytest.mark.slow, sigkill]
COUNT, BROKEN, PART = 400, 12, 20

KILLED = """
import importlib, os, signal, sys
from xcam_cli import main

module, name, number = sys.argv.pop(1), sys.argv.pop(1), int(sys.argv.pop(1))
owner = importlib.import_module(module)
function, calls = getattr(owner, name), []

def counted(*args, **options):
    calls.append(1)
    if len(calls) == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*args, **options)

setattr(owner, name, counted)
main()
"""
"""The command, killed at the given call of a function: MODULE NAME NUMBER ARGUMENTS…"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("set")
    write_set(path, COUNT, BROKEN)
    return path


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The table of an undisturbed run."""
    out = tmp_path_factory.mktemp("whole")
    result = xcam.batch("demo", str(folder), out=out, backend="onnx", part=PART)
    assert (result.images, result.failed) == (COUNT, BROKEN)
    return parts(out / "table")


def parts(table: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in table.glob("*.parquet")}


def test_three_kills(folder: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    """While images are read, while a part is renamed to its final name, and between two batches."""
    table = tmp_path / "out/table"
    arguments = ["batch", str(folder), "-b", "onnx", "-m", "demo", "-o", str(tmp_path / "out"), "--part", str(PART)]
    draw = random.Random(1)
    batches = PART // 8 + 1
    done: set[str] = set()
    for module, name, number in (
        ("xcam.dataset.storage", "read", draw.randint(6 * PART, 8 * PART)),
        ("os", "replace", draw.randint(2, 4)),
        ("xcam.dataset.worker", "explain_at", draw.randint(2 * batches, 4 * batches)),
    ):
        run = subprocess.run([sys.executable, "-c", KILLED, module, name, str(number), *arguments], check=False)
        assert run.returncode == -signal.SIGKILL, name
        before, done = done, set(parts(table))
        assert before < done < set(whole), name
        assert len(list(table.glob(".part-*"))) == (name == "replace"), "an unfinished part"
    subprocess.run([sys.executable, "-m", "xcam_cli", *arguments], check=True)
    assert parts(table) == whole
    assert not list(table.glob(".part-*"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray uses its own deprecated settings
def test_a_killed_worker_of_ray_costs_nothing_but_time(
    folder: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    killed = tmp_path / "killed"

    class Mortal(cluster.Explainer):  # defined here, so that it travels to the worker by value
        def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
            if part["number"] == 3 and not killed.exists():
                killed.write_text(str(os.getpid()))
                self.output.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
            return super().__call__(part)

    monkeypatch.setattr(cluster, "Explainer", Mortal)
    result = xcam.batch("demo", str(folder), out=tmp_path / "out", backend="onnx", part=PART, engine="ray")
    assert int(killed.read_text()) != os.getpid()
    assert (result.images, result.failed) == (COUNT, BROKEN)
    assert parts(tmp_path / "out/table") == whole
    assert pq.read_table(tmp_path / "out/table").num_rows == COUNT
