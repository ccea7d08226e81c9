"""Keras on torch and on JAX: the same suites, the same numbers, the same command.

Each engine runs in its own process, because Keras chooses its engine when it is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import xcam
from xcam import BackendError
from xcam.models import demo
from xcam_keras import engine
from xcam_keras.backend import keras

ROOT = Path(__file__).parents[3]
OTHERS = ("torch", "jax")
SUITES = [
    "test_conformance.py",
    "test_model.py",
    "test_backend.py",
    "test_inputs.py",
    "test_layers.py",
    "test_several_layers.py",
    "test_scaling.py::test_explain_gives_the_model_the_input_that_keras_gives_it",
    "test_scaling.py::test_a_subclassed_model_is_seen_in_its_first_call",
    "test_callbacks.py::test_the_training_is_the_same_with_and_without_heatmaps",
    "test_callbacks.py::test_the_maps_are_of_the_new_weights",
    "test_demo.py::test_the_shipped_images_are_classified_correctly",
    "test_zoo.py::test_every_name_has_the_preprocessing_of_keras",
    "test_zoo.py::test_another_size",
]
COMPILED = ("test_backend.py", "test_inputs.py", "test_layers.py")
"""Suites that run on torch only: on JAX, compiling functions takes most of the time."""
AT_LEAST = {"torch": 180, "jax": 100}
"""Number of tests of SUITES that pass on each engine."""
SKIPPED = (
    "the backend does not declare hvp",
    "to_onnx() needs more than is installed: cannot export to ONNX: Keras runs on",
    *(
        f"backend 'keras' does not implement {ability} "
        for ability in (
            "ExportsSelfExplaining",
            "NamesDefaultLayer",
            "ExplainsMissingLayers",
            "DisablesSpinning",
            "RunsStretches",
        )
    ),
)
"""The beginnings of the reasons for which tests of SUITES may be skipped."""
TOLERANCE = {"activations": 1e-4, "logits": 1e-4, "gradients": 1e-3, "heatmap": 1e-3}

pytestmark = pytest.mark.skipif(keras.backend.backend() not in engine.ENGINES[:1], reason="starts the other engines")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def jobs(folder: Path) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """All processes, the longest first, two at a time."""
    model = xcam.load("demo", "keras").model
    model.save(folder / "demo.keras")
    tests = [str(Path(__file__).with_name(suite)) for suite in SUITES]
    wanted: dict[str, list[str]] = {}
    for name in reversed(OTHERS):
        report = f"--junitxml={folder / name}.xml"
        options = ["-q", "-p", "no:cacheprovider", "--tb=short", report]
        suites = [test for test in tests if name != "jax" or Path(test).name not in COMPILED]
        suites.append(str(Path(__file__).with_name(f"test_engine_{name}.py")))
        wanted[f"suites {name}"] = ["-m", "pytest", *options, *suites]
    for name in engine.ENGINES:
        wanted[f"values {name}"] = ["tests/helpers/engine_values.py", str(folder / f"{name}.npz")]
    for name in OTHERS:
        options = ["--preprocess", "tf", "--json", "-o", str(folder / f"{name}.png"), str(demo.image_paths()[0])]
        wanted[f"command {name}"] = ["-m", "xcam_cli", "-m", str(folder / "demo.keras"), *options]
        wanted[f"demo {name}"] = ["-m", "xcam_cli", "demo", "-b", "keras", "-o", str(folder / f"demo-{name}.png")]
        export = f"-m xcam_cli export -b keras -m demo -o {folder / name}.onnx"
        wanted[f"export {name}"] = export.split()
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(start, name.split()[1], args, folder / "cache") for name, args in wanted.items()}


def start(name: str, args: list[str], cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "KERAS_BACKEND": name,
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("tests/helpers", "core", "backends", "cli")),
        "OMP_NUM_THREADS": "1",  # two at a time
        # On JAX most of the time is spent compiling functions that run for milliseconds, the same in many tests.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return subprocess.run([sys.executable, *args], cwd=ROOT, env=environment, capture_output=True, text=True)


Jobs = dict[str, "Future[subprocess.CompletedProcess[str]]"]


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_the_suites(name: str, jobs: Jobs, folder: Path) -> None:
    done = jobs[f"suites {name}"].result()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    cases = list(ElementTree.parse(folder / f"{name}.xml").getroot().iter("testcase"))
    skipped = {case.find("skipped").get("message") for case in cases if case.find("skipped") is not None}
    assert all(message.startswith(SKIPPED) for message in skipped), skipped
    assert len([case for case in cases if case.find("skipped") is None]) >= AT_LEAST[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_the_same_weights_give_the_same_numbers(name: str, jobs: Jobs, folder: Path) -> None:
    for one in ("tensorflow", name):
        done = jobs[f"values {one}"].result()
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["engine"] == one
        assert json.loads(done.stdout)["engines"] == [one]
    with np.load(folder / "tensorflow.npz") as expected, np.load(folder / f"{name}.npz") as values:
        assert set(values) == set(expected)
        assert len(values) == 18
        for key in values:
            scale = np.abs(expected[key]).max()
            assert scale > 0, key
            error = np.abs(values[key] - expected[key]).max() / scale
            assert error <= TOLERANCE[key.split()[1]], f"{key}: {error:.2g}"


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_the_command(name: str, jobs: Jobs, folder: Path) -> None:
    """Run it on a file that was saved on TensorFlow, and on the demo."""
    done = jobs[f"command {name}"].result()
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    expected = xcam.explain(xcam.load("demo", "keras"), demo.image_paths()[0])
    assert (result["index"], result["layer"], result["backend"]) == (expected.index, expected.layer, "keras")
    np.testing.assert_allclose(result["score"], expected.score, rtol=1e-4)
    np.testing.assert_allclose(result["heatmap_max"], expected.heatmap.max(), atol=1e-3)
    shown = jobs[f"demo {name}"].result()
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr == ""
    assert expected.label in shown.stdout
    drawn = xcam.images.reading.read(folder / f"demo-{name}.png").astype(int)
    assert np.abs(drawn - expected.overlay()).mean() < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_export_needs_tensorflow(name: str, jobs: Jobs) -> None:
    done = jobs[f"export {name}"].result()
    assert done.returncode == 2
    assert done.stderr.strip() == (
        f"xcam: cannot export to ONNX: Keras runs on {name}, and the exporter needs TensorFlow; save the model as a .keras "
        "file, and export that with KERAS_BACKEND=tensorflow"
    )


@pytest.fixture
def unimported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Simulate that Keras is not imported yet, with an empty home."""
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    return tmp_path


