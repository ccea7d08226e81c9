"""How a model of reduced precision stores values and weights, and its layers computed one stretch at a time."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from xcam.contract.types import Array


def levels(dtype: str) -> tuple[int, int]:
    """Return the smallest and the largest integer of a type: (-128, 127) for `int8`, (0, 15) for `uint4`."""
    name = re.fullmatch(r"(u?)int(\d+)", dtype)
    if not name:
        raise ValueError(f"{dtype!r} is not a type of integers")
    bits = int(name[2])
    return (0, 2**bits - 1) if name[1] else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@dataclass(frozen=True)
class Quantization:
    """The rounding of a layer's value to integers: q = clip(round(value / scale) + zero_point)."""

    dtype: str
    """`int8`, `uint8`, `int16`, …"""
    scale: Array
    """A scalar [], or [C]."""
    zero_point: Array
    """A scalar [], or [C]."""

    @property
    def low(self) -> Array:
        """The smallest value that is not clipped: a scalar [], or [C]."""
        return np.asarray((levels(self.dtype)[0] - self.zero_point.astype(np.float64)) * self.scale)

    @property
    def high(self) -> Array:
        """The largest value that is not clipped: a scalar [], or [C]."""
        return np.asarray((levels(self.dtype)[1] - self.zero_point.astype(np.float64)) * self.scale)


@dataclass(frozen=True)
class QuantizedWeights:
    """A tensor of weights that the model stores as integers."""

    name: str
    dtype: str
    scale: Array
    """A scalar [] for one scale of the tensor; [C] for one of each output channel; else one of each block."""
    largest: Array
    """The largest magnitude of the weights of each output channel [C]."""
    is_bias: bool = False

    @property
    def per_tensor(self) -> bool:
        """Whether all channels share one scale."""
        return np.size(self.largest) > 1 and bool((self.scale == np.ravel(self.scale)[0]).all())


@dataclass(frozen=True)
class Stretch:
    """A layer, computed from given values at the layers nearest ahead of it."""

    value: Array
    """The layer's value [N, C, *spatial], as the model gives it: quantised, clipped, dequantised."""
    unrounded: Array | None = None
    """Its value before it is quantised, of the same shape: an absorbed activation is not applied yet. None where it is
    not quantised."""
    quantization: Quantization | None = None
    """How the value is quantised."""
    weights: tuple[QuantizedWeights, ...] = ()
    """The quantised weights within the stretch."""
    noise: float | None = None
    """The mean square error that rounding weights and values within the stretch must add to `unrounded`, or to `value` where
    that is None: at their bit widths, with ranges that fit; weights with a scale of each channel, or with one scale where
    most weights of the model have one. None: not known."""


Range = tuple[float, float]
"""The smallest and the largest value that a quantised value can represent."""

INPUT = ""
"""Instead of a layer's name: the model's input."""


@dataclass(frozen=True)
class Part:
    """A part of a model of reduced precision that the float model can take over: what computes one common value."""

    name: str
    """The name of its main node in the float file."""
    nodes: tuple[str, ...]
    """The names of all its nodes in the float file."""
    kinds: tuple[str, ...]
    """Their operators."""
    count: int = 1
    """The number of its nodes that compute something: not those that only move or limit values."""
