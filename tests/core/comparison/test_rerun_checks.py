"""Diagnosis by rerunning: models are functions, and the second one contains a mistake."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import correlate

from xcam import InputSpec, Layer, Trace
from xcam.comparison import Diagnosis, rerun_checks
from xcam.comparison.alignment import sample
from xcam.comparison.diagnosis import FLATTENING
from xcam.contract.preprocessing import PRESETS

SPEC = InputSpec(None, preprocessing=PRESETS["unit"])
Function = Callable[[np.ndarray], np.ndarray]
KERNELS = np.random.default_rng(0).normal(size=(4, 3, 3, 3))
DENSE = np.random.default_rng(1).normal(size=(4 * 6 * 6, 5)).astype(np.float32)
SHIFTED = Diagnosis("uneven-padding", "shifted by a pixel: uneven padding (SAME) against even padding")


def image(size: int) -> np.ndarray:
    return np.random.default_rng(2).uniform(0, 1, (1, 3, size, size)).astype(np.float32)


def conv(x: np.ndarray, stride: int = 1, start: int = 0, mode: str = "constant") -> np.ndarray:
    """[N, 3, H, W] → [N, 4, H / stride, W / stride]; `start`: the position of the first window."""
    maps = [[sum(correlate(x[n, c], k[c], mode=mode) for c in range(3)) for k in KERNELS] for n in range(len(x))]
    return np.roll(np.array(maps, np.float32), (-start, -start), (2, 3))[:, :, ::stride, ::stride]


@dataclass
class Function2:
    """A model with a single layer, `l`."""

    values: Function
    outputs: Function = lambda a: a
    input: InputSpec = SPEC
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


def mismatch(
    first: Function, second: Function, x: np.ndarray, before: np.ndarray | None = None
) -> rerun_checks.LayerMismatch:
    a, b = (sample(Layer("l", "Conv", f(x).shape[1:]), f(x)) for f in (first, second))
    models: Any = tuple(rerun_checks.ComparedModel(Function2(f), SPEC, x) for f in (first, second))
    agreeing = None if before is None else sample(Layer("k", "Conv", before.shape[1:]), before)
    return rerun_checks.LayerMismatch(a, b, agreeing, models)


@pytest.mark.parametrize(
    ("mistake", "expected"),
    [
        (lambda x: x[:, ::-1], ("rgb-bgr", "the input's channels: RGB against BGR")),
        (lambda x: x * 2, ("input-scale", "the scale of the input: it takes values 2 times as large")),
        (lambda x: x / 255, ("input-scale", "the scale of the input: it takes values 0.003922 times as large")),
        (
            lambda x: (x + 1) / 2,  # values in 0…1 for a model that expects −1…1
            (
                "input-scale",
                "the scale of the input: it agrees on images scaled as 'tf', and is given images scaled as 'unit'",
            ),
        ),
        (lambda x: x + 0.1 * np.sin(9 * x), None),
    ],
)
def test_the_input(mistake: Function, expected: tuple[str, str] | None) -> None:
    cause = rerun_checks.input_changes(mismatch(conv, lambda x: conv(mistake(x)), image(16)))
    assert cause == (None if expected is None else Diagnosis(*expected))


@pytest.mark.parametrize("size", [5, 7, 24])
def test_a_shift(size: int) -> None:
    x = image(size)
    assert rerun_checks.padding(mismatch(conv, lambda x: conv(x, start=1), x)) == SHIFTED
    assert rerun_checks.padding(mismatch(conv, lambda x: conv(x) + 0.3 * conv(x, start=1), x)) is None


@pytest.mark.parametrize("before", [True, False])
def test_a_shift_of_a_strided_layer(before: bool) -> None:
    x = image(48)
    first, second = (lambda x, s=s: conv(x, stride=2, start=s) for s in (0, 1))
    assert rerun_checks.padding(mismatch(first, second, x, x if before else None)) == SHIFTED
    assert (
        rerun_checks.padding(mismatch(first, lambda x: first(x) * np.float32([1, 1, 1, -1])[:, None, None], x, x))
        is None
    )


def test_the_border() -> None:
    x = image(24)
    cause = rerun_checks.padding(mismatch(conv, lambda x: conv(x, mode="nearest"), x))
    assert cause == Diagnosis("border-padding", "its border: padding with zeros against another kind of padding")

    def one_corner(x: np.ndarray) -> np.ndarray:
        values = conv(x)
        values[..., 0, 0] += 5
        return values

    assert rerun_checks.padding(mismatch(conv, one_corner, x)) is None


def test_flattening() -> None:
    x = image(6)

    def first(a: np.ndarray) -> np.ndarray:
        return a.reshape(len(a), -1) @ DENSE

    def last(a: np.ndarray) -> np.ndarray:
        return np.moveaxis(a, 1, -1).reshape(len(a), -1) @ DENSE

    def other(a: np.ndarray) -> np.ndarray:
        return a.reshape(len(a), -1) @ DENSE[::-1]

    for one, two, expected in (
        (first, last, FLATTENING),
        (last, first, FLATTENING),
        (first, other, None),
    ):
        here = mismatch(conv, conv, x)
        here.models[0].model.outputs, here.models[1].model.outputs = one, two  # type: ignore[attr-defined]
        assert rerun_checks.flattening(here, Layer("l", "Conv", (4, 6, 6))) == expected
