"""A model is written whole or not at all. What is in the file, the backends' own test_export.py say."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from xcam import InputError
from xcam.contract.files import whole_or_not


def test_weights_move_before_the_model_that_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    move = os.replace
    monkeypatch.setattr("os.replace", lambda old, new: moved.append(Path(new).name) or move(old, new))
    path = tmp_path / "net.onnx"
    with whole_or_not(path) as file:
        assert file.name == path.name
        file.write_bytes(b"model")
        file.with_name("net.onnx.data").write_bytes(b"weights")
        file.with_name("zz.data").write_bytes(b"more")
        assert not path.exists()
    assert moved[-1] == "net.onnx"
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        "net.onnx": b"model",
        "net.onnx.data": b"weights",
        "zz.data": b"more",
    }


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / f"{'x' * 250}.onnx"
    path.write_bytes(b"earlier")

    def write(problem: BaseException) -> None:
        with whole_or_not(path) as file:
            file.write_bytes(b"half")
            raise problem

    with pytest.raises(InputError, match=r"cannot write .*onnx: No space left on device; give a folder that exists"):
        write(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(KeyboardInterrupt):
        write(KeyboardInterrupt())
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"earlier"]


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "none" / "net.onnx"
    with pytest.raises(InputError, match=r"net\.onnx: No such file or directory; give a folder that exists"), whole_or_not(path):  # fmt: skip
        pass
