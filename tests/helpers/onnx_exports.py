"""torchvision's networks as ONNX files, and beside each what torch says of it: activations and gradients in float64.

`python tests/helpers/onnx_exports.py vgg16 resnet50` writes build/onnx/vgg16.onnx and .npz, …; without
names, all of them. Random weights, always the same.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xcam_torch.export import to_onnx

FOLDER = Path("build/onnx")
_registered: list[torch.library.Library] = []


@dataclass(frozen=True)
class Network:
    """A network of torchvision's, and three layers of it: early, middle, late."""

    name: str
    layers: tuple[str, str, str]
    size: int = 224

    def build(self) -> nn.Module:
        """The network in evaluation mode, with weights that keep its values near one all the way down."""
        options = {"aux_logits": False, "init_weights": False} if self.name == "inception_v3" else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            module = torchvision().models.get_model(self.name, weights=None, **options).eval()
            fill(module, torch.randn(4, 3, self.size, self.size))
        return module


NETWORKS = {
    network.name: network
    for network in (
        Network("vgg16", ("features.8", "features.17", "features.29")),
        Network("resnet50", ("layer1.0.bn3", "layer3.2", "layer4.2")),
        Network("convnext_tiny", ("features.1.2", "features.5.4", "features.7.2")),
        Network("squeezenet1_1", ("features.4", "features.7.expand3x3", "features.12")),
        Network("mobilenet_v3_large", ("features.3", "features.8.block.1", "features.16")),
        Network("efficientnet_b0", ("features.2", "features.5", "features.8")),
        Network("densenet121", ("features.transition1", "features.denseblock3.denselayer12.conv2", "features.norm5")),
        Network("shufflenet_v2_x1_0", ("stage2.0", "stage3.3", "conv5")),
        Network("inception_v3", ("Conv2d_4a_3x3", "Mixed_6b", "Mixed_7c"), 299),
        Network("regnet_y_400mf", ("trunk_output.block1", "trunk_output.block3.block3-2", "trunk_output.block4")),
        Network(
            "vit_b_16",
            (
                "encoder.layers.encoder_layer_2",
                "encoder.layers.encoder_layer_6",
                "encoder.layers.encoder_layer_11.ln_1",
            ),
        ),
        Network("swin_t", ("features.1.1", "features.5.3", "norm")),
        Network("maxvit_t", ("stem", "blocks.2", "blocks.3")),
    )
}


def torchvision() -> Any:
    """torchvision, from the folder of its own where `make test` puts it."""
    sys.path.append(str(Path(sys.prefix) / "torchvision"))
    try:
        if not _registered:  # what torchvision's CUDA library would have registered
            _registered.append(torch.library.Library("torchvision", "DEF"))
            for name in ("nms", "qnms"):
                _registered[0].define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    finally:
        sys.path.pop()
    return torchvision


@torch.no_grad()
def fill(module: nn.Module, x: Tensor) -> None:
    """Random weights. Batch norms get the mean and variance that they see for `x`, each somewhat off."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            fan_in = part.weight[0].numel()
            nn.init.normal_(part.weight, std=math.sqrt((2 if isinstance(part, nn.Conv2d) else 1) / fan_in))
            if part.bias is not None:
                nn.init.normal_(part.bias, std=0.1)
        elif isinstance(part, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.1)
    for name, parameter in module.named_parameters():
        kind = name.rpartition(".")[2]
        if kind == "layer_scale":
            nn.init.uniform_(parameter, 0.2, 0.4)
        elif kind in ("class_token", "pos_embedding", "relative_position_bias_table"):
            nn.init.normal_(parameter, std=0.5)

    def settle(norm: nn.BatchNorm2d, given: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(given[0], (0, 2, 3))
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
    """The logits, and for each layer its value and the gradient of ⟨v, logits⟩ there, in the precision of `module`."""
    values: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, value: Tensor) -> Tensor:
            values[name] = value.clone()
            return values[name].clone()  # what follows may write in place

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


def write(network: Network, folder: Path = FOLDER) -> Mapping[str, Any]:
    """NAME.onnx and NAME.npz; returns what the latter holds.

    x [2, 3, S, S]; v, outputs [2, 1000]; layers; for K = 0, 1, 2 (early, middle, late) a_K and g_K, computed in
    float64, and g32_K, computed in float32. All stored as float32. Where a ReLU's input is nearly zero, or a pool's
    window nearly a tie, float32 may take the other branch: single values of a gradient then differ by as much as they
    are worth, in g32_K as in any other float32 gradient.
    """
    folder.mkdir(parents=True, exist_ok=True)
    module = network.build()
    to_onnx(module, folder / f"{network.name}.onnx", (network.size, network.size))
    random = torch.Generator().manual_seed(11)
    x = torch.randn(2, 3, network.size, network.size, generator=random)
    v = torch.randn(2, 1000, generator=random)
    logits, exact = truth(copy.deepcopy(module).double(), network.layers, x, v)
    _, rounded = truth(module, network.layers, x, v)
    held: dict[str, Any] = {
        "x": x,
        "v": v,
        "outputs": logits,
        **{f"a_{k}": a for k, (a, _) in enumerate(exact)},
        **{f"g_{k}": g for k, (_, g) in enumerate(exact)},
        **{f"g32_{k}": g for k, (_, g) in enumerate(rounded)},
    }
    arrays = {key: value.float().numpy() for key, value in held.items()}
    np.savez(folder / f"{network.name}.npz", layers=np.array(network.layers), **arrays)
    return {"layers": network.layers, **arrays}


def difference(found: Any, expected: Any) -> float:
    """The largest difference, as a part of the largest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def main() -> None:
    """Write what is asked for, and say how it came out."""
    import onnxruntime

    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NETWORKS)}")
    words.add_argument("--to", type=Path, default=FOLDER, help="folder")
    given = words.parse_args()
    for name in given.names or NETWORKS:
        start = time.perf_counter()
        held = write(NETWORKS[name], given.to)
        file = given.to / f"{name}.onnx"
        seconds, size = time.perf_counter() - start, file.stat().st_size / 1e6
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        found = session.run(None, {"input": held["x"]})[0]
        off = difference(found, held["outputs"])
        print(f"{name}: {seconds:.0f} s, {size:.1f} MB, outputs off by {off:.1e}", flush=True)
        for k, layer in enumerate(held["layers"]):
            a, g = held[f"a_{k}"], held[f"g_{k}"]
            rounded = held[f"g32_{k}"]
            most, mean = difference(rounded, g), np.linalg.norm(rounded - g) / np.linalg.norm(g)
            print(
                f"  {layer} {a.shape} std {a.std():.2g}, gradient std {g.std():.2g}; float32: {most:.0e}, L2 {mean:.0e}"
            )
        assert off < 1e-4, f"ONNX Runtime disagrees with torch about {name}"


if __name__ == "__main__":
    main()
