"""`xcam export`, as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from typed import Result


def test_the_file_remembers_its_layer_and_what_cannot_be_exported_is_one_line(
    run: Callable[..., Result], picture: Path, tmp_path: Path
) -> None:
    path = tmp_path / "e.onnx"
    done = run("export", "-m", "demo", "-b", "onnx", "-l", "conv4", "--heatmap", "gradcam", "-o", path)
    assert (done.status, done.out) == (0, f"wrote {path}\n")
    told = run("-m", path, "--json", "-o", tmp_path / "cam.png", picture)
    assert (told.status, json.loads(told.out)["layer"]) == (0, "conv4")
    before = path.read_bytes()
    for words in (
        ["export", "-m", path, "-o", path],
        ["export", "-m", path, "-o", tmp_path / "f.onnx"],
        ["export", "-m", picture, "-b", "onnx", "-o", tmp_path / "f.onnx"],
        ["export", "-m", "demo", "-b", "onnx", "--heatmap", "nope", "-o", tmp_path / "f.onnx"],
        ["export", "-m", "demo", "-b", "onnx", "-l", "a\nb", "-o", tmp_path / "f.onnx"],
        ["export", "-m", "demo", "-b", "keras", "-l", "nope", "-o", tmp_path / "f.onnx"],
    ):
        said = run(*words)
        assert (said.status, said.out, said.err.count("\n")) == (2, "", 1), said.err
        assert said.err.startswith("xcam: ")
    assert path.read_bytes() == before
    assert not (tmp_path / "f.onnx").exists()
