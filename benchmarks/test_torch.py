"""Grad-CAM compared with the forward pass of the same torch module in inference mode, at the last convolution.

Other libraries get a column if they are installed: `pip install grad-cam` or `pip install torchcam`.
"""

from __future__ import annotations

import importlib.util
import resource
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import xcam
from alternating import ratios
from torch_architectures import mobilenet_v3_large, resnet18, resnet50, vgg16
from xcam.methods.registry import get

BUILD = {
    "VGG16": (vgg16, "features.29"),
    "ResNet50": (resnet50, "layer4"),
    "MobileNetV3": (mobilenet_v3_large, "features.16"),
}


@pytest.fixture(scope="module", autouse=True)
def two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="module", params=BUILD)
def network(request: pytest.FixtureRequest) -> tuple[str, torch.nn.Module, str]:
    build, layer = BUILD[request.param]
    torch.manual_seed(0)
    return request.param, build().eval(), layer


def top(count: int) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Return a function that gives the cotangents of the `count` best classes."""

    def cotangents(outputs: np.ndarray) -> list[np.ndarray]:
        best = np.argsort(-outputs, axis=1)
        result = np.zeros((count, *outputs.shape), np.float32)
        for m in range(count):
            np.put_along_axis(result[m], best[:, m, None], 1, axis=1)
        return list(result)

    return cotangents


def test_gradcam(network: tuple[str, torch.nn.Module, str], capsys: pytest.CaptureFixture[str]) -> None:
    name, module, layer = network
    x = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    opened = xcam.load(module)
    method = get("gradcam").function

    def forward() -> Any:
        with torch.inference_mode():
            return module(torch.from_numpy(x)).numpy()

    def gradcam(classes: int = 1) -> Any:
        trace = opened.trace(x, layer, top(classes))
        return [method(trace.activations, g) for g in trace.gradients]

    functions: dict[str, Callable[[], Any]] = {
        "forward pass": forward,
        "Grad-CAM": gradcam,
        "Grad-CAM of 5 classes": lambda: gradcam(5),
    }
    if importlib.util.find_spec("pytorch_grad_cam"):
        from pytorch_grad_cam import GradCAM

        peer = GradCAM(module, [module.get_submodule(layer)])
        functions["peer: pytorch-grad-cam"] = lambda: peer(torch.from_numpy(x))
    if importlib.util.find_spec("torchcam"):
        from torchcam.methods import GradCAM as TorchCAM

        other = TorchCAM(module, layer)
        functions["peer: torch-cam"] = lambda: other(0, module(torch.from_numpy(x)))
    ratios(f"torch {name} at {layer}, batch 1", functions, 60, capsys)


def test_resume(benchmark: Any) -> None:
    """512 variants of ResNet18's layer4: each channel set to zero once, as Ablation-CAM does."""
    torch.manual_seed(0)
    benchmark.group = "ResNet18, 512 variants at layer4"
    opened = xcam.load(resnet18())
    x = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    trace = opened.trace(x, "layer4")
    variants = np.repeat(trace.activations, 512, axis=0)
    variants[np.arange(512), np.arange(512)] = 0
    benchmark.pedantic(lambda: opened.resume(trace, variants), rounds=30, warmup_rounds=2)


def test_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """The peak memory after two hundred images is that after ten."""
    torch.manual_seed(0)
    opened = xcam.load(resnet18(), preprocess="torch")
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    peak = []
    for n in range(200):
        xcam.explain(opened, image)
        if n in (9, 199):
            peak.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    with capsys.disabled():
        print(f"\npeak memory after 10 and after 200 images: {peak[0]:.0f} MB, {peak[1]:.0f} MB")


def test_recording(network: tuple[str, torch.nn.Module, str], capsys: pytest.CaptureFixture[str]) -> None:
    """The first look at a model: the recording, and the probe of its layers, for a batch of two images."""
    name, module, _ = network
    x = torch.zeros(2, 3, 224, 224)

    def forward() -> Any:
        with torch.inference_mode():
            return module(x)

    def recorded() -> Any:
        opened = xcam.load(module)
        return opened.output_activation

    def probed() -> Any:
        return xcam.load(module).layers

    functions = {"forward pass of two images": forward, "recording": recorded, "recording and probe": probed}
    ratios(f"torch {name}, the first look", functions, 10, capsys)
