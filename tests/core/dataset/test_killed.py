"""Runs that are killed, on one machine and on Ray: what they leave is gone on with, and nobody sees a difference."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

import xcam
from sets import write_set

pytestmark = pytest.mark.slow
COUNT, BROKEN = 2000, 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("set")
    write_set(place, COUNT, BROKEN)
    return place


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of an undisturbed run."""
    out = tmp_path_factory.mktemp("whole")
    done = xcam.batch("demo", str(folder), out, "onnx", part=100)
    assert (done.pictures, done.failed) == (COUNT, BROKEN)
    return out / "table"


def parts(table: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in table.glob("*.parquet")}


def test_three_kills_at_random(folder: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["batch", str(folder), "-b", "onnx", "-m", "demo", "-o", str(out), "--part", "100"]
    rng = random.Random(1)
    start = 0
    for _ in range(3):
        run = subprocess.Popen([sys.executable, "-m", "xcam_cli", *words])
        more = start + rng.randint(1, 4)
        while len(list((out / "table").glob("part-*.parquet"))) < more and run.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.random() / 5)  # somewhere within a part
        assert run.poll() is None, "it was done before it could be killed"
        run.send_signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
        start = len(list((out / "table").glob("part-*.parquet")))
        assert more <= start < COUNT // 100
    subprocess.run([sys.executable, "-m", "xcam_cli", *words], check=True)
    assert parts(out / "table") == parts(whole)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray uses its own deprecated settings
def test_a_killed_worker_of_ray_costs_nothing_but_time(folder: Path, whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    killed: list[int] = []

    def kill() -> None:
        for _ in range(3000):
            done = list((tmp_path / "out/table").glob("part-*.parquet"))
            if len(done) >= 3:
                for process in psutil.Process(os.getpid()).children(recursive=True):
                    if "MapWorker" in " ".join(process.cmdline()):
                        process.kill()
                        killed.append(process.pid)
                        return
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    thread.start()
    done = xcam.batch("demo", str(folder), tmp_path / "out", "onnx", part=100, engine="ray")
    thread.join()
    assert len(killed) == 1
    assert (done.pictures, done.failed) == (COUNT, BROKEN)
    assert parts(tmp_path / "out/table") == parts(whole)
    assert pq.read_table(tmp_path / "out/table").num_rows == COUNT
