"""The causes of a layer's own error, each with its figure."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

import reduced
from xcam.comparison import precision_checks
from xcam.comparison.diagnosis import Diagnosis
from xcam.contract.quantization import QuantizedWeights, Stretch

X = reduced.batch()
FIRST = reduced.chain()
VALUES = FIRST.activations(X, [layer.name for layer in FIRST.layers])


def cause(k: int = 3, **mistakes: object) -> Diagnosis | None:
    stretch = reduced.reduced(FIRST, X, **mistakes).run(k, VALUES[f"conv{k - 1}"])
    return precision_checks.diagnose(VALUES[f"conv{k}"], stretch, "uint8")


@pytest.mark.parametrize(
    ("mistake", "code", "text"),
    [
        ({"ranges": {3: 0.5}}, "narrow-range", "are clipped, and they reach 2 times as far as the range"),
        ({"ranges": {3: 10}}, "wide-range", "2[67] of 256 levels are used"),
        ({"ranges": {3: 2}}, "wide-range", "12[89] of 256 levels are used"),
        ({"zero_points": {3: 10}}, "wrong-zero-point", "off by 10 levels"),
        ({"restored": {3: 2}}, "wrong-scale", "multiplied by 2:"),
        ({"restored": {3: 0.9}}, "wrong-scale", "multiplied by 0.9:"),
    ],
)
def test_a_mistake_of_the_quantisation(mistake: dict[str, dict[int, float]], code: str, text: str) -> None:
    result = cause(**mistake)
    assert result is not None
    assert result.code == code
    assert re.search(text, result.text), result.text


def test_no_cause_fits_honest_rounding() -> None:
    assert cause() is None


def changed(before: np.ndarray, *weights: QuantizedWeights) -> Diagnosis | None:
    honest = reduced.reduced(FIRST, X).run(3, VALUES["conv2"])
    return precision_checks.diagnose(
        VALUES["conv3"], Stretch(np.maximum(before, 0), before, honest.quantization, weights), "uint8"
    )


LINEAR = np.einsum("oc,nchw->nohw", FIRST.weights[2], VALUES["conv2"]).astype(np.float32)
PER_CHANNEL = QuantizedWeights("w", "int8", np.ones(12, np.float32), np.ones(12, np.float32))


def test_a_wrong_scale_of_the_weights() -> None:
    result = changed(2 * LINEAR, PER_CHANNEL)
    assert result == Diagnosis("wrong-scale", "the sum over its weights is multiplied by 2: the scale of w is wrong")


def test_a_coarse_bias() -> None:
    bias = QuantizedWeights("b", "int8", np.asarray(0.2), np.ones(12), is_bias=True)
    offsets = np.random.default_rng(5).uniform(-0.1, 0.1, 12).astype(np.float32)
    result = changed(LINEAR + offsets[:, None, None], PER_CHANNEL, bias)
    assert result is not None
    assert result.code == "coarse-bias"
    assert result.text.endswith("its bias is quantised in steps of 0.2")


def test_one_scale_for_channels_of_different_ranges() -> None:
    largest = np.float32([40, *[1] * 11])
    noise = np.random.default_rng(5).normal(0, 0.1, LINEAR.shape).astype(np.float32)
    result = changed(LINEAR + noise, QuantizedWeights("w", "int8", np.asarray(40 / 127), largest))
    assert result is not None
    assert result.code == "per-tensor-weights"
    assert "differ by a factor of 40" in result.text
    assert result.text.endswith("with a scale of each channel the steps of most would be 40 times smaller")


@pytest.mark.parametrize(
    ("factor", "code", "text"),
    [
        (1e5, "half-overflow", "too large for float16"),
        (1e-7, "half-underflow", "became 0"),
        (1.0, None, ""),
    ],
)
def test_the_range_of_float16(factor: float, code: str | None, text: str) -> None:
    reference = (np.random.default_rng(0).normal(size=(2, 4, 8, 8)) * factor).astype(np.float32)
    with np.errstate(over="ignore"):
        value = reference.astype(np.float16).astype(np.float32)
    result = precision_checks.diagnose(reference, Stretch(value), "float16")
    assert (result and result.code) == code
    assert result is None or text in result.text


def test_a_zero_point_that_leaves_levels_below_relu() -> None:
    """The range need not fit: the images may be others than those of the calibration."""
    honest = reduced.reduced(FIRST, X, ranges={3: 1.2}).run(3, VALUES["conv2"])
    assert honest.quantization is not None
    shifted = replace(honest, quantization=replace(honest.quantization, zero_point=np.asarray(10)))
    result = precision_checks.diagnose(VALUES["conv3"], shifted, "uint8")
    assert result is not None
    assert result.text == (
        "its zero point is off by 10 levels: values are not negative, and 10 levels below 0 are not used"
    )


def pooled(rows: int) -> Diagnosis | None:
    """One value of each channel and row, with random errors."""
    reference, errors = np.random.default_rng(0).normal(size=(2, rows, 40, 1, 1)).astype(np.float32)
    return precision_checks.diagnose(reference, Stretch(reference + errors, weights=(PER_CHANNEL,)), "float32")


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_errors_of_few_values_are_not_a_constant_of_their_channel(rows: int) -> None:
    assert pooled(rows) is None


def test_the_ends_of_few_values_are_not_an_activation() -> None:
    values = np.float32([[-3, 1, 2, 5, 4]])
    assert precision_checks.ends(values) == (-np.inf, np.inf)
    many = np.clip(np.random.default_rng(0).normal(size=(1, 400)), 0, 1).astype(np.float32)
    assert precision_checks.ends(many) == (0, 1)


def test_a_wide_range_explains_rounding_and_not_a_larger_error() -> None:
    """Values with errors of eight steps, in a range of which they reach two thirds."""
    assert cause(ranges={3: 1.5}) is not None
    honest = reduced.reduced(FIRST, X, ranges={3: 1.5}).run(3, VALUES["conv2"])
    assert honest.quantization is not None
    assert honest.unrounded is not None
    step = honest.quantization.scale
    noise = np.random.default_rng(0).integers(-8, 9, honest.value.shape) * step
    value = np.maximum(honest.value + noise, 0).astype(np.float32)
    assert (
        precision_checks.diagnose(
            VALUES["conv3"], Stretch(value, honest.unrounded, honest.quantization, (PER_CHANNEL,)), "uint8"
        )
        is None
    )
