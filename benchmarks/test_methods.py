"""The cost of the methods, in forward passes of ResNet18 at its last stage, and the share of the core."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import xcam
from torch_architectures import resnet18
from xcam.methods.registry import get

SIZE = (224, 224)
IMAGE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def median(function: Callable[[], Any], rounds: int) -> float:
    function()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    module = resnet18().eval()
    opened = xcam.load(module, preprocess="torch", size=SIZE)
    file = tmp_path_factory.mktemp("models") / "resnet18.onnx"
    opened.to_onnx(file)
    return {"torch": opened, "onnx": xcam.load(file, preprocess="torch", threads=2)}


def test_methods(models: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(1).normal(size=(1, 3, *SIZE)).astype(np.float32)
    many = np.random.default_rng(1).normal(size=(16, 3, *SIZE)).astype(np.float32)
    lines = []
    score = {}
    for name, model in models.items():
        forward = median(lambda model=model: model.predict(x), 15)
        best = min(forward, median(lambda model=model: model.predict(many), 5) / 16)
        lines.append(f"{name}: a forward pass takes {1000 * forward:.1f} ms, {1000 * best:.1f} ms in a batch of 16")
        for method, rounds in (("gradcam", 9), ("ablationcam", 5), ("reciprocam", 9), ("scorecam", 1)):
            spent = median(
                lambda model=model, method=method: xcam.explain(model, IMAGE, layer="layer4", method=method), rounds
            )
            lines.append(
                f"  {method:12} {1000 * spent:8.0f} ms   {spent / forward:6.1f} forward passes"
                + (f", {spent / (512 * best):.2f} × 512 of the best batch" if method == "scorecam" else "")
            )
            if method == "scorecam":
                score[name] = spent
    lines.append(f"scorecam on ONNX Runtime is {score['torch'] / score['onnx']:.2f} times as fast as on torch")
    with capsys.disabled():
        print("\n" + "\n".join(lines))


@pytest.mark.parametrize("shape", [(1, 2048, 7, 7), (1, 512, 14, 14)])
def test_the_cores_share(shape: tuple[int, ...], capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    a, g = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    with capsys.disabled():
        print(f"\n{shape}")
        for name in ("gradcam", "gradcam++", "xgradcam", "layercam", "eigencam", "eigengradcam", "fem"):
            method = get(name)
            arrays = [{"activations": a, "gradients": g}[need] for need in method.inputs]
            spent = median(lambda method=method, arrays=arrays: method.function(*arrays), 30)
            print(f"  {name:12} {1000 * spent:6.2f} ms")


MEMORY = """
import sys, numpy as np, xcam
sys.path.insert(0, sys.argv[1])
import torch_architectures
def status(key):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(key))
model = xcam.load(getattr(torch_architectures, sys.argv[2])().eval(), preprocess="torch", size=(224, 224))
image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
xcam.explain(model, image, layer="layer4")
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # reset the peak
xcam.explain(model, image, layer="layer4", method="scorecam", method_options={"max_channels": 128})
print(status("VmHWM") - before)
"""


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_memory_of_scorecam(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-c", MEMORY, "tests/helpers", name]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    with capsys.disabled():
        print(f"\nscorecam of {name}: {float(output):.0f} MB at its peak, in addition to the model and Grad-CAM")
