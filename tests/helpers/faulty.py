"""One network in Keras and in torch, with the same weights, and with typical mistakes of conversions on request.

Three blocks of convolution, batch normalisation and activation (the second with stride 2, the third with GELU), an
enlargement, a pool, a flattening and a dense layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from xcam.contract.preprocessing import PRESETS

SIZE, WIDTH, CLASSES = (48, 40), 12, 5
STRIDES = (1, 2, 1)
EPSILON = 1e-3
_mean, _std = (np.float32(value) for value in (PRESETS["torch"].mean, PRESETS["torch"].std))
PRESET = [float(v) for v in 0.5 / _std], [float(v) for v in (0.5 - _mean) / _std]
"""Scale and offset that convert images scaled as `tf`, −1…1, to the scale of `torch`."""


@dataclass(frozen=True)
class Fault:
    """A mistake, and the index of its block where the mistake concerns one block."""

    kind: str = ""
    depth: int = 0

    def at(self, kind: str, depth: int = 0) -> bool:
        return (self.kind, self.depth) == (kind, depth)


@dataclass(frozen=True)
class Block:
    kernel: Any  # [3, 3, in, out]
    bias: Any
    norm: tuple[Any, Any, Any, Any]  # gamma, beta, mean, variance


def weights(fault: Fault) -> tuple[list[Block], Any, Any]:
    """Return the blocks, and the dense layer's kernel [height, width, channels, classes] and bias."""
    rng = np.random.default_rng(12)
    blocks = []
    into = 3
    for depth in range(3):
        kernel = rng.normal(size=(3, 3, into, WIDTH)) * np.sqrt(2 / (9 * into))
        norm = [rng.uniform(0.5, 1.5, WIDTH), rng.normal(0, 0.3, WIDTH), rng.normal(0, 0.3, WIDTH)]
        norm.append(rng.uniform(1.5, 3.0, WIDTH))
        bias = rng.normal(0, 0.1, WIDTH)
        if fault.at("statistics", depth):
            norm[2], norm[3] = norm[2] + 0.05, norm[3] * np.linspace(0.9, 1.2, WIDTH)
        order = np.random.default_rng(3).permutation(WIDTH) if fault.at("channels", depth) else np.arange(WIDTH)
        kernel_order = order if not fault.at("order", depth) else np.random.default_rng(3).permutation(WIDTH)
        blocks.append(Block(kernel[..., kernel_order], bias[kernel_order], tuple(value[order] for value in norm)))
        into = WIDTH
    kernel = rng.normal(size=(*pooled(), WIDTH, CLASSES)) / np.sqrt(np.prod(pooled()) * WIDTH)
    if fault.kind == "flatten":  # the weights of [height, width, channels], read as [channels, height, width]
        flat = kernel.reshape(-1, CLASSES)
        kernel = flat.reshape(WIDTH, *pooled(), CLASSES).transpose(1, 2, 0, 3)
    if fault.kind == "first kernel":
        blocks[0] = Block(blocks[0].kernel[:, :, ::-1], blocks[0].bias, blocks[0].norm)
    if fault.kind == "half":
        half = [Block(*(_half(v) for v in (b.kernel, b.bias)), tuple(_half(v) for v in b.norm)) for b in blocks]
        return half, _half(kernel), _half(rng.normal(0, 0.1, CLASSES))
    return blocks, kernel, rng.normal(0, 0.1, CLASSES)


def _half(value: Any) -> Any:
    return value.astype(np.float16).astype(np.float64)


def pooled() -> tuple[int, int]:
    return SIZE[0] // 8, SIZE[1] // 8