def test_the_engine_that_keras_will_choose(unimported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine.name() == "tensorflow"
    (unimported / "keras.json").write_text('{"backend": "jax"}')
    assert engine.name() == "jax"
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    assert engine.name() == "torch"
    assert engine.requires() == ("keras", "torch")
    (unimported / "keras.json").write_text("{")
    monkeypatch.setenv("KERAS_BACKEND", "")
    assert engine.name() == "tensorflow"


def test_an_imported_keras_has_chosen_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "openvino")
    assert engine.name() == keras.backend.backend()


@pytest.mark.parametrize(
    ("wanted", "there", "remedy"),
    [
        ("", {"keras", "tensorflow"}, None),
        ("", {"keras", "torch", "jax"}, "set KERAS_BACKEND=torch, which is installed, or: pip install tensorflow"),
        ("", {"keras"}, None),
        ("", {"torch"}, None),
        ("jax", {"keras", "tensorflow"}, "set KERAS_BACKEND=tensorflow, which is installed, or: pip install jax"),
        ("jax", {"keras"}, "pip install jax"),
        ("torch", {"jax"}, "pip install keras torch"),
    ],
)
def test_remedy_for_a_missing_engine(
    wanted: str, there: set[str], remedy: str | None, unimported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", wanted)
    monkeypatch.setattr(engine, "_installed", lambda module: module in there)
    assert engine.remedy() == remedy


def test_an_engine_that_is_not_supported(unimported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "openvino")
    assert engine.requires() == ("keras",)
    with pytest.raises(
        BackendError, match="cannot use Keras on openvino: the supported engines are tensorflow, torch, jax; set"
    ):
        engine.engine.__wrapped__()
