"""What tells one run from another, and the words for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from xcam.dataset.job import Job, Opening, differing


def write(place: Path, text: str = "1") -> None:
    place.parent.mkdir(exist_ok=True)
    place.write_text(text)


@pytest.mark.parametrize(
    ("source", "files", "changed", "same"),
    [
        ("m.onnx", ["m.onnx"], "m.onnx", False),
        ("onnx:m.onnx", ["m.onnx"], "m.onnx", False),
        ("m.onnx", ["m.onnx", "m.onnx.data"], "m.onnx.data", False),
        ("m.onnx", ["m.onnx", "m.bin"], "m.bin", False),
        ("m.onnx", ["m.onnx", "m_data/a.jpg"], "m.onnx", False),  # a folder of that name is none of its weights
        ("m.onnx", ["m.onnx", "m_data/a.jpg"], "m_data/a.jpg", True),
        ("m.onnx", ["m.onnx", "m.txt"], "m.txt", True),
        ("m.onnx", ["m.onnx", "n.data"], "n.data", True),
        ("hf:./folder", ["folder/config.json", "folder/w.safetensors"], "folder/w.safetensors", False),
        ("my_own_models:build", ["my_own_models.py"], "my_own_models.py", False),
        ("demo", ["other.txt"], "other.txt", True),
        ("resnet50", ["other.txt"], "other.txt", True),
    ],
)
def test_another_content_is_another_model(
    source: str, files: list[str], changed: str, same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in files:
        write(tmp_path / name)
    before = Opening(source).facts()
    write(tmp_path / changed, "2")
    assert (Opening(source).facts() == before) is same
    assert ("sha256" in before) is (source not in ("demo", "resnet50"))


def test_a_backend_may_stand_ahead_of_the_name() -> None:
    assert Opening("onnx:demo").facts() == Opening("demo", "onnx").facts()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda: Job(method="layercam"), "method is 'layercam', and was 'gradcam'"),
        (lambda: Job(rivals=True), "one of the two is asked for a report (--report), and the other is not"),
        (lambda: Job(pictures={}), "overlays are drawn in another way, or in one of the two alone (--pictures)"),
    ],
)
def test_what_differs_in_words(change: Callable[[], Job], said: str) -> None:
    assert differing(change().facts(), Job().facts()) == [said]
