"""Options that several commands share."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

import xcam
from typed import Result
from xcam_cli.options import Size

MODELS = """
import sys
import torch
from torch import nn


class Loud(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        print("hello from the model")
        return self.out(self.conv(x).mean(dim=(2, 3)))


class One(Loud):
    def forward(self, x):
        z = super().forward(x)
        if len(x) == 3:
            raise ValueError("three is too many")
        return z


def leave():
    sys.exit(0)
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models_of_the_command.py").write_text(MODELS)
    monkeypatch.delitem(sys.modules, "models_of_the_command", raising=False)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.frameworks
@pytest.mark.usefixtures("models")
def test_prints_of_a_model_do_not_reach_standard_output(run: Callable[..., Result], image: Path) -> None:
    result = run("-m", "models_of_the_command:Loud", "--size", "16", "--preprocess", "unit", "--json", image)
    assert json.loads(result.out)["index"] in (0, 1)
    assert "hello from the model" in result.err
    assert (
        json.loads(run("layers", "-m", "models_of_the_command:Loud", "--size", "16", "--json").out)[0]["name"]
        == "conv"
    )


@pytest.mark.frameworks
@pytest.mark.usefixtures("models")
def test_a_factory_that_exits_and_a_model_that_fails(run: Callable[..., Result], image: Path) -> None:
    left = run("-m", "models_of_the_command:leave", image)
    assert (left.status, left.err.count("\n")) == (2, 1)
    assert "models_of_the_command:leave() failed: SystemExit" in left.err
    for name in "abc":
        shutil.copy(image, image.with_name(f"{name}.png"))
    failed = run("-m", "models_of_the_command:One", "--size", "16", "--preprocess", "unit", "a.png", "b.png", "c.png")
    assert failed.status == 2
    assert "One fails on a batch of 3: ValueError: three is too many; check that it runs" in failed.err


@pytest.mark.frameworks
@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("command", [[], ["batch", "-o", "out"], ["evaluate", "--measure", "deletion"]])
def test_a_warning_is_printed_once_for_all_images(
    run: Callable[..., Result], image: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xcam.explanation.explain.BATCH", 1)
    for name in "ab":
        shutil.copy(image, image.with_name(f"{name}.png"))
    result = run(*command, "-m", "models_of_the_command:Loud", "--size", "16", "a.png", "b.png")
    assert result.status == 0
    assert result.err.count("does not state how images are scaled") == 1


def test_class_labels_must_fit(run: Callable[..., Result], image: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\n\nc\nd\ne\nf\n")
    arguments = ["-m", "demo", "-b", "keras", "--json", "-t", "2", image]
    assert json.loads(run(*arguments, "--labels", "names.txt").out)["class"] == "c"
    for content, message in {
        "a\nb": "cannot use 2 labels for the 6 classes of demo; give one for each",
        "": "no class labels in few.txt",
    }.items():
        (tmp_path / "few.txt").write_text(content)
        result = run(*arguments, "--labels", "few.txt")
        assert (result.status, result.out) == (2, "")
        assert message in result.err
    (tmp_path / "names.json").write_text('{"0": ["n1", "a"], "1": "b", "2": "see", "3": "d", "4": "e", "5": "f"}')
    assert json.loads(run(*arguments, "--labels", "names.json").out)["class"] == "see"
    for content in ('"abc"', "{}", "[" * 100_000, "[1]"):
        (tmp_path / "odd.json").write_text(content)
        result = run(*arguments, "--labels", "odd.json")
        assert result.status == 2
        assert ("cannot use 1 label for the 6 classes" if content == "[1]" else "odd.json") in result.err
        assert "Traceback" not in result.err


def test_no_model_is_loaded_for_a_missing_image(run: Callable[..., Result]) -> None:
    result = run("-b", "keras", "absent.jpg")  # VGG16 would be downloaded
    assert result.err == "xcam: cannot read absent.jpg: no such file; check the path\n"


def test_the_backend_may_prefix_the_model(run: Callable[..., Result], image: Path, tmp_path: Path) -> None:
    for backend in ("onnx", "torch"):
        assert json.loads(run("-m", f"{backend}:demo", "--json", image).out)["backend"] == backend
    result = run("-m", "onnx:absent", image)
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert "unknown model 'absent' for ONNX Runtime" in result.err
    odd = tmp_path / "onnx:odd.onnx"
    shutil.copy(xcam.export("onnx:demo", tmp_path / "plain.onnx"), odd)
    assert json.loads(run("-m", str(odd), "--json", image).out)["backend"] == "onnx"
    assert json.loads(run("-m", odd.name, "--json", image).out)["backend"] == "onnx"


@pytest.mark.parametrize(
    ("text", "size"),
    [("224x320", (224, 320)), ("224", (224, 224)), ("48x", (48, None)), ("X320", (None, 320)), ("9x8x7", (9, 8, 7))],
)
def test_a_size(text: str, size: tuple[int | None, ...]) -> None:
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["x", "", "0x5", "1x2x3x4", "5x-1", "48xNone", "16385x", "10y"])
def test_a_text_that_is_not_a_size(text: str) -> None:
    with pytest.raises(
        click.BadParameter, match="is not a size; give HEIGHTxWIDTH, or one side, as in 224x320, 48x, x320"
    ):
        Size().convert(text, None, None)


SCALED = """
from torch import nn


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.conv(x / 255).mean(dim=(2, 3)))
"""


@pytest.mark.frameworks
def test_a_second_scaling_is_one_line_on_standard_error(
    run: Callable[..., Result], image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scaled_of_the_command.py").write_text(SCALED)
    monkeypatch.syspath_prepend(tmp_path)
    options = ["-m", "scaled_of_the_command:Scaled", "--size", "16"]
    warning = (
        "xcam: warning: Scaled scales its input itself and takes pixels in 0…255, and 'torch' scales images before it; "
        "use preprocess='raw' (--preprocess raw)"
    )
    for command, rest in (([], [image]), (["layers"], []), (["evaluate"], ["--measure", "deletion", image])):
        result = run(*command, *options, "--preprocess", "torch", *rest)
        assert [line for line in result.err.splitlines() if "scales" in line] == [warning]
        assert "scales" not in run(*command, *options, *rest).err
