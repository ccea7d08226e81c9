"""Activation and gradient at a layer, compared with inference of the same file; building the gradient graph; memory."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import xcam
from alternating import ratios
from onnx_exports import NETWORKS
from xcam_torch.export import to_onnx

CASES = {
    "resnet50@layer4": 1.1,
    "densenet121@features.norm5": 1.2,
    "efficientnet_b0@features.8": 1.2,
    "mobilenet_v3_large@features.16": 1.2,
    "vgg16@features.29": 1.3,
    "resnet50@layer3": 1.35,
    "convnext_tiny@features.5": 1.5,
}
"""Network and layer, and the largest ratio allowed."""


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("onnx")

    def exported(name: str) -> Path:
        path = folder / f"{name}.onnx"
        if not path.exists():
            to_onnx(NETWORKS[name].build(), path, (NETWORKS[name].size,) * 2)
        return path

    return exported


def top(outputs: Any) -> list[Any]:
    return [np.eye(outputs.shape[1], dtype=np.float32)[outputs.argmax(axis=1)]]


@pytest.mark.parametrize("case", CASES)
def test_gradient(case: str, file: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    name, layer = case.split("@")
    size = NETWORKS[name].size
    x = np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or it would slow down what runs next
    plain = ort.InferenceSession(file(name), options)
    model = xcam.load(file(name), threads=2)
    start = time.perf_counter()
    model.trace(x, layer, top)
    first = time.perf_counter() - start
    ratios(
        f"{case} (at most {CASES[case]}); built and run once in {first:.2f} s",
        {"inference": lambda: plain.run(None, {"input": x}), "trace": lambda: model.trace(x, layer, top)},
        30,
        capsys,
    )


MEMORY = """
import sys, gc, numpy as np
path, layer = sys.argv[1:]
x = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
def resident():
    gc.collect()
    rows = dict(line.split(":") for line in open("/proc/self/smaps_rollup") if "kB" in line)
    return int(rows["Rss"].split()[0]) / 1024
import onnxruntime as ort
if layer == "-":
    before = resident()
    model = ort.InferenceSession(path)
    run = lambda: model.run(None, {"input": x})
else:
    import xcam, xcam_onnx.backend
    before = resident()
    model = xcam.load(path)
    run = lambda: model.trace(x, layer, lambda z: [np.eye(1000, dtype=np.float32)[:1]])
for _ in range(3):
    run()
print(resident() - before)
"""


@pytest.mark.parametrize("case", ["resnet50@layer4", "vgg16@features.29", "convnext_tiny@features.5"])
def test_memory(case: str, file: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The resident memory of a process after loading the model, including the pages of the file."""
    name, layer = case.split("@")
    plain, ours = (
        float(subprocess.run([sys.executable, "-c", MEMORY, file(name), at], capture_output=True, text=True).stdout)
        for at in ("-", layer)
    )
    with capsys.disabled():
        print(f"\n{case}: inference needs {plain:.0f} MB, with the gradient {ours:.0f} MB: {ours / plain:.2f}×")
