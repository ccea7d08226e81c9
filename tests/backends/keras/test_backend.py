"""Saved models: files that are read, and files that are rejected with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import xcam
from xcam import InputError, ModelError
from xcam_keras.backend import keras

L = keras.layers


def small(*extra: keras.layers.Layer) -> keras.Model:
    return keras.Sequential(
        [L.Input((8, 8, 3)), L.Conv2D(4, 3, name="conv"), *extra, L.GlobalMaxPooling2D(), L.Dense(2)]
    )


@pytest.mark.filterwarnings("ignore:.*legacy")
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_saved_models_give_the_same_numbers(tmp_path: Path, suffix: str) -> None:
    model = small()
    path = tmp_path / f"modèle{suffix}"
    model.save(path)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    loaded = xcam.load(path)
    assert (loaded.name, loaded.backend) == (path.name, "keras")
    np.testing.assert_allclose(loaded.predict(x), keras.ops.convert_to_numpy(model(x)), atol=1e-6)


def test_python_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "lambda.keras"
    small(L.Lambda(lambda x: x * 2)).save(path)
    with pytest.raises(ModelError, match="; it contains Python code: load it yourself if you trust it"):
        xcam.load(path)


class Own(L.Layer):
    def call(self, x: object) -> object:
        return x


def test_files_that_are_not_models(tmp_path: Path) -> None:
    for name in ("empty.keras", "text.h5"):
        (tmp_path / name).write_bytes(b"" if "empty" in name else b"text")
        with pytest.raises(ModelError, match=f"cannot load .*{name}: .*; check that it was saved by"):
            xcam.load(tmp_path / name)
    small().save(tmp_path / "cut.keras")
    data = (tmp_path / "cut.keras").read_bytes()
    (tmp_path / "cut.keras").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="cannot load"):
        xcam.load(tmp_path / "cut.keras")
    small(Own()).save(tmp_path / "own.keras")
    with pytest.raises(ModelError, match="register its classes"):
        xcam.load(tmp_path / "own.keras")
    small().save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(InputError, match=r"cannot load .*: it holds weights only; name the model too"):
        xcam.load(tmp_path / "a.weights.h5")
    with pytest.raises(InputError, match="no such model file"):
        xcam.load(str(tmp_path / "absent.keras"))
    with pytest.raises(InputError, match="is a directory; give a model file"):
        xcam.load(str(tmp_path))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(
        InputError, match=r"cannot load .*a\.txt: Keras does not read this kind of file; give a \.keras"
    ):
        xcam.load(tmp_path / "a.txt", backend="keras")


def test_a_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "factory_in_keras.py").write_text(
        "import keras\n"
        "def build():\n"
        "    return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name='conv'),\n"
        "                             keras.layers.GlobalMaxPooling2D(), keras.layers.Dense(2)])\n"
        "def fail():\n"
        "    raise RuntimeError('no\\nluck')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert xcam.load("factory_in_keras:build").layers[0].name == "conv"
    with pytest.raises(ModelError, match=r"factory_in_keras:fail\(\) failed: RuntimeError: no; correct"):
        xcam.load("factory_in_keras:fail")
    with pytest.raises(InputError, match="no module 'no_such_models'"):
        xcam.load("no_such_models:build")
    with pytest.raises(InputError, match="cannot call factory_in_keras:absent"):
        xcam.load("factory_in_keras:absent")
