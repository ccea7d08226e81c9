"""`xcam demo`, as it is typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from typed import Result
from xcam import demo, pictures


def test_demo_writes_a_picture_on_which_the_shape_is_lit(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run("demo", "-b", "keras")
    assert result.status == 0, result.err
    name = demo.pictures()[0].stem.split("-")[-1]
    assert f"{name} (" in result.out
    assert "wrote xcam-demo.png" in result.out
    assert pictures.read(tmp_path / "xcam-demo.png").shape == pictures.read(demo.pictures()[0]).shape
