"""`xcam export` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from typed import Result


def test_the_file_keeps_its_layer_and_errors_are_one_line(
    run: Callable[..., Result], image: Path, tmp_path: Path
) -> None:
    path = tmp_path / "e.onnx"
    done = run("export", "-m", "demo", "-b", "onnx", "-l", "conv4", "--heatmap", "gradcam", "-o", path)
    assert (done.status, done.out) == (0, f"wrote {path}\n")
    result = run("-m", path, "--json", "-o", tmp_path / "cam.png", image)
    assert (result.status, json.loads(result.out)["layer"]) == (0, "conv4")
    before = path.read_bytes()
    for command in (
        ["export", "-m", path, "-o", path],
        ["export", "-m", path, "-o", tmp_path / "f.onnx"],
        ["export", "-m", image, "-b", "onnx", "-o", tmp_path / "f.onnx"],
        ["export", "-m", "demo", "-b", "onnx", "--heatmap", "nope", "-o", tmp_path / "f.onnx"],
        ["export", "-m", "demo", "-b", "onnx", "-l", "a\nb", "-o", tmp_path / "f.onnx"],
        ["export", "-m", "demo", "-b", "keras", "-l", "nope", "-o", tmp_path / "f.onnx"],
    ):
        refused = run(*command)
        assert (refused.status, refused.out, refused.err.count("\n")) == (2, "", 1), refused.err
        assert refused.err.startswith("xcam: ")
    assert path.read_bytes() == before
    assert not (tmp_path / "f.onnx").exists()
