"""Networks of torchvision with fixed random weights, and their gradients by torch's autograd."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

_registered: list[torch.library.Library] = []


@dataclass(frozen=True)
class Network:
    """A network of torchvision with three of its layers: early, middle, late."""

    name: str
    layers: tuple[str, str, str]
    size: int = 224
    small: int = 32
    """Image size in tests. With few values, there are inputs at which no value is near a kink."""

    def build(self, size: int | None = None) -> nn.Module:
        """Return the network in evaluation mode, with weights that keep the values of all layers near one."""
        size = size or self.size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            module = self._module(size).eval()
            fill(module, torch.from_numpy(images(32 if size < self.size else 4, size, 1)))
        return module

    def _module(self, size: int) -> nn.Module:
        models = torchvision().models
        if self.name == "maxvit_t" and size != 224:  # its windows are 7×7, and fit no other size
            sizes = {"stem_channels": 64, "block_channels": [64, 128, 256, 512], "block_layers": [1, 1, 1, 1]}
            return models.MaxVit(
                (size, size), **sizes, head_dim=32, stochastic_depth_prob=0.2, partition_size=size // 32
            )
        options: dict[str, Any] = {
            "inception_v3": {"aux_logits": False, "init_weights": False},
            "vit_b_16": {"image_size": size},
        }.get(self.name, {})
        module = models.get_model(self.name, weights=None, **options)
        if self.name == "vgg16" and size != 224:  # its head is for 7×7 values
            module.avgpool = nn.Identity()
            module.classifier[0] = nn.Linear(512 * (size // 32) ** 2, 4096)
        return module


NETWORKS = {
    network.name: network
    for network in (
        Network("vgg16", ("features.8", "features.17", "features.29")),
        Network("resnet50", ("layer2.0.bn3", "layer3.2", "layer4.2")),
        Network("convnext_tiny", ("features.1.2", "features.5.4", "features.7.2")),
        Network("squeezenet1_1", ("features.4", "features.7.expand3x3", "features.12"), small=64),
        Network("mobilenet_v3_large", ("features.3", "features.8.block.1", "features.16")),
        Network("efficientnet_b0", ("features.2", "features.5", "features.8"), small=64),
        Network("densenet121", ("features.transition1", "features.denseblock3.denselayer12.conv2", "features.norm5")),
        Network("shufflenet_v2_x1_0", ("stage2.0", "stage3.3", "conv5")),
        Network(
            "vit_b_16",
            (
                "encoder.layers.encoder_layer_2",
                "encoder.layers.encoder_layer_6",
                "encoder.layers.encoder_layer_11.ln_1",
            ),
            small=64,
        ),
        Network("swin_t", ("features.1.1", "features.5.3", "norm"), small=64),
        Network("maxvit_t", ("stem", "blocks.2", "blocks.3"), small=64),
    )
}


def images(count: int, size: int, seed: int) -> np.ndarray:
    """Return smooth random images with some noise, [N, 3, size, size]: unlike noise alone, they differ from each other."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(count, 4, 4, 3)).astype(np.float32)
    smooth = np.stack([cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC) for image in coarse])
    x = 1.5 * smooth + 0.3 * rng.normal(size=smooth.shape)
    return np.ascontiguousarray(np.moveaxis(x, -1, 1), np.float32)


def torchvision() -> Any:
    """Import torchvision from the separate folder into which `make test` installs it."""
    sys.path.append(str(Path(sys.prefix) / "torchvision"))
    try:
        if not _registered:  # torchvision's CUDA library would register these operators
            _registered.append(torch.library.Library("torchvision", "DEF"))
            for name in ("nms", "qnms"):
                _registered[0].define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    finally:
        sys.path.pop()
    return torchvision


def torchvision_unloaded() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


@torch.no_grad()
def fill(module: nn.Module, x: Tensor) -> None:
    """Set random weights. Batch norms get the mean and variance of their inputs for `x`, slightly changed."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            fan_in = part.weight[0].numel()
            nn.init.normal_(part.weight, std=math.sqrt((2 if isinstance(part, nn.Conv2d) else 1) / fan_in))
            if part.bias is not None:
                nn.init.normal_(part.bias, std=0.1)
        elif isinstance(part, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            # Batch norms and ReLUs with smaller biases are chaotic: rounding grows by a fifth from layer to layer.
            nn.init.normal_(part.bias, std=1 if isinstance(part, nn.BatchNorm2d) else 0.1)
    for name, parameter in module.named_parameters():
        kind = name.rpartition(".")[2]
        if kind == "layer_scale":
            nn.init.uniform_(parameter, 0.2, 0.4)
        elif kind in ("class_token", "pos_embedding", "relative_position_bias_table"):
            nn.init.normal_(parameter, std=0.5)

    def settle(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3))
        variance = variance.clamp(min=1e-2)
        norm.running_mean = mean + variance.sqrt() * torch.empty_like(mean).normal_(0, 0.5)
        norm.running_var = variance * torch.empty_like(mean).uniform_(0.5, 2)

    hooks = [m.register_forward_pre_hook(settle) for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    module(x)
    for hook in hooks:
        hook.remove()


def truth(
    module: nn.Module, layers: tuple[str, ...], x: Tensor, v: Tensor
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Return the logits, and for each layer its value and the gradient of ⟨v, logits⟩ there, in the precision of `module`."""
    values: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, value: Tensor) -> Tensor:
            values[name] = value.clone()
            return values[name].clone()  # the next module may write in place

        return hook

    hooks = [module.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    dtype = next(module.parameters()).dtype
    logits = module(x.to(dtype))
    for hook in hooks:
        hook.remove()
    gradients = torch.autograd.grad((logits * v.to(dtype)).sum(), [values[name] for name in layers])
    return logits.detach(), [
        (values[name].detach(), gradient) for name, gradient in zip(layers, gradients, strict=True)
    ]