def in_torch(fault: Fault = Fault()) -> nn.Module:
    """Return the network as a torch user writes it."""
    blocks, dense, bias = weights(fault)
    preset = fault.kind == "preset"

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            into = 3
            for depth, (block, stride) in enumerate(zip(blocks, STRIDES, strict=True)):
                conv = nn.Conv2d(into, WIDTH, 3, stride, padding=0)
                norm = nn.BatchNorm2d(WIDTH, eps=0.1 if fault.at("epsilon", depth) else EPSILON)
                gamma, beta, mean, variance = (torch.from_numpy(np.asarray(v)).float() for v in block.norm)
                with torch.no_grad():
                    conv.weight.copy_(torch.from_numpy(block.kernel.transpose(3, 2, 0, 1).copy()))
                    conv.bias.copy_(torch.from_numpy(np.asarray(block.bias)))
                    norm.weight.copy_(gamma)
                    norm.bias.copy_(beta)
                    norm.running_mean.copy_(mean)
                    norm.running_var.copy_(variance)
                act = nn.ReLU() if depth < 2 else nn.GELU("tanh" if fault.at("gelu", depth) else "none")
                if fault.at("activation", depth):
                    act = nn.SiLU()
                pads = [0, 2, 0, 2] if fault.at("padding", depth) else [1, 1, 1, 1]
                self.add_module(f"conv{depth}", nn.Sequential(nn.ZeroPad2d(pads), conv))
                self.add_module(f"bn{depth}", norm)
                self.add_module(f"act{depth}", act)
                into = WIDTH
            linear = fault.kind == "interpolation"
            self.up = nn.Upsample(scale_factor=2, mode="bilinear" if linear else "nearest")
            self.pool = nn.AvgPool2d(8)
            self.flat = nn.Flatten()
            self.fc = nn.Linear(WIDTH * pooled()[0] * pooled()[1], CLASSES)
            with torch.no_grad():
                self.fc.weight.copy_(torch.from_numpy(dense.transpose(3, 2, 0, 1).reshape(CLASSES, -1).copy()))
                self.fc.bias.copy_(torch.from_numpy(bias))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x / 2 if fault.kind == "scale" else x
            x = x * torch.tensor(PRESET[0]).view(3, 1, 1) + torch.tensor(PRESET[1]).view(3, 1, 1) if preset else x
            for depth in range(3):
                for part in ("conv", "bn", "act"):
                    x = self.get_submodule(f"{part}{depth}")(x)
            return self.fc(self.flat(self.pool(self.up(x))))

    return Net().eval()


def in_keras(fault: Fault = Fault()) -> Any:
    """Return the network as a Keras user writes it."""
    from xcam_keras.backend import keras

    L = keras.layers
    blocks, dense, bias = weights(fault)
    x = inputs = L.Input((*SIZE, 3))
    if fault.kind == "scale":
        x = L.Rescaling(0.5, name="rescaled")(x)
    if fault.kind == "preset":
        x = L.Rescaling(list(PRESET[0]), list(PRESET[1]), name="rescaled")(x)
    layers = []
    for depth, (_, stride) in enumerate(zip(blocks, STRIDES, strict=True)):
        pads = ((0, 2), (0, 2)) if fault.at("padding", depth) else 1
        x = L.ZeroPadding2D(pads, name=f"pad{depth}")(x)
        layers.append(L.Conv2D(WIDTH, 3, stride, name=f"conv{depth}"))
        x = layers[-1](x)
        layers.append(L.BatchNormalization(name=f"bn{depth}", epsilon=0.1 if fault.at("epsilon", depth) else EPSILON))
        x = layers[-1](x)
        kind: Any = "relu"
        if depth == 2:
            tanh = fault.at("gelu", depth)
            kind = (lambda v: keras.activations.gelu(v, approximate=True)) if tanh else keras.activations.gelu
            if not tanh:
                kind = lambda v: keras.activations.gelu(v, approximate=False)  # noqa: E731
        kind = "silu" if fault.at("activation", depth) else kind
        x = L.Activation(kind, name=f"act{depth}")(x)
    x = L.UpSampling2D(2, interpolation="bilinear" if fault.kind == "interpolation" else "nearest", name="up")(x)
    x = L.Flatten(name="flat")(L.AveragePooling2D(8, name="pool")(x))
    layers.append(L.Dense(CLASSES, name="fc"))
    model = keras.Model(inputs, layers[-1](x), name="net")
    for block, conv, norm in zip(blocks, layers[0:6:2], layers[1:6:2], strict=True):
        conv.set_weights([block.kernel, block.bias])
        norm.set_weights(list(block.norm))
    layers[-1].set_weights([dense.reshape(-1, CLASSES), bias])
    return model
