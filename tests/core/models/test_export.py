"""Export: the path is checked first, and only backends that can write ONNX are asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from fake import FakeModel
from xcam import InputError, ModelError, OptionError, export
from xcam.models.export import check_path


def test_paths(tmp_path: Path) -> None:
    assert check_path(str(tmp_path / "a.ONNX"), FakeModel()) == tmp_path / "a.ONNX"
    for name, message in (
        ("a.bin", "not the name of an ONNX file; give one that ends in .onnx"),
        ("none/a.onnx", "none does not exist; create it first"),
    ):
        with pytest.raises(InputError, match=message):
            export(FakeModel(), tmp_path / name)
    (tmp_path / "model.onnx").touch()
    with pytest.raises(InputError, match="it is the model itself; choose another name"):
        check_path(tmp_path / "model.onnx", str(tmp_path / "model.onnx"))


def test_a_backend_that_cannot_write_onnx(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot export fake: backend 'fake' cannot write ONNX; convert the model"):
        export(FakeModel(), tmp_path / "a.onnx")


def test_a_misspelt_argument(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"export\(\) has no option 'heatmaps'; nearest: heatmap"):
        export(FakeModel(), tmp_path / "a.onnx", heatmaps="gradcam")  # type: ignore[call-arg]
