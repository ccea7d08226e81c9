"""Class labels: lists, text files, JSON files, ImageNet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xcam import InputError
from xcam.models import labels


def test_imagenet() -> None:
    names = labels.load("imagenet")
    assert names is not None
    assert len(names) == 1000
    assert (names[0], names[292], names[999]) == ("tench", "tiger", "toilet tissue")
    assert labels.load(None) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "cat\ndog\n"),
        ("a.txt", "\ufeffcat\r\n dog \n\n"),
        ("a.json", '["cat", "dog"]'),
        ("a.json", '{"1": "dog", "0": "cat"}'),
        ("a.json", '{"0": ["n01", "cat"], "1": ["n02", "dog"]}'),
    ],
)
def test_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert labels.load(tmp_path / name) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b" \n", r"no class labels in .*a\.txt; give a list of strings"),
        ("a.txt", b"\xff\xfe", "it is not UTF-8 text; give a text file"),
        ("a.json", b"3", "not a list of labels; give a JSON list"),
        ("a.json", b'{"1": "dog"}', "not a list of labels"),
        ("a.json", b"[[]]", "not a list of labels"),
        ("a.json", b"[", "not a list of labels"),
    ],
)
def test_files_without_labels(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        labels.load(tmp_path / name)


def test_values_that_are_not_labels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        labels.load(tmp_path / "absent.txt")
    for value in ([], [1, 2]):
        with pytest.raises(InputError, match="no class labels; give a list of strings"):
            labels.load(value)


def test_labels_of_numpy_and_one_label_of_two_classes() -> None:
    assert labels.load(np.array(["cat", "dog"])) == ["cat", "dog"]
    assert labels.load(["tumour"]) == ["not tumour", "tumour"]
