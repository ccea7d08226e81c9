"""Arrays in files: .npy, .npz by name, and files that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xcam import InputError
from xcam.images import arrays

VALUES = np.arange(6.0).reshape(2, 3)


def test_npy_and_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", VALUES)
    np.savez(tmp_path / "one.npz", signal=VALUES)
    np.savez_compressed(tmp_path / "two.NPZ", **{"a": VALUES, "b c": 2 * VALUES})  # np.savez appends a suffix
    (tmp_path / "two.NPZ.npz").rename(tmp_path / "two.NPZ")
    for source, expected in {
        "x.npy": VALUES,
        "one.npz": VALUES,
        "one.npz:signal": VALUES,
        "two.NPZ:b c": 2 * VALUES,
    }.items():
        assert arrays.is_array_file(tmp_path / source)
        np.testing.assert_array_equal(arrays.read(tmp_path / source), expected)
    assert arrays.read(str(tmp_path / "x.npy")).dtype == np.float64


@pytest.mark.parametrize("source", ["image.jpg", "x.npy:name", "npz", 3, None, VALUES, b"x.npy"])
def test_other_sources_are_not_files_of_arrays(source: Any) -> None:
    assert not arrays.is_array_file(source)


def test_a_file_whose_name_contains_a_colon(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz:b", signal=VALUES)
    (tmp_path / "a.npz:b.npz").rename(tmp_path / "a.npz:b.npz")
    assert arrays.split(tmp_path / "a.npz:b.npz") == (tmp_path / "a.npz:b.npz", None)


def test_several_arrays_need_a_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=VALUES, b=VALUES)
    with pytest.raises(InputError, match=r"x\.npz has 2 arrays \(a, b\); give one by its name: .*x\.npz:a$"):
        arrays.read(tmp_path / "x.npz")
    with pytest.raises(InputError, match=r"x\.npz has no array 'c'; known: a, b$"):
        arrays.read(tmp_path / "x.npz:c")
    np.savez(tmp_path / "empty.npz")
    with pytest.raises(InputError, match=r"empty\.npz has 0 arrays \(none\)"):
        arrays.read(tmp_path / "empty.npz")


def test_python_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    np.save(tmp_path / "x.npy", np.array([Trap()], object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=np.array([Trap()], object))
    for name in ("x.npy", "x.npz"):
        with pytest.raises(
            InputError, match=r"it contains Python objects, which may run code.*save numbers with np.save"
        ):
            arrays.read(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_damaged_files(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole{suffix}"
    (np.save if suffix == ".npy" else np.savez)(whole, VALUES)
    data = whole.read_bytes()
    header = data.replace(b"(2, 3)", b"(2, 99999999999999)") if suffix == ".npy" else b"PK"
    for k, content in enumerate((b"", data[:20], data[:-9], b"text", header)):
        path = tmp_path / f"{k}{suffix}"
        path.write_bytes(content)
        with pytest.raises(
            InputError, match=rf"cannot read .*{k}\{suffix}: .+; (write it|save numbers) with np\.save"
        ):
            arrays.read(path)
    with pytest.raises(InputError, match="no such file"):
        arrays.read(tmp_path / f"none{suffix}")
