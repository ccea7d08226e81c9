"""Smoke test of the wheel. `make wheel` runs it where only the wheel and its dependencies are installed."""

import json
import subprocess
import sys
from pathlib import Path

import xcam
from xcam.models import demo


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("xcam"), *arguments], capture_output=True, text=True, check=False
    )


assert "site-packages" in xcam.__file__, xcam.__file__
assert len(demo.image_paths()) >= 3
assert demo.network().labels[0] == "disc"
assert run("--help").returncode == 0
plugins = {row["name"]: row for row in json.loads(run("backends", "--json").stdout)}
assert plugins["keras"]["state"] == "missing", plugins
assert plugins["keras"]["remedy"] == 'pip install "xcam-explain[keras]"', plugins
failed = run("-b", "keras", str(demo.image_paths()[0]))
assert failed.returncode == 2, failed
assert "xcam-explain[keras]" in failed.stderr, failed.stderr
assert "Traceback" not in failed.stderr, failed.stderr
print("the wheel works in an empty environment")
