"""Contributions of ResNet50's blocks, torch against ONNX, compared with one forward pass of each model."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import xcam
from onnx_exports import NETWORKS
from xcam.models.demo.scenes import scene
from xcam_torch.export import to_onnx

PASSES, FAST = 20, 5
"""Forward passes that all contributions, and a fast look, may take: of one model, the mean of both."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Return ResNet50 in torch, and an ONNX file of it with one convolution scaled."""
    module = NETWORKS["resnet50"].build()
    spoilt = copy.deepcopy(module)
    with torch.no_grad():
        spoilt.get_submodule("layer3.2.conv2").weight *= 1.05
    path = tmp_path_factory.mktemp("blame") / "resnet50.onnx"
    to_onnx(spoilt, path, (224, 224))
    return xcam.load(module, preprocess="torch", size=(224, 224)), xcam.load(path, preprocess="torch", threads=2)


def timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@pytest.mark.parametrize("fast", [False, True])
def test_blame(models: tuple[Any, Any], fast: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    image = scene(np.random.default_rng(1), [3, 5], 224).image
    cold = timed(lambda: xcam.blame(models, image, fast=fast, causes=False))
    explanations = [lambda model=model: xcam.explain(model, image) for model in models]
    passes = [lambda model=model: model.predict(np.zeros((1, 3, 224, 224), np.float32)) for model in models]
    for function in (*explanations, *passes):
        function()
    rounds = [
        (
            timed(lambda: xcam.blame(models, image, fast=fast, causes=False)),
            sum(map(timed, explanations)),
            sum(map(timed, passes)) / 2,
        )
        for _ in range(3)
    ]
    blame, explanation, forward = (float(np.median(column)) for column in zip(*rounds, strict=True))
    with capsys.disabled():
        print(
            f"\n{'fast look' if fast else 'contributions'} of ResNet50, torch against ONNX (at most {FAST if fast else PASSES} "
            f"forward passes): {blame:.2f} s, cold {cold:.1f} s\n  forward pass {1000 * forward:.0f} ms: {blame / forward:.1f}×"
            f"\n  one explanation by each {1000 * explanation:.0f} ms: {blame / explanation:.1f}×"
        )
