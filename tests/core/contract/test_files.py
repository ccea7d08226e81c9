"""Files are complete, or not written at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from systems import named_pipes
from xcam import InputError
from xcam.contract import files
from xcam.contract.files import whole_or_not


@named_pipes
def test_a_path_that_is_not_a_regular_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*absent\.jpg: no such file; check the path"):
        files.check_file(tmp_path / "absent.jpg")
    with pytest.raises(InputError, match=r"cannot read .*: it is a directory; give a mask in it"):
        files.check_file(tmp_path, "a mask")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"cannot read .*pipe: it is not a regular file; give an image"):
        files.check_file(tmp_path / "pipe")
    (tmp_path / "file").touch()
    files.check_file(tmp_path / "file")


def test_a_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.png"
    files.write_whole(path, b"old")
    path.chmod(0o640)
    mode = path.stat().st_mode

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fail)
        with pytest.raises(InputError, match="No space left on device; free space there"):
            files.write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    files.write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode == mode
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_system_without_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("shutil.copymode", fail)
    files.write_whole(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("failures", [2, 3])
def test_a_file_that_another_process_holds_open_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    replace, attempts = os.replace, []

    def held(source: Path, target: Path) -> None:
        attempts.append(target)
        if len(attempts) <= failures:
            raise PermissionError(errno.EACCES, "Access is denied")
        replace(source, target)

    monkeypatch.setattr("os.replace", held)
    monkeypatch.setattr(files, "PAUSES", (0.0, 0.0))
    if failures == 2:
        files.write_whole(path, b"new")
        assert path.read_bytes() == b"new"
    else:
        with pytest.raises(InputError, match="Access is denied; choose another path"):
            files.write_whole(path, b"new")
        assert path.read_bytes() == b"old"
    assert len(attempts) == 3
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the folder .*none does not exist; create it first"):
        files.write_whole(tmp_path / "none" / "a.png", b"")
    with pytest.raises(InputError, match="is a directory"):
        files.write_whole(tmp_path, b"")
    for path in (tmp_path / ("a" * 300 + ".png"), tmp_path / ("a" * 300) / "a.png"):
        with pytest.raises(InputError, match="File name too long"):
            files.write_whole(path, b"")


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


def test_a_failure_leaves_the_old_model_only(tmp_path: Path) -> None:
    path = tmp_path / f"{'x' * 250}.onnx"
    path.write_bytes(b"earlier")

    def write(problem: BaseException) -> None:
        with whole_or_not(path) as file:
            file.write_bytes(b"half")
            raise problem

    with pytest.raises(InputError, match=r"cannot write .*onnx: No space left on device; give an existing folder"):
        write(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(KeyboardInterrupt):
        write(KeyboardInterrupt())
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"earlier"]


def test_a_model_in_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "none" / "net.onnx"
    with pytest.raises(InputError, match=r"net\.onnx: No such file or directory; give an existing folder"), whole_or_not(path):  # fmt: skip
        pass
