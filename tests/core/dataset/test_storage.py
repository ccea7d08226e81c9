"""Files on this machine and behind fsspec."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import xcam
from xcam.dataset import storage


def test_a_link_to_a_folder_above_is_followed_once(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/x.jpg").touch()
    (tmp_path / "a/b/up").symlink_to(tmp_path / "a")
    (tmp_path / "a/self").symlink_to("self")
    (tmp_path / "other").symlink_to(tmp_path / "a/b")
    result = [os.path.relpath(name, tmp_path) for name in storage.walk(str(tmp_path))]
    assert result == ["a/self", "a/b/x.jpg", "other/x.jpg", "other/up/self"]


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def denied(path: str) -> Any:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(xcam.InputError, match=r"cannot list .*closed: Permission denied"):
        list(storage.walk(str(tmp_path)))


def test_an_image_in_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "stat", denied)
    with pytest.raises(xcam.InputError, match=r"a.jpg: Permission denied; check the permissions of its folder"):
        storage.read(f"{tmp_path}/a.jpg")
