"""A chain of 1×1 convolutions and ReLUs in NumPy, and copies of it in integers, with and without a mistake."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xcam import InputSpec, Layer
from xcam.contract.preprocessing import PRESETS
from xcam.contract.quantization import Quantization, QuantizedWeights, Stretch, levels

SIZE = (12, 10)
WIDTHS = (3, 8, 16, 12, 16, 8)


@dataclass
class Chain:
    """Layers `conv1`, `conv2`, …: ReLU of a 1×1 convolution."""

    weights: Sequence[np.ndarray]
    name: str = "chain"
    backend: str = "numpy"
    input: InputSpec = field(default_factory=lambda: InputSpec(SIZE, preprocessing=PRESETS["tf"]))
    labels: None = None
    capabilities: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    output_activation: None = None
    dtype: str = "float32"

    @property
    def layers(self) -> list[Layer]:
        return [Layer(f"conv{k}", "Conv", (len(w), *SIZE), dtype=self.dtype) for k, w in enumerate(self.weights, 1)]

    def step(self, k: int, x: np.ndarray) -> np.ndarray:
        return np.maximum(np.einsum("oc,nchw->nohw", self.weights[k - 1], x), 0).astype(np.float32)

    def activations(self, x: np.ndarray, layers: Sequence[str]) -> Mapping[str, np.ndarray]:
        values = {}
        for k in range(1, len(self.weights) + 1):
            x = values[f"conv{k}"] = self.step(k, x)
        return {name: values[name] for name in layers}

    def predict(self, x: np.ndarray) -> np.ndarray:
        last = f"conv{len(self.weights)}"
        return self.activations(x, [last])[last].mean((2, 3))


@dataclass
class Reduced(Chain):
    """The chain with int8 weights, a scale for each channel, and uint8 values."""

    scales: dict[int, float] = field(default_factory=dict)
    """The scale of each layer's values."""
    restored: dict[int, float] = field(default_factory=dict)
    """The scale with which they are dequantised, where it differs."""
    zero_points: dict[int, int] = field(default_factory=dict)
    """The zero point that is added when they are quantised."""
    per_tensor: frozenset[int] = frozenset()
    precision: str | None = "uint8"
    dtype: str = "uint8"

    def quantized(self, k: int) -> tuple[np.ndarray, QuantizedWeights]:
        w = np.asarray(self.weights[k - 1], np.float32)
        largest = np.abs(w).max(1)
        scale = np.float32(largest.max() if k in self.per_tensor else largest) / 127
        column = np.reshape(scale, (-1, 1))
        return np.round(w / column) * column, QuantizedWeights(f"w{k}", "int8", np.asarray(scale), largest)

    def run(self, k: int, x: np.ndarray) -> Stretch:
        w, weights = self.quantized(k)
        unrounded = np.einsum("oc,nchw->nohw", w, x).astype(np.float32)
        scale, zero = np.float32(self.scales[k]), self.zero_points.get(k, 0)
        q = np.clip(np.round(unrounded / scale) + zero, *levels("uint8"))
        value = (q * np.float32(self.restored.get(k, scale))).astype(np.float32)
        noise = float(np.einsum("o,nchw->no", (weights.largest / 127) ** 2 / 12, x**2).mean() / np.prod(SIZE))
        return Stretch(
            value, unrounded, Quantization("uint8", np.asarray(scale), np.asarray(zero)), (weights,), noise
        )

    def step(self, k: int, x: np.ndarray) -> np.ndarray:
        return self.run(k, x).value

    def stretch_sources(self, layers: Sequence[str], known: Collection[str]) -> list[str]:
        return [name for name in known if f"conv{int(name[4:]) + 1}" in layers]

    def stretches(self, x: np.ndarray, values: Mapping[str, np.ndarray], layers: Sequence[str]) -> dict[str, Stretch]:
        numbers = {name: int(name[4:]) for name in layers}
        return {name: self.run(k, x if k == 1 else values[f"conv{k - 1}"]) for name, k in numbers.items()}


def chain(seed: int = 0) -> Chain:
    rng = np.random.default_rng(seed)
    return Chain([rng.normal(0, a**-0.5, (b, a)).astype(np.float32) for a, b in itertools.pairwise(WIDTHS)])


def reduced(first: Chain, x: np.ndarray, **mistakes: Any) -> Reduced:
    """Return the chain in integers, its ranges those of its values on `x`."""
    names = [layer.name for layer in first.layers]
    values = first.activations(x, names)
    scales = {k: float(values[name].max()) / 255 for k, name in enumerate(names, 1)}
    scales |= {k: scales[k] * factor for k, factor in mistakes.pop("ranges", {}).items()}
    restored = {k: scales[k] * factor for k, factor in mistakes.pop("restored", {}).items()}
    return Reduced(first.weights, name="chain, int8", scales=scales, restored=restored, **mistakes)


def batch(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (2, 3, *SIZE)).astype(np.float32)
