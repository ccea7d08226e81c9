"""`xcam demo` on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import xcam_cli.demo
from typed import Result
from xcam import InputError
from xcam.images import reading
from xcam.models import demo


def test_demo_writes_an_overlay(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run("demo", "-b", "keras")
    assert result.status == 0, result.err
    name = demo.image_paths()[0].stem.split("-")[-1]
    assert f"{name} (" in result.out
    assert "wrote xcam-demo.png" in result.out
    assert reading.read(tmp_path / "xcam-demo.png").shape == reading.read(demo.image_paths()[0]).shape


def refusing(*refused: str) -> Callable[..., object]:
    opened = xcam_cli.demo.open_model

    def open_model(backend: str, model: str) -> object:
        if backend in refused:
            raise InputError(f"{model} is not a Graph; give one")
        return opened(backend, model)

    return open_model


@pytest.mark.frameworks
def test_a_backend_without_the_demo_is_left_out(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plugin without the demo network is left out; the others are compared."""
    monkeypatch.setattr(xcam_cli.demo, "open_model", refusing("onnx"))
    result = run("demo")
    assert result.status == 0, result.err
    assert "xcam: onnx is left out: demo is not a Graph; give one" in result.err
    assert "demo (keras) and demo (torch): identical" in result.out
    assert "identical" in (tmp_path / "xcam-demo.html").read_text(encoding="utf-8")


def test_no_backend_has_the_demo(run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xcam_cli.demo, "open_model", refusing("onnx", "keras", "openvino", "torch"))
    result = run("demo")
    assert (result.status, result.out) == (2, "")
    assert result.err.endswith("xcam: demo is not a Graph; give one\n")
    assert not list(tmp_path.iterdir())
