"""Causes found by trying: models that are functions, the second of which makes one mistake."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import correlate

from xcam import InputSpec, Layer, Trace
from xcam.comparison import rerun_checks, value_checks
from xcam.comparison.alignment import sketch
from xcam.contract.preprocessing import PRESETS

Function = Callable[[np.ndarray], np.ndarray]
KERNELS = np.random.default_rng(0).normal(size=(4, 3, 3, 3))
DENSE = np.random.default_rng(1).normal(size=(4 * 6 * 6, 5)).astype(np.float32)
SHIFTED = "shifted by a pixel: padding that is uneven (SAME) against even"


def picture(size: int) -> np.ndarray:
    return np.random.default_rng(2).uniform(0, 1, (1, 3, size, size)).astype(np.float32)


def conv(x: np.ndarray, stride: int = 1, start: int = 0, mode: str = "constant") -> np.ndarray:
    """[N, 3, H, W] → [N, 4, H / stride, W / stride]; `start`: the place at which the first window stands."""
    made = [[sum(correlate(x[n, c], k[c], mode=mode) for c in range(3)) for k in KERNELS] for n in range(len(x))]
    return np.roll(np.array(made, np.float32), (-start, -start), (2, 3))[:, :, ::stride, ::stride]


@dataclass
class Function2:
    """A model of one layer, `l`."""

    values: Function
    outputs: Function = lambda a: a
    input: InputSpec = field(default_factory=lambda: InputSpec(None, preprocessing=PRESETS["unit"]))
    backend: str = "function"
    output_activation: None = None
    layers: tuple[Layer, ...] = ()
    capabilities: frozenset[str] = frozenset({"gradients", "resume"})

    def activations(self, x: np.ndarray, layers: Sequence[str]) -> Mapping[str, np.ndarray]:
        return {name: self.values(x) for name in layers}

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.outputs(self.values(x))

    def trace(self, x: np.ndarray, layer: str, cotangents: Any = None) -> Trace:
        return Trace(self.predict(x), self.values(x), [], x)

    def resume(self, trace: Trace, activations: np.ndarray, rows: Any = None, cotangents: Any = None) -> Trace:
        return Trace(self.outputs(activations), activations, [], trace.state)


def site(
    first: Function, second: Function, x: np.ndarray, before: np.ndarray | None = None
) -> rerun_checks.LayerMismatch:
    models: Any = Function2(first), Function2(second)
    a, b = (sketch(Layer("l", "Conv", f(x).shape[1:]), f(x)) for f in (first, second))
    return rerun_checks.LayerMismatch(
        a, b, None if before is None else sketch(Layer("k", "Conv", before.shape[1:]), before), models, (x, x)
    )


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        (lambda x: x[:, ::-1], "the input's channels: RGB against BGR"),
        (lambda x: x * 2, "the scale of the input: it takes values 2 times as large"),
        (lambda x: x / 255, "the scale of the input: it takes values 0.003922 times as large"),
        (
            lambda x: (x + 1) / 2,  # made for values in 0…1 what takes −1…1
            "the scale of the input: it agrees when given pictures scaled as 'tf', and takes them as 'unit'",
        ),
        (lambda x: x + 0.1 * np.sin(9 * x), ""),
    ],
)
def test_the_picture(mistake: Function, told: str) -> None:
    assert rerun_checks.picture(site(conv, lambda x: conv(mistake(x)), picture(16))) == told


@pytest.mark.parametrize("size", [5, 7, 24])
def test_a_shift(size: int) -> None:
    x = picture(size)
    assert rerun_checks.shift(site(conv, lambda x: conv(x, start=1), x)) == SHIFTED
    assert rerun_checks.shift(site(conv, lambda x: conv(x) + 0.3 * conv(x, start=1), x)) == ""


@pytest.mark.parametrize("before", [True, False])
def test_a_shift_of_what_skips_places(before: bool) -> None:
    x = picture(48)
    first, second = (lambda x, s=s: conv(x, stride=2, start=s) for s in (0, 1))
    assert rerun_checks.shift(site(first, second, x, x if before else None)) == SHIFTED
    assert rerun_checks.shift(site(first, lambda x: first(x) * np.float32([1, 1, 1, -1])[:, None, None], x, x)) == ""


def test_the_border() -> None:
    x = picture(24)
    found = rerun_checks.shift(site(conv, lambda x: conv(x, mode="nearest"), x))
    assert found == "its border: zeros against another kind of padding"

    def one_corner(x: np.ndarray) -> np.ndarray:
        values = conv(x)
        values[..., 0, 0] += 5
        return values

    assert rerun_checks.shift(site(conv, one_corner, x)) == ""


def test_flattening() -> None:
    x = picture(6)

    def first(a: np.ndarray) -> np.ndarray:
        return a.reshape(len(a), -1) @ DENSE

    def last(a: np.ndarray) -> np.ndarray:
        return np.moveaxis(a, 1, -1).reshape(len(a), -1) @ DENSE

    def other(a: np.ndarray) -> np.ndarray:
        return a.reshape(len(a), -1) @ DENSE[::-1]

    for one, two, told in (
        (first, last, value_checks.FLATTENED),
        (last, first, value_checks.FLATTENED),
        (first, other, ""),
    ):
        here = site(conv, conv, x)
        here.models[0].outputs, here.models[1].outputs = one, two  # type: ignore[attr-defined]
        assert rerun_checks.flattening(here, Layer("l", "Conv", (4, 6, 6))) == told
