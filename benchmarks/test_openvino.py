"""Grad-CAM by differences on OpenVINO, compared with inference; opening a model, compared with the runtime's own loading."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import openvino
import pytest

import xcam
from alternating import ratios
from onnx_exports import NETWORKS
from xcam.contract import validation
from xcam.models import layers
from xcam_torch.export import to_onnx

FULL = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v3_large"])
def test_differences(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At most three passes for ResNet50, whose last layer has 2048 channels."""
    size = NETWORKS[name].size
    to_onnx(NETWORKS[name].build(), tmp_path / "network.onnx", (size, size))
    path = tmp_path / "network.xml"
    openvino.save_model(openvino.Core().read_model(tmp_path / "network.onnx"), path)
    x = np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)
    start = time.perf_counter()
    plain = openvino.Core().compile_model(path, "CPU", FULL)
    plain(x)
    loading = time.perf_counter() - start
    start = time.perf_counter()
    model = xcam.load(path, threads=2)
    model.predict(x)
    opening = time.perf_counter() - start
    layer = layers.default(model)
    ratios(
        f"{name}@{layer.name}; opened and run once in {opening:.2f} s, without xcam in {loading:.2f} s",
        {
            "inference": lambda: plain(x),
            "gradcam": lambda: validation.trace(
                model, x, layer, lambda outputs: [np.eye(outputs.shape[1], dtype=np.float32)[outputs.argmax(axis=1)]]
            ),
        },
        10,
        capsys,
    )
