"""`xcam layers`, `xcam methods` and `xcam backends` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable

from typed import Result


def test_layers_and_lists(run: Callable[..., Result]) -> None:
    rows = json.loads(run("layers", "-b", "keras", "-m", "demo", "--json").out)
    assert [row["name"] for row in rows if row["default"]] == ["conv5"]
    assert next(row for row in rows if row["name"] == "conv5")["shape"] == [64, 16, 16]
    shown = run("layers", "-b", "keras", "-m", "demo").out
    assert "64×16×16" in shown
    assert "default" in shown
    assert {"gradcam", "hirescam", "layercam", "random"} <= {
        r["name"] for r in json.loads(run("methods", "--json").out)
    }
    assert {r["name"]: r["state"] for r in json.loads(run("backends", "--json").out)}["keras"] == "available"
