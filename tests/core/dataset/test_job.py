"""The facts that identify a run, and descriptions of differences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import xcam
from sets import SmallModel
from xcam.dataset import job
from xcam.dataset.job import Job, ModelSource, differences


def write(path: Path, text: str = "1") -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("source", "files", "changed", "same"),
    [
        ("m.onnx", ["m.onnx"], "m.onnx", False),
        ("onnx:m.onnx", ["m.onnx"], "m.onnx", False),
        ("m.onnx", ["m.onnx", "m.onnx.data"], "m.onnx.data", False),
        ("m.onnx", ["m.onnx", "m.bin"], "m.bin", False),
        ("m.onnx", ["m.onnx", "m_data/a.jpg"], "m.onnx", False),  # a folder of that name does not hold its weights
        ("m.onnx", ["m.onnx", "m_data/a.jpg"], "m_data/a.jpg", True),
        ("m.onnx", ["m.onnx", "m.txt"], "m.txt", True),
        ("m.onnx", ["m.onnx", "n.data"], "n.data", True),
        ("hf:./folder", ["folder/config.json", "folder/w.safetensors"], "folder/w.safetensors", False),
        ("my_own_models:build", ["my_own_models.py"], "my_own_models.py", False),
        ("demo", ["other.txt"], "other.txt", True),
        ("resnet50", ["other.txt"], "other.txt", True),
    ],
)
def test_other_content_is_another_model(
    source: str, files: list[str], changed: str, same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in files:
        write(tmp_path / name)
    before = ModelSource(source).facts()
    write(tmp_path / changed, "2")
    assert (ModelSource(source).facts() == before) is same
    assert ("sha256" in before) is (source not in ("demo", "resnet50"))


def test_a_backend_may_precede_the_name() -> None:
    assert ModelSource("onnx:demo").facts() == ModelSource("demo", "onnx").facts()


def test_a_changed_value_of_another_input_or_changed_texts_make_another_model(tmp_path: Path) -> None:
    np.save(tmp_path / "meta.npy", [1])
    np.savez(tmp_path / "texts.npz", embeddings=np.eye(2))
    values = {"meta": str(tmp_path / "meta.npy"), "domain": "2"}
    source = ModelSource("demo", "onnx", {"inputs": values, "embeddings": str(tmp_path / "texts.npz")})
    before = source.facts()
    assert "inputs" not in before  # these are the images in a record
    other = ModelSource(
        "demo", "onnx", {"inputs": values | {"domain": "1"}, "embeddings": str(tmp_path / "texts.npz")}
    )
    assert other.facts() != before
    np.save(tmp_path / "meta.npy", [2])
    changed = source.facts()
    assert changed != before
    np.savez(tmp_path / "texts.npz", embeddings=np.eye(2) * 2)
    assert source.facts() != changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: Job(method="layercam"), "method is 'layercam', and was 'gradcam'"),
        (lambda: Job(rivals=True), "only one of the two has a report (--report)"),
        (lambda: Job(overlays={}), "overlays are drawn differently, or by only one of the two (--overlays)"),
    ],
)
def test_descriptions_of_differences(change: Callable[[], Job], message: str) -> None:
    assert differences(change().facts(), Job().facts()) == [message]


def test_a_changed_model_file_is_another_run(folder: Path, tmp_path: Path) -> None:
    import onnx

    from xcam_onnx.demo import build

    model = build()[0] if isinstance(build(), tuple) else build()
    onnx.save(model, tmp_path / "m.onnx")
    request = {"model": tmp_path / "m.onnx", "inputs": str(folder), "out": tmp_path / "out"}
    load_options = {"preprocess": "tf"}
    xcam.batch(**request, load_options=load_options)
    model.doc_string = "changed"
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(xcam.InputError, match="sha256 is "):
        xcam.batch(**request, load_options=load_options)


class Spinning(SmallModel):
    """A model that records calls of disable_spinning."""

    def __init__(self) -> None:
        super().__init__()
        self.settings: list[str] = []

    def disable_spinning(self) -> None:
        self.settings.append("disable_spinning")


def test_a_given_model_keeps_its_settings_and_a_loaded_one_does_not_spin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((8, 9, 3), 99, np.uint8))
    given_model = Spinning()
    before = dict(vars(given_model))
    options: dict[str, dict[str, Any]] = {"overlays": {"alpha": 0.5}, "method_options": {}}
    xcam.batch(given_model, tmp_path / "a.png", out=tmp_path / "out", layer="features", target="cat", **options)
    assert given_model.settings == []
    assert vars(given_model) == before
    assert options == {"overlays": {"alpha": 0.5}, "method_options": {}}
    monkeypatch.setattr(job, "load", lambda *_, **__: Spinning())
    loaded = ModelSource("any").load()
    assert isinstance(loaded, Spinning)
    assert loaded.settings == ["disable_spinning"]
